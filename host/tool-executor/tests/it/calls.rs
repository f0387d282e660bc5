//! What an honest call sees, what it is denied, and that nothing of it stays.

use std::{sync::Arc, time::Duration};

use domain::{CallGrants, ConversationId, Limits};
use serde_json::{Value, json};
use tool_api::{CallContext, CallError, Status, ToolCall};
use uuid::Uuid;

use crate::jar::{Jar, call, guest, settings, unix_now_ms};

#[tokio::test]
async fn a_call_sees_its_context_its_config_and_leaves_its_log() {
    let jar = Jar::new();
    let echo = jar.load("echo").await;
    let conversation = ConversationId::from(Uuid::from_u128(9));
    let finished = jar
        .call(ToolCall {
            grants: Arc::new(CallGrants { config: [("unit".into(), "km".into())].into(), ..CallGrants::default() }),
            context: CallContext {
                idempotency_key: "idem-1".into(),
                attempt: 2,
                agent: Some("clerk".into()),
                conversation: Some(conversation),
                external_user_id: Some("ada".into()),
                entries: Arc::new([("locale".into(), "de".into())].into()),
            },
            ..call(echo, "run", json!({"a": [1, "two"]}))
        })
        .await;
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    let told: Value = finished.outcome.structured.clone().unwrap();
    assert_eq!(told["arguments"], json!({"a": [1, "two"]}));
    assert_eq!(told["config"], json!({"unit": "km"}));
    let seen = &told["call"];
    assert_eq!(seen["call_id"], json!(call(echo, "run", json!({})).id.to_string()));
    assert_eq!(seen["idempotency_key"], "idem-1");
    assert_eq!(seen["attempt"], 2);
    assert_eq!(seen["agent"], "clerk");
    assert_eq!(seen["conversation"], json!(conversation.to_string()));
    assert_eq!(seen["external_user_id"], "ada");
    assert_eq!(seen["context"], json!({"locale": "de"}));
    let left_ms = seen["deadline_unix_ms"].as_u64().unwrap().saturating_sub(unix_now_ms());
    assert!((1_000..=60_000).contains(&left_ms), "{left_ms} ms left");

    let receipt = finished.receipt;
    let lines: Vec<_> = receipt.logs.iter().map(|line| (line.level.as_str(), line.text.as_str())).collect();
    for line in [("trace", "trace line"), ("critical", "critical line"), ("stdout", "a line on standard output")] {
        assert!(lines.iter().any(|(level, text)| *level == line.0 && text.ends_with(line.1)), "{line:?} in {lines:?}");
    }
    assert_eq!((receipt.attempt, receipt.idempotency_key.as_str()), (2, "idem-1"));
    assert_eq!((receipt.artifact, receipt.contract.as_str()), (echo, "belljar:tool@1.0.0"));
    assert!(receipt.fuel_used > 0 && receipt.memory_peak_bytes > 0 && receipt.host_call_count >= 8, "{receipt:?}");
    assert!(receipt.instantiate_us <= receipt.total_us && !receipt.logs_truncated && receipt.denied.is_empty());
}

#[tokio::test]
async fn a_tool_that_fails_is_heard() {
    let jar = Jar::new();
    let fails = jar.load("fails").await;
    let outcome = jar.outcome(fails, "run", json!({})).await;
    assert_eq!((outcome.status, outcome.code.as_deref()), (Status::ToolError, None));
    assert_eq!(outcome.for_model(), "the oven is cold; preheat it first");
    assert_eq!(jar.outcome(fails, "knock", json!({"word": "please"})).await.for_model(), "come in");
}

#[tokio::test]
async fn every_door_is_closed() {
    let jar = Jar::new();
    let curious = jar.load("read_ungranted").await;
    let finished = jar.call(call(curious, "run", json!({}))).await;
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    let doors = finished.outcome.structured.clone().unwrap();
    let doors = doors.get("result").unwrap_or(&doors).as_object().unwrap();
    assert_eq!(doors.len(), 18, "{doors:?}");
    for (door, report) in doors {
        assert_eq!(report["allowed"], false, "{door}: {report}");
    }
    assert_eq!(finished.receipt.denied.len(), 4, "{:?}", finished.receipt.denied);
    for grant in ["http", "key_value", "secrets", "network"] {
        assert!(finished.receipt.denied.iter().any(|denied| denied == grant), "{grant}: {:?}", finished.receipt.denied);
    }
    assert!(doors["http_metadata"]["answer"].as_str().unwrap().starts_with("ErrorCode::Http"), "{doors:?}");
    assert!(doors["secret"]["answer"].as_str().unwrap().to_lowercase().contains("denied"), "{doors:?}");
    assert!(doors["key_value"]["answer"].as_str().unwrap().contains("AccessDenied"), "{doors:?}");
}

#[tokio::test]
async fn dropping_a_call_frees_its_place() {
    let jar = Jar::new();
    let (calc, spin) = (jar.load("calc").await, jar.load("spin").await);
    let limits = Limits { fuel: Limits::CEILING.fuel, deadline_ms: 60_000, ..Limits::DEFAULT };
    for _ in 0..20 {
        let spinning: Vec<_> =
            (0..4).map(|_| jar.try_call(ToolCall { limits, ..call(spin, "run", json!({})) })).collect();
        let all = futures::future::join_all(spinning);
        assert!(tokio::time::timeout(Duration::from_millis(5), all).await.is_err(), "it spins");
        jar.answers(calc).await.unwrap();
    }
}

#[tokio::test]
async fn too_many_calls_are_told_to_come_back() {
    let jar = Jar::new();
    let (calc, spin) = (jar.load("calc").await, jar.load("sleep_long").await);
    let limits = Limits { deadline_ms: 60_000, ..Limits::DEFAULT };
    let sleeping = (0..4).map(|_| jar.try_call(ToolCall { limits, ..call(spin, "run", json!({})) }));
    let sleeping = futures::future::join_all(sleeping);
    tokio::select! {
        _ = sleeping => unreachable!(),
        answer = async {
            tokio::task::yield_now().await;
            jar.answers(calc).await
        } => assert!(matches!(answer, Err(CallError::Busy)), "{answer:?}"),
    }
    jar.answers(calc).await.unwrap();
}

#[tokio::test]
async fn a_call_never_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let jar = Jar::at(dir.path().into());
    let calc = tool_api::ArtifactHash::of(&guest("calc"));
    assert!(matches!(jar.answers(calc).await, Err(CallError::NotCompiled(hash)) if hash == calc));
    jar.load("calc").await;
    jar.answers(calc).await.unwrap();
    // Another process of the same host finds the code on disk.
    let compile_nothing = vec!["/nonexistent".into()];
    let settings = tool_executor::Settings { compile_command: compile_nothing, ..settings(dir.path().into()) };
    let other = Jar { executor: tool_executor::Executor::start(settings).unwrap() };
    other.answers(calc).await.unwrap();
}
