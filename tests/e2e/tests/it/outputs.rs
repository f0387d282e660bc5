//! Answers as JSON by the agent's `output_schema`, and the timeline of a run, over HTTP.

use serde_json::json;

use crate::app::{TestApp, component};

#[tokio::test]
async fn an_agent_with_an_output_schema_answers_json_and_its_run_is_a_timeline() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    let schema = json!({"type": "object", "required": ["total"], "properties": {"total": {"type": "number"}}});
    let agent = json!({"name": "adder", "system_prompt": "Add.", "model": "demo", "output_schema": schema,
        "tools": [{"tool": "calc", "version": "latest"}]});
    let made = ada.post("/v1/agents", agent).await.created();
    assert_eq!(made["output_schema"], schema);

    let asks = json!({"message": "/calc__evaluate {\"expression\": \"1.5 + 2\"}"});
    let turn = ada.post("/v1/agents/adder/chat", asks).await.ok();
    assert_eq!((&turn["run"]["status"], &turn["output"]), (&json!("completed"), &json!({"total": 3.5})), "{turn:#}");
    let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.ok();
    let steps = run["timeline"].as_array().unwrap();
    let sent: Vec<_> = steps.iter().map(|step| &step["sent"]["messages"]).collect();
    assert_eq!(sent, [1, 3], "{run:#}");
    assert!(steps.iter().all(|step| step["sent"]["functions"].as_u64() > Some(0)), "{run:#}");
    let call = &steps[0]["calls"][0];
    assert_eq!((&call["id"], &call["status"]), (&turn["tool_calls"][0]["id"], &json!("ok")), "{run:#}");
    assert!(call["total_us"].as_u64() > Some(0) && call["cost"]["currency"] == "USD", "{call:#}");
    assert_eq!(run["resumes"], json!([]));

    // Taken away, answers are text again.
    ada.patch("/v1/agents/adder", json!({"output_schema": null})).await.ok();
    let turn = ada.post("/v1/agents/adder/chat", json!({"message": "hello"})).await.ok();
    assert_eq!((&turn["run"]["status"], turn.get("output")), (&json!("completed"), None), "{turn:#}");
}
