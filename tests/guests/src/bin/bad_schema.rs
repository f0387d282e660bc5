//! Describes its arguments by what is no JSON Schema.

use belljar_tool::{Answer, Tool, toolbox};

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run";
    const DESCRIPTION: &'static str = "Has a bad schema.";

    fn input_schema() -> String {
        r#"{"type": "object", "properties": {"number": {"type": "numberish", "minimum": "low"}}}"#.into()
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
