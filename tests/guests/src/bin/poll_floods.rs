//! Waits in strange ways.

use belljar_tool::{tool, toolbox};
use wasip2::{clocks::monotonic_clock, io::poll::poll};

/// Waits for the same pollable, so many times in one list.
#[tool]
fn same(times: usize) -> usize {
    let moment = monotonic_clock::subscribe_duration(0);
    poll(&vec![&moment; times]).len()
}

/// Waits for nothing, which the contract of `poll` forbids.
#[tool]
fn nothing() -> usize {
    poll(&[]).len()
}

/// Waits no time at all, for ever.
#[tool]
fn no_time() {
    loop {
        monotonic_clock::subscribe_duration(0).block();
    }
}

/// Waits for a moment long gone, for ever.
#[tool]
fn the_past() {
    let past = monotonic_clock::subscribe_instant(0);
    loop {
        std::hint::black_box(past.ready());
    }
}

/// Waits until the end of time.
#[tool]
fn end_of_time() {
    monotonic_clock::subscribe_duration(u64::MAX).block();
}

toolbox!(same, nothing, no_time, the_past, end_of_time);
fn main() {}
