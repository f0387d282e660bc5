//! Panics.

use belljar_tool::{tool, toolbox};

/// Panics with words that no model should rely on.
#[tool]
fn run() -> String {
    panic!("this guest panics");
}

toolbox!(run);
fn main() {}
