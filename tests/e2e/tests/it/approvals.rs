//! Calls that wait for a person's word, over HTTP.

use serde_json::{Value, json};

use crate::app::{Client, TestApp, component};

/// An agent `clerk` whose calls of `calc` wait.
async fn clerk(client: &Client) {
    client.upload("calc", component("echo")).await.created();
    let tools = json!([{"tool": "calc", "version": "latest", "approval": "always", "approval_expires_seconds": 600}]);
    let agent = json!({"name": "clerk", "system_prompt": "You help.", "model": "demo", "tools": tools});
    let agent = client.post("/v1/agents", agent).await.created();
    assert_eq!(agent["tools"][0]["approval"], "always");
    assert_eq!(agent["tools"][0]["approval_expires_seconds"], 600);
}

/// A turn that waits: the run, and where the decision about its call goes.
async fn asked(client: &Client) -> (Value, String) {
    let answer = client.post("/v1/agents/clerk/chat", json!({"message": "/calc__run {\"x\": \"words\"}"})).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let turn: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(turn["run"]["status"], "waiting_for_approval", "{turn}");
    let pending = &turn["run"]["pending_approvals"][0];
    assert_eq!((&pending["tool"], &pending["arguments"]), (&json!("calc"), &json!({"x": "words"})));
    let run = turn["run"].clone();
    let path =
        format!("/v1/runs/{}/tool-calls/{}/decision", run["id"].as_str().unwrap(), pending["id"].as_str().unwrap());
    (run, path)
}

/// The run, once it has ended.
async fn ended(client: &Client, run: &Value) -> Value {
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    // The stream ends with the run.
    let events = client.get(&format!("{path}/events")).await;
    assert!(events.text.contains("event: approval.requested"), "{}", events.text);
    assert!(events.text.contains("event: approval.decided"), "{}", events.text);
    client.get(&path).await.ok()
}

#[tokio::test]
async fn only_a_key_that_may_decide_decides() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.tenant("ada").await, app.tenant("bob").await);
    clerk(&ada).await;
    let (run, path) = asked(&ada).await;
    bob.post(&path, json!({"decision": "approve"})).await.problem(404, "run.not_found");
    let chats = ada.post("/v1/api-keys", json!({"name": "chats", "scopes": ["chat", "runs:read"]})).await.created();
    let chats = app.client(chats["key"].as_str().unwrap());
    chats.post(&path, json!({"decision": "approve"})).await.problem(403, "api_key.missing_scope");
    for (body, code) in [
        (json!({"decision": "perhaps"}), "request.invalid"),
        (json!({"decision": "approve", "arguments": ["x"]}), "approval.invalid"),
        (json!({"decision": "deny", "arguments": {"x": "y"}}), "approval.invalid"),
        (json!({"decision": "deny", "decided_by": "x".repeat(257)}), "approval.invalid"),
    ] {
        ada.post(&path, body).await.problem(422, code);
    }
    assert_eq!(ada.get(&format!("/v1/runs/{}", run["id"].as_str().unwrap())).await.ok()["cost"]["amount"], "0");
    app.stop().await;
}

#[tokio::test]
async fn an_approved_call_is_made_and_the_receipt_says_by_whom() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    clerk(&ada).await;
    let (run, path) = asked(&ada).await;
    let decision = json!({"decision": "approve", "arguments": {"x": "other"}, "decided_by": "grace@example.com"});
    ada.post(&path, decision.clone()).await.ok();
    ada.post(&path, decision).await.ok();
    ada.post(&path, json!({"decision": "deny"})).await.problem(409, "approval.decided");
    let ended = ended(&ada, &run).await;
    assert_eq!((&ended["status"], &ended["pending_approvals"]), (&json!("completed"), &json!([])), "{ended}");
    let calls = ada.get(&format!("/v1/tool-calls?run={}", run["id"].as_str().unwrap())).await.ok();
    let call = &calls["data"][0];
    assert_eq!((&call["arguments"], &call["outcome"]["status"]), (&json!({"x": "other"}), &json!("ok")), "{call}");
    let approval = &call["receipt"]["approval"];
    assert_eq!(approval["decided_by"], "grace@example.com", "{call}");
    assert!(approval["api_key_id"].as_str().unwrap().starts_with("key_"), "{call}");
    app.stop().await;
}

#[tokio::test]
async fn a_denied_call_is_told_to_the_model() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    clerk(&ada).await;
    let (run, path) = asked(&ada).await;
    ada.post(&path, json!({"decision": "deny", "reason": "not today"})).await.ok();
    let ended = ended(&ada, &run).await;
    assert_eq!(ended["status"], "completed", "{ended}");
    let calls = ada.get(&format!("/v1/tool-calls?run={}", run["id"].as_str().unwrap())).await.ok();
    let call = &calls["data"][0];
    assert_eq!((&call["outcome"]["code"], &call["receipt"]), (&json!("approval.denied"), &Value::Null), "{call}");
    assert_eq!(call["approval"]["reason"], "not today");
    let path = format!("/v1/conversations/{}/messages", run["conversation_id"].as_str().unwrap());
    assert!(ada.get(&path).await.text.contains("not today"));
    app.stop().await;
}
