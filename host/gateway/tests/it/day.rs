//! A tenant's day: upload, bind, chat, look, pay.

use axum::body::Body;
use http::{Request, header};
use serde_json::{Value, json};

use crate::app::App;

/// The events of a stream: id, type, data.
fn events(text: &str) -> Vec<(String, String, Value)> {
    let field = |event: &str, name: &str| {
        let lines = event.lines().filter_map(|line| line.strip_prefix(name).map(str::trim));
        lines.collect::<Vec<_>>().join("\n")
    };
    text.split("\n\n")
        .filter(|event| event.contains("data:"))
        .map(|event| {
            let data = serde_json::from_str(&field(event, "data:")).unwrap();
            (field(event, "id:"), field(event, "event:"), data)
        })
        .collect()
}

#[tokio::test]
async fn a_chat_calls_a_tool_and_says_what_it_cost() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let agent = ada.clerk().await;
    let message = json!({"message": "/echo__run {\"n\": 1}", "external_user_id": "kim", "metadata": {"a": 1}});
    let turn = ada.post("/v1/agents/clerk/chat", message).await.ok();
    assert_eq!((&turn["run"]["status"], &turn["run"]["stop_reason"]), (&json!("completed"), &json!("done")), "{turn}");
    assert_eq!(turn["message"]["role"], "assistant");
    let call = &turn["tool_calls"][0];
    assert_eq!((&call["outcome"]["status"], &call["arguments"]), (&json!("ok"), &json!({"n": 1})), "{turn}");
    assert_eq!(call["receipt"]["fuel_used"], 1000);

    let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.ok();
    assert_eq!((&run["agent_id"], &run["metadata"]), (&agent["id"], &json!({"a": 1})));
    assert_eq!(run["timeline"].as_array().unwrap().len(), 2, "{run}");
    let shown = ada.get(&format!("/v1/tool-calls/{}", call["id"].as_str().unwrap())).await.ok();
    assert_eq!(shown["receipt"], call["receipt"]);
    let calls = ada.get("/v1/tool-calls?tool=echo&function=run&status=ok&external_user_id=kim").await.ok();
    assert_eq!(calls["data"].as_array().unwrap().len(), 1);

    let conversation = turn["conversation_id"].as_str().unwrap();
    let messages = ada.get(&format!("/v1/conversations/{conversation}/messages")).await.ok();
    let roles: Vec<_> = messages["data"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
    let more = json!({"message": "again", "conversation_id": conversation, "external_user_id": "bob"});
    ada.post("/v1/agents/clerk/chat", more).await.problem(404, "conversation.not_found");

    let usage = ada.get("/v1/usage?group_by=kind,tool").await.ok();
    assert_eq!(usage["total"]["cost"], run["cost"], "{usage}");
    let page = ada.get("/v1/usage/events?limit=1").await.ok();
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    let next = format!("/v1/usage/events?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    assert_ne!(ada.get(&next).await.ok()["data"][0]["id"], page["data"][0]["id"]);
    ada.get(&next.replace("usage/events", "runs")).await.problem(422, "page.bad_cursor");
    let lines =
        ada.send(Request::get("/v1/usage/events").header("accept", "application/x-ndjson"), Body::empty()).await;
    assert!(lines.text.lines().count() > 2 && lines.text.lines().all(|line| line.contains("\"specversion\":\"1.0\"")));
    let book = format!("/v1/price-books/{}", page["data"][0]["price_book"]);
    assert_eq!(ada.get(&book).await.ok()["currency"], "USD");
}

#[tokio::test]
async fn a_stream_ends_in_exactly_one_terminal_event_and_resumes() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let body = json!({"message": "/echo__run {\"n\": 1}", "stream": true});
    let answered = ada.post("/v1/agents/clerk/chat", body).await;
    assert_eq!(answered.headers[header::CONTENT_TYPE], "text/event-stream");
    let all = events(&answered.text);
    let kinds: Vec<&str> = all.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds.first(), Some(&"run.started"));
    assert_eq!(kinds.iter().filter(|kind| ["run.completed", "run.failed", "run.cancelled"].contains(kind)).count(), 1);
    assert_eq!(kinds.last(), Some(&"run.completed"));
    for kind in ["message.delta", "tool_call.started", "tool_call.completed", "step.completed"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    let run = all[0].2["run_id"].as_str().unwrap();
    assert!(all.iter().all(|(_, _, data)| data["run_id"] == run && data["seq"].is_u64()));
    assert_eq!(all.last().unwrap().2["run"]["status"], "completed");
    assert!(all.last().unwrap().2["tool_calls"][0]["receipt"].is_object());

    let path = format!("/v1/runs/{run}/events");
    let text = |events: &[(String, String, Value)]| {
        let deltas = events.iter().filter(|(_, kind, _)| kind == "message.delta");
        deltas.map(|(_, _, data)| data["text"].as_str().unwrap().to_owned()).collect::<String>()
    };
    assert_eq!(text(&events(&ada.get(&path).await.text)), text(&all));
    for (at, (id, _, _)) in all.iter().enumerate() {
        let rest = ada.send(Request::get(&path).header("last-event-id", id), Body::empty()).await;
        assert_eq!(text(&events(&rest.text)), text(&all[at + 1..]), "after {id}");
        assert_eq!(ada.get(&format!("{path}?after={id}")).await.text, rest.text, "after {id}");
    }
    ada.get(&format!("{path}?after=x")).await.problem(422, "request.invalid");
}

