//! Leaves a pattern all over its memory, and looks for what another call left.

use belljar_tool::{tool, toolbox};
use std::arch::wasm32::{memory_grow, memory_size};

const PAGE_BYTES: usize = 65536;
/// The smallest unit that a host might forget to clean.
const STRIDE_BYTES: usize = 4096;
/// 16 MiB.
const PAGES: usize = 256;

/// Never a constant in the component itself, so that finding it means finding a residue.
fn pattern() -> u64 {
    std::hint::black_box(0x6a6a_7262_6c6c_6562u64).rotate_left(17) ^ 0x5a5a_5a5a_5a5a_5a5a
}

/// Writes the pattern into new memory, 16 MiB unless told otherwise, once every so many units of 4 KiB: into each, or
/// scattered.
#[tool]
fn run(pages: Option<usize>, every: Option<usize>) -> Result<usize, String> {
    let new = grow(pages)?.step_by(STRIDE_BYTES * every.unwrap_or(1).max(1));
    for address in new.clone() {
        // SAFETY: the range was just added to the memory and belongs to nobody.
        unsafe { (address as *mut u64).write_volatile(pattern()) };
    }
    Ok(new.len())
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Residue {
    /// Words of fresh memory that carry the pattern.
    pattern_words: usize,
    /// Words of fresh memory that are not zero.
    dirty_words: usize,
    /// Words of the whole memory that carry the pattern.
    pattern_words_anywhere: usize,
}

/// Looks through fresh memory, 16 MiB unless told otherwise, and through all of the old.
#[tool]
fn residue(pages: Option<usize>) -> Result<Residue, String> {
    let fresh = words(grow(pages)?);
    let all = words(8..memory_size(0) * PAGE_BYTES);
    Ok(Residue {
        dirty_words: fresh.clone().filter(|word| *word != 0).count(),
        pattern_words: fresh.filter(|word| *word == pattern()).count(),
        pattern_words_anywhere: all.filter(|word| *word == pattern()).count(),
    })
}

fn grow(pages: Option<usize>) -> Result<std::ops::Range<usize>, String> {
    let pages = pages.unwrap_or(PAGES);
    match memory_grow(0, pages) {
        usize::MAX => Err(format!("{pages} pages were refused")),
        old => Ok(old * PAGE_BYTES..(old + pages) * PAGE_BYTES),
    }
}

fn words(range: std::ops::Range<usize>) -> impl Iterator<Item = u64> + Clone {
    // SAFETY: the range lies within the memory, and every bit pattern is a number.
    range.step_by(8).map(|address| unsafe { (address as *const u64).read_volatile() })
}

toolbox!(run, residue);
fn main() {}
