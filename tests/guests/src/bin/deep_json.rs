//! Answers with JSON that is nested deeper than any stack.

use belljar_tool::{Answer, tool, toolbox};

/// Lists in lists, closed and all.
#[tool]
fn lists(depth: usize) -> Answer {
    structured("[".repeat(depth) + &"]".repeat(depth))
}

/// Objects in objects, never closed.
#[tool]
fn objects(depth: usize) -> Answer {
    structured(r#"{"a":"#.repeat(depth))
}

fn structured(json: String) -> Answer {
    Answer { structured: Some(json), ..Answer::text("see the structured part") }
}

toolbox!(lists, objects);
fn main() {}
