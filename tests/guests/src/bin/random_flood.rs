//! Asks for random bytes without end, in the largest pieces that are given and in none.

use belljar_tool::{tool, toolbox};
use std::hint::black_box;
use wasip2::random::{insecure, insecure_seed, random};

/// Largest piece that a host gives.
const PIECE_BYTES: u64 = 64 << 10;

/// Pieces of 64 KiB for ever.
#[tool]
fn run() {
    loop {
        black_box(random::get_random_bytes(PIECE_BYTES));
    }
}

/// The same, of the insecure kind.
#[tool]
fn insecure_pieces() {
    loop {
        black_box(insecure::get_insecure_random_bytes(PIECE_BYTES));
    }
}

/// No bytes at all, for ever.
#[tool]
fn nothing() {
    loop {
        black_box((random::get_random_bytes(0), insecure_seed::insecure_seed()));
    }
}

toolbox!(run, insecure_pieces, nothing);
fn main() {}
