//! Tries every capability while it describes itself, and says in its description what it got.

use belljar_tool::{Answer, Tool, config, context, http, kv, progress, secrets, toolbox};

struct Run;

impl Tool for Run {
    const NAME: &'static str = "run";
    const DESCRIPTION: &'static str = "Is curious too early.";

    fn input_schema() -> String {
        progress::report(1, "describing");
        let call = context::get();
        let got = [
            ("http", http::get("https://example.com/").is_ok()),
            ("key_value", kv::open("").is_ok()),
            ("secrets", secrets::get("token").is_ok()),
            ("config", config::get("unit").is_ok_and(|unit| unit.is_some())),
            ("files", std::fs::write("/scratch/file", "x").is_ok()),
            ("user", call.external_user_id.is_some()),
        ];
        let got: Vec<&str> = got.into_iter().filter(|(_, got)| *got).map(|(door, _)| door).collect();
        format!(r#"{{"type": "object", "description": "got: {}"}}"#, got.join(" "))
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
