//! Describes its arguments by a small schema that takes for ever to check: each level asks for the next one twice.

use belljar_tool::{Answer, Tool, toolbox};

/// Doubles the work each: 2^28 checks.
const LEVELS: usize = 28;

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run";
    const DESCRIPTION: &'static str = "Has an expensive schema.";

    fn input_schema() -> String {
        let level =
            |n| format!(r##""l{n}": {{"allOf": [{{"$ref": "#/$defs/l{0}"}}, {{"$ref": "#/$defs/l{0}"}}]}}"##, n + 1);
        let levels: Vec<String> = (0..LEVELS).map(level).collect();
        format!(
            r##"{{"type": "object", "$ref": "#/$defs/l0", "$defs": {{{}, "l{LEVELS}": {{}}}}}}"##,
            levels.join(", ")
        )
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
