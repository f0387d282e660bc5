//! Asks for grants in what is no JSON, and asks for far too much.

use belljar_tool::{tool, toolbox};

/// Answers.
#[tool]
fn run() -> String {
    "called".into()
}

toolbox!(@ Some(r#"{"http": [{"host": "*"#); run);
fn main() {}