#[tokio::test]
async fn a_run_in_the_background_is_accepted_and_cancelled() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let accepted = ada.post("/v1/agents/clerk/chat", json!({"message": "hi", "background": true})).await;
    let turn = accepted.accepted();
    let run = format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap());
    assert_eq!(accepted.headers[header::LOCATION], run.as_str());
    let cancelled = ada.post(&format!("{run}/cancel"), Value::Null).await.ok();
    assert!(["completed", "cancelled"].contains(&cancelled["status"].as_str().unwrap()), "{cancelled}");
    let found = ada.get("/v1/runs?agent=clerk&limit=1").await.ok();
    assert_eq!(found["data"][0]["id"], turn["run"]["id"]);
    ada.get("/v1/runs?status=asleep").await.problem(422, "request.invalid");
}

#[tokio::test]
async fn a_version_is_uploaded_once_and_rejected_with_a_reason() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let version = ada.upload("/v1/tools/echo/versions?label=1.0", "wasm").await.created();
    assert_eq!((&version["status"], &version["label"]), (&json!("ready"), &json!("1.0")));
    assert_eq!(ada.upload("/v1/tools/echo/versions", "wasm").await.ok()["version"], version["version"]);
    let rejected = ada.upload("/v1/tools/echo/versions", "bad").await.problem(422, "tool_version.rejected");
    assert!(rejected["detail"].as_str().unwrap().contains("component.not_wasm"), "{rejected}");
    ada.upload("/v1/tools/echo/versions?wait=0", "wasm 2").await.accepted();
    ada.upload("/v1/tools/echo/versions?wait=soon", "wasm 2").await.problem(422, "request.invalid");
    ada.upload("/v1/tools/Echo/versions", "wasm").await.problem(422, "request.invalid");
    let path = format!("/v1/tools/echo/versions/{}", version["version"].as_str().unwrap());
    assert_eq!(ada.get(&format!("{path}/wasm")).await.text, "wasm");

    let answered = ada.post(&format!("{path}/calls"), json!({"function": "run", "arguments": {"n": 2}})).await.ok();
    assert_eq!((&answered["outcome"]["status"], &answered["outcome"]["structured"]), (&json!("ok"), &json!({"n": 2})));
    ada.post(&format!("{path}/calls"), json!({"function": "gone"})).await.problem(422, "tool_call.function_not_found");
    ada.post(&format!("{path}/calls"), json!({"function": "run", "record": true}))
        .await
        .problem(422, "request.unavailable");
    ada.delete(&path).await.done();
    ada.get(&path).await.problem(404, "tool_version.not_found");
}

