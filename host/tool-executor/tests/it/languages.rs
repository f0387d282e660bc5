//! Tools in JavaScript and Python: inspected, called and billed like any other. `cargo xtask guests --all` builds them.

use std::{path::PathBuf, sync::Arc};

use domain::{CallGrants, Limits};
use serde_json::json;
use tool_api::{Finished, Status, ToolCall};

use crate::jar::{Jar, call, guest, guests_dir};

/// Whether a tool is here. Where its language is not installed `cargo xtask guests --all` says so in a file of this name;
/// without tool and file the test fails, so that nothing passes because nobody built it.
fn is_built(name: &str) -> bool {
    let reason: PathBuf = guests_dir().join(format!("{name}.skipped"));
    match std::fs::read_to_string(&reason) {
        Ok(reason) => {
            eprintln!("skipped: {name}: {reason}");
            false
        }
        Err(_) if guests_dir().join(format!("{name}.wasm")).exists() => true,
        Err(_) => panic!("neither {name}.wasm nor {}; run `cargo xtask guests --all`", reason.display()),
    }
}

/// Under the default plan's limits, with a config value.
async fn called(
    jar: &Jar,
    name: &str,
    function: &str,
    arguments: serde_json::Value,
    (key, value): (&str, &str),
) -> Finished {
    let inspection = jar.inspect(guest(name)).await;
    assert_eq!(inspection.contract, "belljar:tool@1.0.0", "{name}");
    assert_eq!(inspection.functions[0].name.as_str(), function, "{name}");
    assert!(inspection.requires["config"].is_object(), "{name}: {}", inspection.requires);
    let grants = CallGrants { config: [(key.into(), value.into())].into(), ..CallGrants::default() };
    let call = ToolCall { grants: Arc::new(grants), ..call(inspection.artifact, function, arguments) };
    let finished = jar.call(call).await;
    let receipt = &finished.receipt;
    assert!(receipt.fuel_used > 0 && receipt.fuel_used < Limits::DEFAULT.fuel, "{name}: {receipt:?}");
    assert!((1..=Limits::DEFAULT.memory_bytes).contains(&receipt.memory_peak_bytes), "{name}: {receipt:?}");
    finished
}

#[tokio::test]
async fn a_tool_in_javascript_is_called_like_any_other() {
    if !is_built("js-slugify") {
        return;
    }
    let jar = Jar::new();
    let slugify =
        async |text: &str| called(&jar, "js-slugify", "slugify", json!({ "text": text }), ("separator", "_")).await;
    let finished = slugify("Crème brûlée, 2 Straßen!").await;
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    assert_eq!(finished.outcome.structured, Some(json!({"slug": "creme_brulee_2_strassen"})));
    let finished = slugify("???").await;
    assert_eq!(finished.outcome.status, Status::ToolError, "{finished:?}");
}

#[tokio::test]
async fn a_tool_in_python_is_called_like_any_other() {
    if !is_built("py-stats") {
        return;
    }
    let jar = Jar::new();
    let finished = called(&jar, "py-stats", "describe", json!({"numbers": [0.1, 0.2, 3]}), ("digits", "3")).await;
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    let figures = json!({
        "count": 3, "sum": "3.3", "mean": "1.1", "median": "0.2", "least": "0.1", "most": "3", "standard_deviation": "1.646",
    });
    assert_eq!(finished.outcome.structured, Some(figures));
}
