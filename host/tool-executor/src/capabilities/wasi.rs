//! WASI 0.2 without authority: no files, no network, no environment; output goes to the log, clocks are coarse.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::Clock;
use wasmtime::component::Linker;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx};

use crate::{
    capabilities::logging::{Output, SharedLog, Stream},
    sandbox::Sandbox,
};

/// Ticks of a tool's clocks. A finer clock helps nobody but whoever measures caches.
const CLOCK_TICK: Duration = Duration::from_millis(1);
/// Random bytes that one call of the host may make.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)
}

/// The context of one call.
pub(crate) fn empty(log: &SharedLog, clock: &Arc<dyn Clock>, started: Instant) -> WasiCtx {
    WasiCtx::builder()
        .stdout(Output::new(log, Stream::Stdout))
        .stderr(Output::new(log, Stream::Stderr))
        .wall_clock(CoarseWallClock(Arc::clone(clock)))
        .monotonic_clock(CoarseMonotonicClock(started))
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .allow_blocking_current_thread(false)
        .build()
}

struct CoarseWallClock(Arc<dyn Clock>);

impl HostWallClock for CoarseWallClock {
    fn resolution(&self) -> Duration {
        CLOCK_TICK
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.now().unix_ms())
    }
}

/// Counts from the call's begin.
struct CoarseMonotonicClock(Instant);

impl HostMonotonicClock for CoarseMonotonicClock {
    fn resolution(&self) -> u64 {
        u64::try_from(CLOCK_TICK.as_nanos()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> u64 {
        let tick = self.resolution();
        let elapsed = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        elapsed / tick * tick
    }
}
