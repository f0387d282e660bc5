//! Tools of every day work: a component of each published contract, as it was built then, is linked and called whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use domain::{
    CallGrants, SecretName,
    grants::{Access, OpenNamespace},
};
use serde_json::{Value, json};
use tool_api::{ArtifactHash, Finished, OpenSecret, Status, ToolCall};

use crate::jar::{Jar, call};

/// Functions of the components: each uses one part of the contract.
const SINCE_0_1: [&str; 8] = ["configured", "fails", "logs", "parts", "secret", "stored", "text", "who"];
const SINCE_1_0: [&str; 3] = ["reports", "scratched", "sent"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Each component, by the version in its name.
fn corpus() -> BTreeMap<String, PathBuf> {
    let files = std::fs::read_dir(repository().join("tests/guests/contracts")).unwrap();
    let files =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|kind| kind == "wasm"));
    let version = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("belljar-tool-").map(str::to_owned);
    files.map(|path| (version(&path).unwrap(), path)).collect()
}

#[test]
fn each_published_version_has_a_component() {
    let wit = repository().join("wit");
    let folders = std::fs::read_dir(wit.join("deps")).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.map(|folder| folder.join("tool.wit")).filter(|file| file.exists());
    let published: BTreeSet<String> = std::iter::once(wit.join("tool.wit"))
        .chain(files)
        .map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            let package = text.lines().find_map(|line| line.strip_prefix("package belljar:tool@")).unwrap();
            package.trim_end_matches(';').to_owned()
        })
        .collect();
    assert_eq!(published, corpus().into_keys().collect(), "left: in `wit`; right: in `tests/guests/contracts`");
}

/// Calls with everything that can be granted to a tool of a test.
struct Tool {
    jar: Jar,
    artifact: ArtifactHash,
}

impl Tool {
    async fn finished(&self, function: &str, arguments: Value) -> Finished {
        let name: SecretName = "token".parse().unwrap();
        let namespace = OpenNamespace { granted: "kept".into(), namespace: "kept".into(), access: Access::Write };
        let grants = CallGrants {
            key_value: vec![namespace],
            secrets: vec![name.clone()],
            config: [("unit".into(), "metre".into())].into(),
            scratch_bytes: Some(1 << 20),
            ..CallGrants::default()
        };
        let secret = OpenSecret { value: "open-sesame".to_owned().into(), readable: true };
        let call = ToolCall {
            grants: Arc::new(grants),
            secrets: Arc::new([(name, secret)].into()),
            ..call(self.artifact, function, arguments)
        };
        self.jar.call(call).await
    }

    /// What is answered, in JSON where it is structured.
    async fn answer(&self, function: &str, arguments: Value) -> Value {
        let outcome = self.finished(function, arguments).await.outcome;
        assert_eq!(outcome.status, Status::Ok, "{function}: {outcome:?}");
        let text = outcome.for_model();
        outcome.structured.unwrap_or_else(|| text.into())
    }
}

#[tokio::test]
async fn a_tool_of_each_contract_is_linked_and_called() {
    for (version, path) in corpus() {
        let jar = Jar::new();
        let component: bytes::Bytes = std::fs::read(path).unwrap().into();
        let inspection = jar.inspect(component).await;
        assert_eq!(inspection.contract, format!("belljar:tool@{version}"));
        let functions: BTreeSet<&str> = inspection.functions.iter().map(|function| function.name.as_str()).collect();
        let new = version != "0.1.0";
        let expected = SINCE_0_1.into_iter().chain(SINCE_1_0.into_iter().filter(|_| new)).collect();
        assert_eq!(functions, expected, "{version}");
        assert!(inspection.requires["config"].is_object(), "{version}: {}", inspection.requires);

        let tool = Tool { jar, artifact: inspection.artifact };
        of_the_first_contract(&tool).await;
        if new {
            of_the_second_contract(&tool).await;
        } else {
            let stored = json!({"value": "value", "there": true, "keys": ["key"], "after": false});
            assert_eq!(tool.answer("stored", json!({"namespace": "kept"})).await, stored);
        }
        let receipt = tool.finished("text", json!({"text": "x"})).await.receipt;
        assert_eq!(receipt.contract, format!("belljar:tool@{version}"));
    }
}

async fn of_the_first_contract(tool: &Tool) {
    assert_eq!(tool.answer("text", json!({"text": "héllo"})).await, "héllo");
    let parts = tool.finished("parts", json!({})).await.outcome;
    let shown = serde_json::to_value(&parts.content).unwrap();
    assert_eq!((&shown[0]["text"], &shown[2]["text"]), (&json!("first"), &json!("last")));
    assert_eq!((&shown[1]["media_type"], &shown[1]["data"]), (&json!("image/gif"), &json!("R0lGODlh")));
    assert_eq!(parts.structured, Some(json!({"parts": 3})));

    let failed = tool.finished("fails", json!({})).await.outcome;
    assert_eq!((failed.status, failed.for_model().as_str()), (Status::ToolError, "as it was told to"));

    let who = tool.answer("who", json!({})).await;
    assert_eq!((&who["attempt"], &who["idempotency_key"]), (&json!(1), &json!("key")));
    assert_eq!(who["agent"], Value::Null);

    let logs = tool.finished("logs", json!({})).await.receipt.logs;
    let levels: Vec<&str> = logs.iter().map(|line| line.level.as_str()).collect();
    assert_eq!(levels, ["trace", "debug", "info", "warn", "error", "critical"]);

    assert_eq!(tool.answer("configured", json!({"key": "unit"})).await, json!({"value": "metre", "values": 1}));
    // Read by the tool, and taken out of what it answers.
    let read = tool.finished("secret", json!({"name": "token"})).await;
    assert_eq!((read.outcome.status, read.outcome.for_model().as_str()), (Status::Ok, "[secret]"));
    assert_eq!(read.receipt.secrets_used, ["token".parse().unwrap()]);
    let denied = tool.finished("secret", json!({"name": "other"})).await;
    assert_eq!(denied.outcome.code.as_deref(), Some("denied.secrets"), "{denied:?}");
    let denied = tool.finished("stored", json!({"namespace": "other"})).await;
    assert_eq!(denied.outcome.code.as_deref(), Some("denied.key_value"), "{denied:?}");
}

async fn of_the_second_contract(tool: &Tool) {
    let stored = tool.finished("stored", json!({"namespace": "kept"})).await;
    let told = stored.outcome.structured.clone().unwrap();
    assert_eq!(told["several"], json!([true, false]), "{stored:?}");
    assert_eq!((&told["count"], &told["keys"]), (&json!(2), &json!(["count", "key"])));
    assert_eq!((&told["value"], &told["after"]), (&json!("value"), &json!(false)));
    assert!(stored.changes.iter().any(|change| change.key == "count"), "{stored:?}");
    assert_eq!(tool.answer("reports", json!({})).await, "done");
    assert_eq!(tool.answer("scratched", json!({})).await, "kept for a while");
    let denied = tool.finished("sent", json!({"url": "https://example.com/"})).await;
    assert_eq!(denied.outcome.code.as_deref(), Some("denied.http"), "{denied:?}");
}
