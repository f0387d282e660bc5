//! Grows its one memory without end: by the instruction, and as ordinary Rust code does.

use belljar_tool::{tool, toolbox};
use std::arch::wasm32::memory_grow;

/// Pages in one step: 1 MiB.
const STEP_PAGES: usize = 16;

/// Grows until it is refused, then panics.
#[tool]
fn run() {
    while memory_grow(0, STEP_PAGES) != usize::MAX {}
    panic!("the memory does not grow any more");
}

/// Grows by one page at a time until it is refused.
#[tool]
fn small_steps() {
    while memory_grow(0, 1) != usize::MAX {}
    panic!("the memory does not grow any more");
}

/// Grows by nothing for ever.
#[tool]
fn no_steps() {
    while std::hint::black_box(memory_grow(0, 0)) != usize::MAX {}
}

/// Grows by all that there is, at once.
#[tool]
fn one_step() -> bool {
    memory_grow(0, 65_535) == usize::MAX
}

/// Grows until it is refused, and answers with how many bytes it had by then: a refusal alone is survivable.
#[tool]
fn grow_politely() -> usize {
    while memory_grow(0, STEP_PAGES) != usize::MAX {}
    std::arch::wasm32::memory_size(0) * 65536
}

/// Keeps allocating and writing to what it got, until the allocator gives up.
#[tool]
fn allocate() {
    loop {
        std::mem::forget(std::hint::black_box(vec![1u8; 1 << 20]));
    }
}

toolbox!(run, small_steps, no_steps, one_step, grow_politely, allocate);
fn main() {}
