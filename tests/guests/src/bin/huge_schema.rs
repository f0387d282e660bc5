//! Describes its arguments by a schema of a MiB.

use belljar_tool::{Answer, Tool, toolbox};

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run";
    const DESCRIPTION: &'static str = "Has a huge schema.";

    fn input_schema() -> String {
        format!(r#"{{"type": "object", "description": "{}"}}"#, "x".repeat(1 << 20))
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
