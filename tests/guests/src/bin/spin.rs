//! Computes for ever, without asking the host for anything.

use belljar_tool::{tool, toolbox};
use std::hint::black_box;

/// Never answers.
#[tool]
fn run() {
    let mut turns = 0u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

toolbox!(run);
fn main() {}
