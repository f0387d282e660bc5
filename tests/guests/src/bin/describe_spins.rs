//! Never finishes describing itself.

use belljar_tool::{Answer, Tool, toolbox};

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run";
    const DESCRIPTION: &'static str = "Cannot say what it does.";

    fn input_schema() -> String {
        let mut turns = 0u64;
        loop {
            turns = std::hint::black_box(turns.wrapping_add(1));
        }
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
