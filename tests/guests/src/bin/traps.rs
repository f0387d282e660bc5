//! Traps, without a word on standard error.

use belljar_tool::{tool, toolbox};
use std::hint::black_box;

/// Executes `unreachable`.
#[tool]
fn run() -> String {
    std::arch::wasm32::unreachable()
}

/// Reads past the end of its memory.
#[tool]
fn out_of_bounds() -> String {
    // SAFETY: none; the engine must trap.
    unsafe { black_box(0xffff_fff0 as *const u8).read_volatile() }.to_string()
}

/// Hands the host a text that lies outside its memory.
#[tool]
fn wild_pointer() -> belljar_tool::Answer {
    // SAFETY: none; lowering the answer must trap.
    let text = unsafe { String::from_raw_parts(black_box(0xffff_0000 as *mut u8), 0xffff, 0xffff) };
    belljar_tool::Answer { content: vec![belljar_tool::Content::Text(text)], ..Default::default() }
}

toolbox!(run, out_of_bounds, wild_pointer);
fn main() {}
