//! Recurses without end: once on the engine's stack alone, once with a frame in linear memory each time.

use belljar_tool::{tool, toolbox};
use std::hint::black_box;

/// Recurses with everything in locals.
#[tool]
fn run(seed: Option<u64>) -> String {
    deep(seed.unwrap_or(1)).to_string()
}

/// Not a tail call, and no operation that could become a loop.
#[inline(never)]
fn deep(n: u64) -> u64 {
    if n == u64::MAX { n } else { (deep(n + 1).rotate_left(3) ^ n).wrapping_mul(31) }
}

/// Recurses with a KiB of the stack in linear memory each time, which ends in a trap of its own.
#[tool]
fn wide(seed: Option<u64>) -> String {
    wider(seed.unwrap_or(1)).to_string()
}

#[inline(never)]
fn wider(n: u64) -> u64 {
    let frame = black_box([n; 128]);
    if n == u64::MAX { n } else { wider(n + 1) ^ frame[n as usize % 128] }
}

toolbox!(run, wide);
fn main() {}
