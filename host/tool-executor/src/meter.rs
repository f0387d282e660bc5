//! What a call consumes, counted while it runs: memory, tables, host calls, fuel for host calls, the deadline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use domain::Limits;
use wasmtime::{CallHook, ResourceLimiter, StoreContextMut};

use crate::{
    engine::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLES_MAX},
    sandbox::Sandbox,
};

/// Fuel that a call burns between two yields to the runtime, about 0.1 ms of plain work: other calls wait no longer,
/// and a deadline is noticed no later.
pub(crate) const YIELD_FUEL: u64 = 100_000;
/// Fuel for each crossing from wasm to the host: about what its time would buy in plain work.
pub(crate) const HOST_CALL_FUEL: u64 = 1_000;
/// Fuel for each byte of a name, a key or a line that passes between a tool and a host function.
const FUEL_PER_BYTE: u64 = 1;
/// Calls of host functions that may follow one another when a yield is due: compiled code looks for one only where a
/// function or a loop begins, so straight code would keep its thread for as long as it calls.
const OVERDUE_HOST_CALLS_MAX: u32 = 256;
/// Bytes that one host call may bring into the host's memory: the largest value of a key-value store with its key, and
/// more than any other name, line or chunk that is kept.
const HOST_CALL_BYTES_MAX: usize = 260 << 10;
/// Bytes that the result of a call may bring into the host's memory: the ceiling of an output.
pub(crate) const RESULT_BYTES_MAX: usize = 4 << 20;
/// Elements of all tables of a call together.
const TABLE_ELEMENTS_SUM_MAX: usize = 100_000;

/// A limit that ended a call. A typed error inside the engine, so that it is not taken for a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitReached {
    #[error("fuel")]
    Fuel,
    #[error("memory")]
    Memory,
    #[error("deadline")]
    Deadline,
    #[error("host calls")]
    HostCalls,
    #[error("logs")]
    Logs,
    #[error("HTTP requests")]
    HttpRequests,
    #[error("HTTP bytes")]
    HttpBytes,
    #[error("output")]
    Output,
}

/// Counts of one call.
pub(crate) struct Meter {
    memory_bytes_max: usize,
    /// Of all memories. Memories never shrink, so this is the peak too.
    pub(crate) memory_bytes: usize,
    /// The last growth that was allowed; taken back when the engine could not do it.
    growth: usize,
    table_elements: usize,
    host_calls_max: u64,
    /// Calls of host functions. The engine's own helpers are charged fuel, and not counted.
    pub(crate) host_calls: u64,
    pub(crate) deadline: Instant,
    /// How often the call's future was polled: the only way to learn that a yield took place.
    polls: Arc<AtomicU64>,
    /// Fuel that is left when the next yield is due.
    yield_at: u64,
    /// Host calls since a yield is due, while none came.
    overdue: u32,
    /// The crossing to the host that is under way, and the one around it: a host function may call the tool's allocator,
    /// and that one a helper of the engine.
    crossing: Crossing,
    around: Option<Crossing>,
    /// Random bytes that were made and are not paid yet, once the call has asked for WASI.
    pub(crate) drawn: Option<Arc<AtomicU64>>,
    /// Bytes that the host function under way has handled, and that are not paid yet.
    bytes: u64,
}

/// What is known when wasm has called the host.
#[derive(Debug, Clone, Copy, Default)]
struct Crossing {
    /// A yield was due, so that nothing was paid yet; and the polls so far.
    due: Option<u64>,
    /// `Meter::host_calls` before: what does not change it is a helper of the engine.
    host_calls: u64,
}

