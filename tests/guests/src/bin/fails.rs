//! Fails as a well-behaved tool does: with words for the model.

use belljar_tool::{tool, toolbox};

/// Always fails.
#[tool]
fn run() -> Result<String, String> {
    Err("the oven is cold; preheat it first".into())
}

/// Works with the right word only.
#[tool]
fn knock(word: String) -> Result<String, String> {
    if word == "please" { Ok("come in".into()) } else { Err("say `please`".into()) }
}

toolbox!(run, knock);
fn main() {}
