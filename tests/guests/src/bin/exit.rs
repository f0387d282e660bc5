//! Ends its process, which a component has not.

use belljar_tool::{tool, toolbox};

/// Exits with the given code, 0 if none is.
#[tool]
fn run(code: Option<i32>) -> String {
    std::process::exit(code.unwrap_or(0))
}

/// Exits with code 1.
#[tool]
fn failure() -> String {
    std::process::exit(1)
}

toolbox!(run, failure);
fn main() {}
