//! Moves its whole memory in single instructions: the most that a call computes between two looks at its fuel.

use belljar_tool::{tool, toolbox};
use std::hint::black_box;

/// Half of what a call has by default.
const BYTES: usize = 24 << 20;

/// Fills 24 MiB for ever.
#[tool]
fn run() {
    let mut memory = vec![0u8; BYTES];
    for turn in (0u8..=255).cycle() {
        black_box(&mut memory).fill(turn);
    }
}

/// Copies 12 MiB over 12 MiB for ever.
#[tool]
fn copy() {
    let mut memory = vec![1u8; BYTES];
    loop {
        black_box(&mut memory).copy_within(..BYTES / 2, BYTES / 2 - 1);
    }
}

toolbox!(run, copy);
fn main() {}
