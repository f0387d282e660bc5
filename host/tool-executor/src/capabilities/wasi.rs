//! WASI 0.2 without authority: no network, no environment; output goes to the log, clocks are coarse, chance comes from
//! one seed. Files are `scratch`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng, TryRng},
};
use domain::Clock;
use wasmtime::component::Linker;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx};

use crate::{
    capabilities::logging::{Output, SharedLog, Stream},
    replay::Inputs,
    sandbox::{CallView, Sandbox},
};

/// Ticks of a tool's clocks. A finer clock helps nobody but whoever measures caches.
const CLOCK_TICK: Duration = Duration::from_millis(1);
/// Random bytes that one call of the host may make.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)
}

/// The context of one call. `drawn` counts the random bytes that are made, for the meter.
pub(crate) fn empty(
    log: &SharedLog,
    clock: &Arc<dyn Clock>,
    call: &CallView,
    started: Instant,
    drawn: &Arc<AtomicU64>,
) -> WasiCtx {
    let mut insecure_seed = [0; 16];
    chance(call.seed, 2).fill_bytes(&mut insecure_seed);
    WasiCtx::builder()
        .stdout(Output::new(log, Stream::Stdout))
        .stderr(Output::new(log, Stream::Stderr))
        .wall_clock(CoarseWallClock { clock: Arc::clone(clock), inputs: call.inputs.clone() })
        .monotonic_clock(CoarseMonotonicClock { started, inputs: call.inputs.clone() })
        .secure_random(Drawn { chance: chance(call.seed, 0), drawn: Arc::clone(drawn) })
        .insecure_random(Drawn { chance: chance(call.seed, 1), drawn: Arc::clone(drawn) })
        .insecure_random_seed(u128::from_le_bytes(insecure_seed))
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .allow_blocking_current_thread(false)
        .build()
}

/// One of the seed's streams: none of them says anything of another.
fn chance(seed: [u8; 32], stream: u64) -> ChaCha20Rng {
    let mut chance = ChaCha20Rng::from_seed(seed);
    chance.set_stream(stream);
    chance
}

/// Random numbers whose bytes are counted.
struct Drawn {
    chance: ChaCha20Rng,
    drawn: Arc<AtomicU64>,
}

impl Drawn {
    fn count(&mut self, bytes: usize) -> &mut ChaCha20Rng {
        self.drawn.fetch_add(bytes as u64, Ordering::Relaxed);
        &mut self.chance
    }
}

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.count(4).next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.count(8).next_u64())
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        self.count(to.len()).fill_bytes(to);
        Ok(())
    }
}

struct CoarseWallClock {
    clock: Arc<dyn Clock>,
    inputs: Inputs,
}

impl HostWallClock for CoarseWallClock {
    fn resolution(&self) -> Duration {
        CLOCK_TICK
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.inputs.wall_clock_ms(|| self.clock.now().unix_ms()))
    }
}

/// Counts from the call's begin.
struct CoarseMonotonicClock {
    started: Instant,
    inputs: Inputs,
}

impl HostMonotonicClock for CoarseMonotonicClock {
    fn resolution(&self) -> u64 {
        nanos(CLOCK_TICK)
    }

    fn now(&self) -> u64 {
        let tick = self.resolution();
        let ticks = self.inputs.monotonic_ms(|| nanos(self.started.elapsed()) / tick);
        ticks.saturating_mul(tick)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