#[tokio::test]
async fn an_agent_has_revisions() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let agent = ada.clerk().await;
    let changed = ada.patch("/v1/agents/clerk", json!({"system_prompt": "sing"})).await.ok();
    assert_eq!((&changed["revision"], &changed["id"]), (&json!(2), &agent["id"]));
    let revisions = ada.get("/v1/agents/clerk/revisions?limit=1").await.ok();
    let next = format!("/v1/agents/clerk/revisions?limit=1&cursor={}", revisions["next_cursor"].as_str().unwrap());
    assert_eq!(
        (&revisions["data"][0]["revision"], &ada.get(&next).await.ok()["data"][0]["revision"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(ada.get("/v1/agents/clerk/revisions/1").await.ok()["system_prompt"], "help");
    ada.get("/v1/agents/clerk/revisions/7").await.problem(404, "revision.not_found");
    ada.get("/v1/agents/clerk/revisions/x").await.problem(404, "revision.not_found");
    let back = ada.post("/v1/agents/clerk/revisions/1/activate", json!({})).await.ok();
    assert_eq!(back["system_prompt"], "help");
    ada.delete("/v1/tools/echo").await.problem(409, "tool.in_use");
    ada.delete("/v1/agents/clerk").await.done();
    ada.get("/v1/agents/clerk").await.problem(404, "agent.not_found");
    ada.post(
        "/v1/agents",
        json!({"name": "x", "model": "demo", "tools": [{"tool": "gone", "version": "latest"}], "system_prompt": ""}),
    )
    .await
    .problem(422, "binding.version_not_found");
}

#[tokio::test]
async fn a_history_is_imported_and_a_conversation_erased() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let body = json!({"agent": "clerk", "title": "old", "messages": [said("user", "hi"), said("assistant", "hello")]});
    let conversation = ada.post("/v1/conversations", body).await.created();
    let path = format!("/v1/conversations/{}", conversation["id"].as_str().unwrap());
    assert_eq!(ada.get(&format!("{path}/messages")).await.ok()["data"][1]["content"], "hello");
    assert_eq!(ada.patch(&path, json!({"title": null})).await.ok()["title"], Value::Null);
    let wrong = json!({"agent": "clerk", "messages": [said("system", "x"), said("user", "")]});
    let problem = ada.post("/v1/conversations", wrong).await.problem(422, "request.invalid");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 2, "{problem}");
    assert_eq!(ada.get("/v1/conversations?agent=clerk").await.ok()["data"].as_array().unwrap().len(), 1);
    ada.delete(&path).await.done();
    ada.get(&path).await.problem(404, "conversation.not_found");
}

#[tokio::test]
async fn a_provider_key_goes_in_and_never_comes_out() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let key = json!({"kind": "openai_compatible", "api_key": "sk-canary", "base_url": "https://models.example/v1"});
    let stored = ada.put("/v1/provider-keys/acme", key.clone()).await;
    stored.created();
    assert!(!stored.text.contains("canary"));
    ada.put("/v1/provider-keys/acme", key.clone()).await.ok();
    let listed = ada.get("/v1/provider-keys").await;
    assert_eq!(listed.ok()["data"][0]["name"], "acme");
    assert!(!listed.text.contains("canary"));
    let ids: Vec<_> =
        ada.get("/v1/models").await.ok()["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["demo", "acme/*"]);
    for address in ["http://127.0.0.1/v1", "https://169.254.169.254/v1", "https://[::1]/v1", "https://10.0.0.1/v1"] {
        let mut private = key.clone();
        private["base_url"] = address.into();
        assert_eq!(ada.put("/v1/provider-keys/acme", private).await.status, 422, "{address}");
    }
    ada.delete("/v1/provider-keys/acme").await.done();
    ada.delete("/v1/provider-keys/acme").await.problem(404, "provider_key.not_found");
}
