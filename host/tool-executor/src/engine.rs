//! Engine settings. Code is compiled in one process and runs in another: what shapes the code is common to both.

use std::num::NonZeroUsize;

use domain::Limits;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OperatorCost, PoolingAllocationConfig, Strategy,
    VariableOperatorCost, WasmBacktraceDetails,
};

/// Core instances of one component: a Python component has 14.
pub(crate) const CORE_INSTANCES_MAX: u32 = 32;
/// Linear memories of one component. Dynamically linked guests share one; composed ones have one a part. Their sum is
/// what `limit.memory` bounds.
pub(crate) const MEMORIES_MAX: u32 = 8;
/// Tables of one component.
pub(crate) const TABLES_MAX: u32 = 16;
/// Elements of one table: a C# module in a debug build has ten thousand.
const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Bookkeeping of one instance, in bytes: the engine's default, said here because the pool is sized by it.
const INSTANCE_BYTES_MAX: usize = 1 << 20;
/// Stack of wasm code, in bytes. Passing it is `limit.stack`.
const WASM_STACK_BYTES: usize = 512 << 10;
/// Stack of a call, in bytes. Host functions get what wasm does not; overflowing it would abort the process.
const CALL_STACK_BYTES: usize = 2 << 20;
/// Memories that stay as their last tool left them, clean and resident, while nobody uses them: an idle host keeps this
/// many times `MEMORY_KEEP_RESIDENT_BYTES`.
const WARM_SLOTS_MAX: u32 = 8;
/// Dirty memory that is reset in place, in bytes a memory: a page that is unmapped costs forty times as much.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 512 << 10;
const TABLE_KEEP_RESIDENT_BYTES: usize = 256 << 10;
/// Fuel for each page of a `memory.grow`; the engine's own price is nothing.
const FUEL_PER_GROWN_PAGE: u8 = 255;
/// Frames of a crash that are kept.
pub(crate) const FRAMES_MAX: usize = 20;

/// Runs calls. Does not compile.
pub(crate) fn for_calls(concurrency: u32) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(concurrency)
        .total_core_instances(concurrency * CORE_INSTANCES_MAX)
        .total_memories(concurrency * MEMORIES_MAX)
        .total_tables(concurrency * TABLES_MAX)
        // Instantiation and call take a stack one after the other, never both.
        .total_stacks(concurrency)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(usize::try_from(Limits::CEILING.memory_bytes)?)
        .max_unused_warm_slots(WARM_SLOTS_MAX.min(concurrency))
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        // The engine's scan misses dirty pages that were swapped out: the next call would read them.
        .pagemap_scan(pagemap_scan(std::fs::read_to_string("/proc/swaps").ok().as_deref()));
    let mut config = code_settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// Compiles. A pooling engine would reserve terabytes, which the child's address-space limit forbids.
pub(crate) fn for_compiling() -> wasmtime::Result<Engine> {
    let mut config = code_settings();
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
}

fn code_settings() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        // Interruption is by fuel alone: a call yields as it burns, and a deadline drops it at a yield.
        .consume_fuel(true)
        .operator_cost(OperatorCost {
            variable: VariableOperatorCost { memory_grow_per_page: FUEL_PER_GROWN_PAGE, ..Default::default() },
            ..Default::default()
        })
        .epoch_interruption(false)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(CALL_STACK_BYTES)
        // Wasm reads no byte of its stack that it has not written. Zeroing costs a memset and an madvise a call, and the
        // latter stops every other core: two threads did 1.35 times the calls of one, and do 1.7 times without.
        .async_stack_zeroing(false)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        // A trap never parses the debug information of a stranger, and names functions, not offsets.
        .debug_info(false)
        .generate_address_map(false)
        // For native debuggers. The engine walks frames by their pointers.
        .native_unwind_info(false)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(FRAMES_MAX));
    // Proposals that no shipped toolchain needs, and where most advisories are.
    config
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_threads(false)
        .wasm_relaxed_simd(false)
        .wasm_stack_switching(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .gc_support(false)
        .shared_memory(false)
        .concurrency_support(false);
    config
}

/// Whether the engine may scan for dirty pages, by what `/proc/swaps` says: only where nothing is ever swapped out.
fn pagemap_scan(swaps: Option<&str>) -> Enabled {
    // The first line is a heading, each other one a device.
    match swaps {
        Some(swaps) if swaps.lines().count() <= 1 => Enabled::Auto,
        _ => Enabled::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_pages_are_looked_for_only_where_none_is_swapped_out() {
        const HEADING: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let device = format!("{HEADING}/dev/zram0 partition\t8388604\t0\t100\n");
        for (swaps, scans) in [(None, false), (Some(HEADING), true), (Some(""), true), (Some(device.as_str()), false)] {
            assert_eq!(matches!(pagemap_scan(swaps), Enabled::Auto), scans, "{swaps:?}");
        }
    }
}
