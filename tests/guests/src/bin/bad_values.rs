//! Hands the host values that are none: as its answer, and in calls of the host.

use belljar_tool::{Answer, Content, config, log, tool, toolbox};
use std::hint::black_box;

/// Answers with bytes that are not UTF-8.
#[tool]
fn not_utf8() -> Answer {
    text(not_a_string())
}

/// Logs bytes that are not UTF-8.
#[tool]
fn log_not_utf8() {
    log::log(log::Level::Info, "", &not_a_string());
}

/// Logs a text that lies outside of its memory.
#[tool]
fn log_outside() {
    log::log(log::Level::Info, "", outside(0xffff));
}

/// Asks for a config value by all of its 4 GiB of addresses.
#[tool]
fn key_of_everything() -> bool {
    config::get(outside(usize::MAX >> 1)).is_ok()
}

/// Answers with as many parts as there are addresses.
#[tool]
fn parts_of_everything() -> Answer {
    // SAFETY: none; lowering the answer must trap.
    let content = unsafe { Vec::from_raw_parts(black_box(16 as *mut Content), 0x0fff_ffff, 0x0fff_ffff) };
    Answer { content, ..Answer::default() }
}

/// Answers with an image of no kind of image.
#[tool]
fn not_an_image() -> Answer {
    Answer::default().and_image("text/html", *b"<script>alert(1)</script>")
}

fn text(text: String) -> Answer {
    Answer { content: vec![Content::Text(text)], ..Answer::default() }
}

fn not_a_string() -> String {
    // SAFETY: none; the host must refuse it.
    unsafe { String::from_utf8_unchecked(black_box(vec![0xff, 0xfe, 0xc0])) }
}

fn outside(bytes: usize) -> &'static str {
    // SAFETY: none; nothing here reads it, and the engine must not either.
    unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(black_box(0xffff_0000 as *const u8), bytes)) }
}

toolbox!(not_utf8, log_not_utf8, log_outside, key_of_everything, parts_of_everything, not_an_image);
fn main() {}