impl Meter {
    /// `limits` above the ceiling are lowered to it: the engine's pool has no room for more.
    pub(crate) fn new(limits: &Limits, deadline: Instant) -> Meter {
        let limits = limits.min(Limits::CEILING);
        Meter {
            memory_bytes_max: usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX),
            memory_bytes: 0,
            growth: 0,
            table_elements: 0,
            host_calls_max: limits.host_calls,
            host_calls: 0,
            deadline,
            polls: Arc::default(),
            yield_at: limits.fuel.saturating_sub(YIELD_FUEL),
            overdue: 0,
            crossing: Crossing::default(),
            around: None,
            drawn: None,
            bytes: 0,
        }
    }

    /// Bytes that a host function took or gives, to be paid when it returns.
    pub(crate) fn handled(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Counts the polls of the call's future; see `Meter::polls`.
    pub(crate) fn polls(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.polls)
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.growth = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let growth = desired.saturating_sub(current);
        let sum = self.memory_bytes.saturating_add(growth);
        if sum > self.memory_bytes_max {
            // An error and not a refusal: a refused guest would crash in its allocator, and the code would be `trap`.
            return Err(LimitReached::Memory.into());
        }
        self.growth = growth;
        self.memory_bytes = sum;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= std::mem::take(&mut self.growth);
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.table_elements = self.table_elements.saturating_add(desired.saturating_sub(current));
        if self.table_elements > TABLE_ELEMENTS_SUM_MAX {
            return Err(LimitReached::Memory.into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}

/// At every crossing between wasm and the host: charges fuel, keeps the yields coming, checks the deadline and the
/// count of host calls.
///
/// A crossing costs `HOST_CALL_FUEL` as if the tool had burnt it in wasm: the distance to the next yield shrinks by the
/// same amount and the reserve behind it stays. That matters in two ways. A loop of host calls yields like any other
/// loop. And some crossings are the engine's helpers (`memory.grow`), around which compiled code keeps its own copy of
/// the counter and writes it back: with the reserve untouched the charge is lost there, but no fuel can be won.
pub(crate) fn crossing(mut store: StoreContextMut<'_, Sandbox>, hook: CallHook) -> wasmtime::Result<()> {
    match hook {
        CallHook::CallingHost => {
            store.set_hostcall_fuel(HOST_CALL_BYTES_MAX);
            let fuel = store.get_fuel()?;
            let meter = &mut store.data_mut().meter;
            if Instant::now() >= meter.deadline {
                return Err(LimitReached::Deadline.into());
            }
            let until_yield = fuel.saturating_sub(meter.yield_at);
            // When a yield is due, this is the yield itself, or a host call just before it, which pays when it returns.
            let due = (until_yield == 0).then(|| meter.polls.load(Ordering::Relaxed));
            let crossing = Crossing { due, host_calls: meter.host_calls };
            meter.around = Some(std::mem::replace(&mut meter.crossing, crossing));
            if due.is_some() {
                return Ok(());
            }
            let left = fuel.saturating_sub(HOST_CALL_FUEL);
            if left == 0 {
                store.set_fuel(0)?;
                return Err(LimitReached::Fuel.into());
            }
            next_yield(store, left, until_yield.saturating_sub(HOST_CALL_FUEL).max(1))
        }
        CallHook::ReturningFromHost => {
            if let Some(limit) = store.data().outgoing.limit_reached() {
                return Err(limit.into());
            }
            let meter = &mut store.data_mut().meter;
            if meter.host_calls > meter.host_calls_max {
                return Err(LimitReached::HostCalls.into());
            }
            let around = meter.around.take().unwrap_or_default();
            let crossing = std::mem::replace(&mut meter.crossing, around);
            if meter.host_calls == crossing.host_calls {
                // A helper of the engine. Only the yield itself has let others run.
                let yielded = crossing.due.is_some_and(|polls| polls != meter.polls.load(Ordering::Relaxed));
                if !yielded {
                    return Ok(());
                }
                meter.overdue = 0;
                let fuel = store.get_fuel()?;
                return next_yield(store, fuel, YIELD_FUEL);
            }
            // A host function may have waited, and others have run meanwhile. What it costs does not depend on that: a
            // replayed call, which waits for nothing, burns the same fuel.
            let drawn = meter.drawn.as_ref().map_or(0, |drawn| drawn.swap(0, Ordering::Relaxed));
            let bytes = std::mem::take(&mut meter.bytes).saturating_add(drawn);
            let mut price = bytes.saturating_mul(FUEL_PER_BYTE);
            if crossing.due.is_some() {
                meter.overdue += 1;
                if meter.overdue > OVERDUE_HOST_CALLS_MAX {
                    return Err(LimitReached::HostCalls.into());
                }
                price = price.saturating_add(HOST_CALL_FUEL);
            }
            if price == 0 {
                return Ok(());
            }
            let yield_at = meter.yield_at;
            let fuel = store.get_fuel()?;
            let left = fuel.saturating_sub(price);
            if left == 0 {
                store.set_fuel(0)?;
                return Err(LimitReached::Fuel.into());
            }
            next_yield(store, left, fuel.saturating_sub(yield_at).saturating_sub(price).max(1))
        }
        CallHook::ReturningFromWasm => {
            store.set_hostcall_fuel(RESULT_BYTES_MAX);
            Ok(())
        }
        CallHook::CallingWasm => Ok(()),
    }
}

/// Leaves `fuel` in the store, and the next yield after `distance` of it.
fn next_yield(mut store: StoreContextMut<'_, Sandbox>, fuel: u64, distance: u64) -> wasmtime::Result<()> {
    store.data_mut().meter.yield_at = fuel.saturating_sub(distance);
    store.fuel_async_yield_interval(Some(distance))?;
    store.set_fuel(fuel)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    fn meter(memory_bytes: u64) -> Meter {
        Meter::new(&Limits { memory_bytes, ..Limits::DEFAULT }, Instant::now())
    }

    #[test]
    fn memories_are_summed_and_too_much_is_an_error() {
        let mut meter = meter(3 * PAGE as u64);
        assert!(meter.memory_growing(0, 2 * PAGE, None).unwrap());
        assert!(meter.memory_growing(0, PAGE, None).unwrap(), "a second memory");
        let error = meter.memory_growing(PAGE, 2 * PAGE, None).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&LimitReached::Memory));
        assert_eq!(meter.memory_bytes, 3 * PAGE);
    }

    #[test]
    fn growth_that_did_not_happen_is_not_counted() {
        let mut meter = meter(3 * PAGE as u64);
        assert!(!meter.memory_growing(0, 4 * PAGE, Some(2 * PAGE)).unwrap(), "above the memory's own maximum");
        assert!(meter.memory_growing(0, PAGE, None).unwrap());
        meter.memory_grow_failed(wasmtime::Error::msg("mprotect")).unwrap();
        assert_eq!(meter.memory_bytes, 0);
    }

    #[test]
    fn tables_are_summed() {
        let mut meter = meter(PAGE as u64);
        assert!(meter.table_growing(0, TABLE_ELEMENTS_SUM_MAX, None).unwrap());
        assert!(meter.table_growing(0, 1, None).is_err());
    }
}
