//! Answers with more than anybody wants to read.

use belljar_tool::{Answer, tool, toolbox};

/// Answers with 16 MiB of text.
#[tool]
fn run() -> String {
    "x".repeat(16 << 20)
}

/// Answers with 1 MiB of text.
#[tool]
fn one_mib() -> String {
    "x".repeat(1 << 20)
}

/// Answers with a text of the given length.
#[tool]
fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// Answers with a hundred thousand empty parts.
#[tool]
fn many_parts() -> Answer {
    (0..100_000).fold(Answer::default(), |answer, _| answer.and_text(""))
}

/// Answers with structured JSON of about the given length, and little text.
#[tool]
fn structured(bytes: usize) -> Answer {
    Answer { structured: Some(format!("{:?}", "x".repeat(bytes))), ..Answer::text("see the structured part") }
}

/// Answers with structured JSON that is none.
#[tool]
fn not_json() -> Answer {
    Answer { structured: Some("{not json".into()), ..Answer::text("see the structured part") }
}

toolbox!(run, one_mib, text, many_parts, structured, not_json);
fn main() {}
