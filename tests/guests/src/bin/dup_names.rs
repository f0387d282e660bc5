//! Lists two functions of one name.

use belljar_tool::{tool, toolbox};

/// The first.
#[tool]
fn run() -> String {
    "first".into()
}

mod second {
    /// The second.
    #[belljar_tool::tool]
    pub fn run() -> String {
        "second".into()
    }
}

toolbox!(run, second::run);
fn main() {}
