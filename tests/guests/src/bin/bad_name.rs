//! Lists a function whose name no model could call.

use belljar_tool::{Answer, Tool, toolbox};

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run it__now!";
    const DESCRIPTION: &'static str = "Has a bad name.";

    fn input_schema() -> String {
        r#"{"type": "object", "additionalProperties": false}"#.into()
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
