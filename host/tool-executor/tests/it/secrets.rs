//! Secrets that are read by name: who may, and that nobody else reads them.

use std::{collections::BTreeMap, sync::Arc};

use domain::{
    CallGrants, SecretName,
    grants::{Access, OpenNamespace},
};
use serde_json::json;
use tool_api::{CallHost, Finished, OpenSecret, Status, ToolCall, ToolExecutor};

use crate::{
    host::Host,
    jar::{Jar, call},
};

const CANARY: &str = "canary-8c1d5b-of-ada";

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

/// Two secrets: one that may be read, and one that may only be bound.
fn secrets() -> Arc<BTreeMap<SecretName, OpenSecret>> {
    let secret = |readable| OpenSecret { value: CANARY.into(), readable };
    Arc::new([(name("token"), secret(true)), (name("bound"), secret(false)), (name("ungranted"), secret(true))].into())
}

fn granted(call: ToolCall) -> ToolCall {
    let open = OpenNamespace { granted: "notes".into(), namespace: "notes".into(), access: Access::Read };
    let grants = CallGrants {
        secrets: vec![name("token"), name("bound"), name("missing")],
        key_value: vec![open],
        ..CallGrants::default()
    };
    ToolCall { grants: Arc::new(grants), secrets: secrets(), record: true, ..call }
}

#[tokio::test]
async fn a_secret_is_read_only_where_both_say_so() {
    let jar = Jar::new();
    let reader = jar.load("secret_reader").await;
    for denied in ["bound", "ungranted", "missing", "unknown", "", "TOKEN", &"x".repeat(5_000)] {
        let finished = jar.call(granted(call(reader, "length", json!({"name": denied})))).await;
        assert_eq!(finished.outcome.status, Status::Denied, "{denied}");
        assert_eq!(finished.outcome.code.as_deref(), Some("denied.secrets"));
        assert_eq!((finished.receipt.denied, finished.receipt.secrets_used), (vec!["secrets".to_owned()], vec![]));
        let [told] = finished.receipt.host_calls.as_slice() else { panic!() };
        assert_eq!((told.grant.as_deref(), told.error.as_deref()), (None, Some("denied")));
    }
    let finished = jar.call(granted(call(reader, "length", json!({"name": "token"})))).await;
    assert_eq!(finished.outcome.for_model(), CANARY.len().to_string());
    assert_eq!(finished.receipt.secrets_used, [name("token")]);
    let [told] = finished.receipt.host_calls.as_slice() else { panic!() };
    assert_eq!((told.interface.as_str(), told.target.as_deref()), ("belljar:tool/secrets", Some("token")));
    assert_eq!((told.grant.as_deref(), told.bytes_out), (Some("secrets token"), CANARY.len() as u64));
    // A grant without the secret opened, and the secret without a grant.
    for (grants, secrets) in
        [(granted(call(reader, "x", json!({}))).grants, Arc::default()), (Arc::default(), secrets())]
    {
        let asking = ToolCall { grants, secrets, ..call(reader, "length", json!({"name": "token"})) };
        assert_eq!(jar.call(asking).await.outcome.code.as_deref(), Some("denied.secrets"));
    }
}

/// A tool that may read a secret may say it, too; what it says is read by people, models and their providers.
#[tokio::test]
async fn no_secret_leaves_a_call() {
    let jar = Jar::new();
    let reader = jar.load("secret_reader").await;
    for function in ["slip", "slip_and_fail", "slip_and_panic", "slip_progress"] {
        let host = Arc::new(Host::with(&[("notes", CANARY, CANARY)]));
        let slipping = granted(call(reader, function, json!({"name": "token"})));
        let finished: Finished = jar.executor.call(slipping, Arc::clone(&host) as Arc<dyn CallHost>).await.unwrap();
        assert_eq!(finished.receipt.secrets_used, [name("token")], "{function}: {finished:?}");
        assert!(finished.recording.is_some());
        let words = format!("{finished:?} {:?}", host.told());
        assert!(words.contains("[secret]"), "{function}: {words}");
        for part in [CANARY, &CANARY[..8], &CANARY[12..]] {
            assert!(!words.contains(part), "{function}: {words}");
        }
        let bytes = serde_json::to_string(&finished.recording).unwrap();
        assert!(!bytes.contains(CANARY), "{bytes}");
    }
}
