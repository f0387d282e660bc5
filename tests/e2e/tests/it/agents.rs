//! Agents and their revisions.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::app::{Client, TestApp, component};

fn spec(name: &str) -> Value {
    json!({"name": name, "system_prompt": "You help.", "model": "demo"})
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    spec[field] = value;
    spec
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The ids of a list, page by page.
async fn walk(client: &Client, list: &str, limit: usize) -> Vec<Value> {
    let mut found = Vec::new();
    let mut path = format!("{list}?limit={limit}");
    loop {
        let page = client.get(&path).await.ok();
        let rows = page["data"].as_array().unwrap();
        assert!(rows.len() <= limit);
        found.extend(rows.iter().cloned());
        let Some(cursor) = page["next_cursor"].as_str() else { return found };
        assert_eq!(rows.len(), limit, "only the last page is short");
        path = format!("{list}?limit={limit}&cursor={cursor}");
    }
}

#[tokio::test]
async fn an_agent_that_cannot_be_is_refused_with_the_place() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    let missing = format!("sha256:{}", "0".repeat(64));
    let bound = |binding: Value| with(spec("new"), "tools", json!([binding]));
    for (body, code, pointers) in [
        (json!([]), "request.invalid", vec![""]),
        (json!({"name": "new", "model": "demo"}), "agent.invalid", vec![""]),
        (with(spec("new"), "colour", json!("red")), "agent.invalid", vec!["/colour"]),
        (spec("New Agent"), "agent.invalid", vec!["/name"]),
        (with(spec("new"), "model", json!({"provider": "openai"})), "agent.invalid", vec!["/model"]),
        (with(spec("new"), "temperature", json!(7)), "agent.invalid", vec!["/temperature"]),
        (
            with(spec("new"), "limits", json!({"max_steps": 65, "deadline_seconds": 0})),
            "agent.invalid",
            vec!["/limits/max_steps", "/limits/deadline_seconds"],
        ),
        (with(spec("new"), "output_schema", json!({})), "agent.invalid", vec!["/output_schema"]),
        (with(spec("new"), "context", json!({"strategy": "forget"})), "agent.invalid", vec!["/context/strategy"]),
        (bound(json!({"tool": "nothing", "version": "latest"})), "binding.version_not_found", vec!["/tools/0"]),
        (bound(json!({"tool": "calc", "version": missing})), "binding.version_not_found", vec!["/tools/0"]),
        (bound(json!({"tool": "calc", "version": "newest"})), "agent.invalid", vec!["/tools/0/version"]),
        (bound(json!({"tool": "calc", "version": "latest", "colour": 1})), "agent.invalid", vec!["/tools/0/colour"]),
        (
            bound(json!({"tool": "calc", "version": "latest", "functions": ["evaluate", "guess"]})),
            "binding.function_not_found",
            vec!["/tools/0/functions/1"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "limits": {"fuel": 1_000_000_000_000_u64}})),
            "binding.limit_above_plan",
            vec!["/tools/0/limits/fuel"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "limits": {"memory_bytes": 0}})),
            "binding.limit_above_plan",
            vec!["/tools/0/limits/memory_bytes"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "grants": {"http": [{"host": "https://a.example"}]}})),
            "agent.invalid",
            vec!["/tools/0/grants/http/0/host"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "grants": {"scratch_bytes": 0}})),
            "binding.grant_invalid",
            vec!["/tools/0/grants/scratch_bytes"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "grants": {"secrets": ["absent"]}})),
            "secret.not_found",
            vec!["/tools/0/grants"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "grants": {"config": {"": "x"}}})),
            "binding.grant_invalid",
            vec!["/tools/0/grants/config"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "approval": {"functions": {"fly": "always"}}})),
            "binding.approval_invalid",
            vec!["/tools/0/approval/functions/fly"],
        ),
        (
            bound(json!({"tool": "calc", "version": "latest", "approval": "always", "approval_expires_seconds": 0})),
            "binding.approval_invalid",
            vec!["/tools/0/approval_expires_seconds"],
        ),
        (
            with(
                spec("new"),
                "tools",
                json!([{"tool": "calc", "version": "latest"}, {"tool": "calc", "version": "latest"}]),
            ),
            "binding.duplicate_tool",
            vec!["/tools/1"],
        ),
    ] {
        let problem = ada.post("/v1/agents", body.clone()).await.problem(422, code);
        let errors = problem["errors"].as_array().unwrap();
        let found: Vec<&str> = errors.iter().map(|error| text(&error["pointer"])).collect();
        assert_eq!(found, pointers, "{body}: {problem}");
        assert!(errors.iter().all(|error| !text(&error["detail"]).is_empty()), "{problem}");
    }
    assert_eq!(ada.get("/v1/agents").await.ok()["data"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn an_agent_is_found_by_its_id_and_its_name() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let version = ada.upload("calc", component("calc")).await.created()["version"].clone();
    let tools = json!([{"tool": "calc", "version": "latest", "grants": "as_requested"}]);
    let answer = ada.post("/v1/agents", with(spec("clerk"), "tools", tools)).await;
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    let agent = answer.created();
    assert_eq!(location, format!("/v1/agents/{}", text(&agent["id"])));
    assert_eq!((&agent["revision"], &agent["archived"]), (&json!(1), &json!(false)));
    // `latest`, `as_requested` and absent limits are shown as what they became.
    let binding = &agent["tools"][0];
    assert_eq!((&binding["tool"], &binding["version"], &binding["grants"]), (&json!("calc"), &version, &json!({})));
    assert!(binding["limits"]["fuel"].as_u64().unwrap() > 0);
    assert_eq!(ada.get(&location).await.ok(), agent);
    assert_eq!(ada.get("/v1/agents/clerk").await.ok(), agent);

    ada.post("/v1/agents", spec("clerk")).await.problem(409, "agent.name_taken");
    for nobody in ["/v1/agents/clark", "/v1/agents/agt_01990000000070008000000000000000", "/v1/agents/A%20B"] {
        ada.get(nobody).await.problem(404, "agent.not_found");
    }
    // A version that an agent uses stays.
    ada.delete("/v1/tools/calc/versions/latest").await.problem(409, "tool_version.in_use");
    let problem = ada.delete("/v1/tools/calc").await.problem(409, "tool.in_use");
    assert!(text(&problem["detail"]).contains("clerk"), "{problem}");
    app.stop().await;
}

#[tokio::test]
async fn a_change_is_a_new_revision_and_old_runs_keep_theirs() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let agent = ada.post("/v1/agents", with(spec("clerk"), "metadata", json!({"a": 1, "b": 2}))).await.created();
    let path = format!("/v1/agents/{}", text(&agent["id"]));
    let first = ada.chat("clerk", "hi").await;
    assert_eq!(first["run"]["revision"], 1);

    let problem = ada.patch(&path, json!({"colour": "red"})).await.problem(422, "agent.invalid");
    assert_eq!(problem["errors"][0]["pointer"], "/colour");
    ada.patch(&path, json!({"name": null})).await.problem(422, "agent.invalid");
    let changed = ada.patch(&path, json!({"description": "new", "metadata": {"a": null, "c": 3}})).await.ok();
    assert_eq!((&changed["revision"], &changed["id"]), (&json!(2), &agent["id"]));
    assert_eq!(changed["metadata"], json!({"b": 2, "c": 3}));
    assert_eq!(changed["system_prompt"], "You help.", "what a patch does not name stays");
    assert_eq!(ada.patch(&path, json!({"description": "new"})).await.ok()["revision"], 2, "nothing new, no revision");

    // The old run keeps its revision, a new one has the new, and one may be asked for.
    let old = ada.get(&format!("/v1/runs/{}", text(&first["run"]["id"]))).await.ok();
    assert_eq!(old["revision"], 1);
    assert_eq!(ada.chat("clerk", "hi").await["run"]["revision"], 2);
    let pinned = json!({"message": "hi", "revision": 1});
    assert_eq!(ada.post("/v1/agents/clerk/chat", pinned).await.ok()["run"]["revision"], 1);
    let unknown = json!({"message": "hi", "revision": 9});
    ada.post("/v1/agents/clerk/chat", unknown).await.problem(404, "revision.not_found");

    // A revision never changes, and can be made the active one again.
    let revisions = walk(&ada, &format!("{path}/revisions"), 1).await;
    assert_eq!(revisions.iter().map(|revision| revision["revision"].clone()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(ada.get(&format!("{path}/revisions/1")).await.ok()["metadata"], agent["metadata"]);
    ada.get(&format!("{path}/revisions/3")).await.problem(404, "revision.not_found");
    ada.get(&format!("{path}/revisions/one")).await.problem(404, "revision.not_found");
    ada.post(&format!("{path}/revisions/3/activate"), json!({})).await.problem(404, "revision.not_found");
    let back = ada.post(&format!("{path}/revisions/1/activate"), json!({})).await.ok();
    assert_eq!((&back["revision"], &back["description"]), (&json!(1), &Value::Null));
    assert_eq!(ada.get(&path).await.ok()["revision"], 1);
    assert_eq!(ada.patch(&path, json!({"description": "third"})).await.ok()["revision"], 3);
    app.stop().await;
}

#[tokio::test]
async fn an_archived_agent_is_gone_and_what_it_did_stays() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let agent = ada.post("/v1/agents", spec("clerk")).await.created();
    let turn = ada.chat("clerk", "hi").await;
    assert_eq!(ada.delete("/v1/agents/clerk").await.status, StatusCode::NO_CONTENT);
    let by_id = format!("/v1/agents/{}", text(&agent["id"]));
    for path in ["/v1/agents/clerk", &by_id, &format!("{by_id}/revisions"), &format!("{by_id}/revisions/1")] {
        ada.get(path).await.problem(404, "agent.not_found");
    }
    ada.delete(&by_id).await.problem(404, "agent.not_found");
    ada.patch(&by_id, json!({"description": "x"})).await.problem(404, "agent.not_found");
    ada.post("/v1/agents/clerk/chat", json!({"message": "hi"})).await.problem(404, "agent.not_found");
    let more = json!({"message": "hi", "conversation_id": turn["conversation_id"]});
    ada.post(&format!("{by_id}/chat"), more).await.problem(404, "agent.not_found");
    assert_eq!(ada.get("/v1/agents").await.ok()["data"], json!([]));

    let run = ada.get(&format!("/v1/runs/{}", text(&turn["run"]["id"]))).await.ok();
    assert_eq!((&run["agent"], &run["status"]), (&json!("clerk"), &json!("completed")));
    let found = ada.get(&format!("/v1/runs?agent={}", text(&agent["id"]))).await.ok();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let messages = format!("/v1/conversations/{}/messages", text(&turn["conversation_id"]));
    assert_eq!(ada.get(&messages).await.ok()["data"].as_array().unwrap().len(), 2);
    // The name is free again, for another agent.
    let other = ada.post("/v1/agents", spec("clerk")).await.created();
    assert_ne!(other["id"], agent["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_list_is_walked_page_by_page_with_its_own_cursors_only() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let mut made = Vec::new();
    for name in ["one", "two", "three", "four"] {
        made.insert(0, ada.post("/v1/agents", spec(name)).await.created()["id"].clone());
    }
    for limit in [1, 3, 4, 100] {
        let ids: Vec<Value> = walk(&ada, "/v1/agents", limit).await.iter().map(|agent| agent["id"].clone()).collect();
        assert_eq!(ids, made, "newest first, each once, {limit} a page");
    }
    let page = ada.get("/v1/agents?limit=1").await.ok();
    let cursor = text(&page["next_cursor"]);
    let mut forged = cursor.to_owned();
    let first = if forged.remove(0) == 'A' { 'B' } else { 'A' };
    forged.insert(0, first);
    for wrong in [forged.as_str(), &cursor[..cursor.len() - 1], "", "x", "AAAA"] {
        ada.get(&format!("/v1/agents?cursor={wrong}")).await.problem(422, "page.bad_cursor");
    }
    ada.get(&format!("/v1/tools?cursor={cursor}")).await.problem(422, "page.bad_cursor");
    for limit in ["0", "101", "-1", "many", ""] {
        let problem = ada.get(&format!("/v1/agents?limit={limit}")).await.problem(422, "request.invalid");
        assert_eq!(problem["errors"][0]["pointer"], "/limit");
    }
    let problem = ada.get("/v1/agents?colour=red").await.problem(422, "request.invalid");
    assert_eq!(problem["errors"][0]["pointer"], "/colour");
    app.stop().await;
}

/// 65 tools of two functions each do not fit: a model takes 128 functions.
#[tokio::test]
async fn an_agent_has_no_more_functions_than_a_model_takes() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let echo = component("echo");
    let mut tools = Vec::new();
    for n in 0..64 {
        ada.upload(&format!("echo-{n}"), echo.clone()).await.created();
        tools.push(json!({"tool": format!("echo-{n}"), "version": "latest"}));
    }
    ada.post("/v1/agents", with(spec("full"), "tools", json!(tools))).await.created();
    tools.push(json!({"tool": "echo-0", "version": "latest"}));
    let problem = ada.post("/v1/agents", with(spec("more"), "tools", json!(tools))).await.problem(422, "agent.invalid");
    assert_eq!(problem["errors"][0]["pointer"], "/tools");
    app.stop().await;
}
