//! Describes itself in more words than any model reads.

use belljar_tool::{Answer, Tool, toolbox};

/// A byte more than a description may have.
const BYTES: usize = 4097;
const WORDS: [u8; BYTES] = [b'w'; BYTES];

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run";
    const DESCRIPTION: &'static str = match std::str::from_utf8(&WORDS) {
        Ok(words) => words,
        Err(_) => "",
    };

    fn input_schema() -> String {
        r#"{"type": "object"}"#.into()
    }

    fn output_schema() -> Option<String> {
        None
    }

    fn call(_: &str) -> Answer {
        Answer::text("called")
    }
}

toolbox!(Run);
fn main() {}
