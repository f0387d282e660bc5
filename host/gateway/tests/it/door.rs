//! What is refused before any noun is asked, and what a key may do.

use axum::body::Body;
use http::{Method, Request, header};
use serde_json::json;

use crate::app::{App, answered};

#[tokio::test]
async fn every_route_wants_a_key() {
    let app = App::start().await;
    for (method, path) in gateway::tenant_routes() {
        let request = Request::builder().method(method.clone()).uri(path.replace(['{', '}'], "")).body(Body::empty());
        let answer = answered(&app.tenants, request.unwrap()).await;
        answer.problem(401, "api_key.missing");
        assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE), "{method} {path}");
    }
    for (method, path) in gateway::operator_routes() {
        let request = Request::builder().method(method.clone()).uri(path.replace(['{', '}'], "")).body(Body::empty());
        let answer = answered(&app.operator, request.unwrap()).await;
        match path.starts_with("/operator") {
            true => drop(answer.problem(401, "operator.unauthenticated")),
            false => assert_eq!(answer.status, 200, "{method} {path}"),
        }
    }
}

#[tokio::test]
async fn every_route_wants_a_scope() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let none = app.client(&ada.post("/v1/api-keys", json!({"name": "none", "scopes": []})).await.created());
    let any = ["/v1/tenant GET", "/v1/models GET", "/v1/price-books/{version} GET"];
    for (method, path) in gateway::tenant_routes() {
        if any.contains(&format!("{path} {method}").as_str()) {
            continue;
        }
        let named = [
            ("{agent}", "clerk"),
            ("{revision}", "1"),
            ("{tool}", "echo"),
            ("{version}", "latest"),
            ("{name}", "acme"),
        ];
        let id = match path.split('/').nth(2) {
            Some("api-keys") => "key_00000000000000000000000000000001",
            Some("conversations") => "conv_00000000000000000000000000000001",
            Some("runs") => "run_00000000000000000000000000000001",
            _ => "call_00000000000000000000000000000001",
        };
        let uri = named.iter().fold(path.replace("{id}", id), |uri, (name, value)| uri.replace(name, value));
        let body = match path.as_str() {
            "/v1/api-keys" => json!({"name": "n", "scopes": []}),
            "/v1/agents/{agent}/chat" => json!({"message": "hi"}),
            "/v1/tools/{tool}/versions/{version}/calls" => json!({"function": "run"}),
            "/v1/conversations" => json!({"agent": "clerk"}),
            "/v1/provider-keys/{name}" => json!({"kind": "openai", "api_key": "x"}),
            _ => json!({}),
        };
        let answer = none.json(method.clone(), &uri, body).await;
        let problem = answer.problem(403, "api_key.missing_scope");
        assert!(problem["detail"].as_str().unwrap().contains('`'), "{method} {path}: {problem}");
    }
}

#[tokio::test]
async fn a_key_that_ended_is_refused_by_its_own_code() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let minted = ada.post("/v1/api-keys", json!({"name": "short", "scopes": ["chat"]})).await.created();
    let short = app.client(&minted);
    short.get("/v1/tenant").await.ok();
    ada.delete(&format!("/v1/api-keys/{}", minted["id"].as_str().unwrap())).await.done();
    short.get("/v1/tenant").await.problem(401, "api_key.revoked");
    let mut wrong = short.clone();
    wrong.key = wrong.key.replace("bj_test_", "bj_live_");
    wrong.get("/v1/tenant").await.problem(401, "api_key.unknown");
    let both = Request::get("/v1/tenant").header("x-api-key", "bj_test_other");
    ada.send(both, Body::empty()).await.problem(401, "api_key.ambiguous");
    let only = Request::get("/v1/tenant").header("x-api-key", &ada.key).body(Body::empty()).unwrap();
    answered(&app.tenants, only).await.ok();
}

#[tokio::test]
async fn a_bound_key_reaches_its_own_and_mints_no_more() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let clerk = ada.clerk().await;
    let other = ada.post("/v1/agents", json!({"name": "other", "system_prompt": "", "model": "demo"})).await.created();
    let theirs = ada.post("/v1/agents/clerk/chat", json!({"message": "hi", "external_user_id": "bob"})).await.ok();
    let bound = json!({
        "name": "browser", "scopes": ["chat", "runs:read", "conversations:read", "agents:read", "keys:write", "usage:read"],
        "agents": [clerk["id"]], "external_user_id": "kim",
    });
    let kim = app.client(&ada.post("/v1/api-keys", bound).await.created());

    let turn = kim.post("/v1/agents/clerk/chat", json!({"message": "hi"})).await.ok();
    assert_eq!(turn["run"]["external_user_id"], "kim");
    kim.post("/v1/agents/other/chat", json!({"message": "hi"})).await.problem(404, "agent.not_found");
    kim.get(&format!("/v1/agents/{}", other["id"].as_str().unwrap())).await.problem(404, "agent.not_found");
    assert_eq!(kim.get("/v1/agents").await.ok()["data"].as_array().unwrap().len(), 1);
    let message = json!({"message": "hi", "external_user_id": "bob"});
    kim.post("/v1/agents/clerk/chat", message).await.problem(403, "api_key.other_external_user");
    let message = json!({"message": "hi", "conversation_id": theirs["conversation_id"]});
    kim.post("/v1/agents/clerk/chat", message).await.problem(404, "conversation.not_found");
    let run = theirs["run"]["id"].as_str().unwrap();
    kim.get(&format!("/v1/runs/{run}")).await.problem(404, "run.not_found");
    kim.get(&format!("/v1/runs/{run}/events")).await.problem(404, "run.not_found");
    kim.post(&format!("/v1/runs/{run}/cancel"), json!({})).await.problem(404, "run.not_found");
    let conversation = theirs["conversation_id"].as_str().unwrap();
    kim.get(&format!("/v1/conversations/{conversation}/messages")).await.problem(404, "conversation.not_found");
    for list in ["/v1/runs", "/v1/conversations"] {
        assert_eq!(kim.get(list).await.ok()["data"].as_array().unwrap().len(), 1, "{list}");
    }
    kim.get("/v1/usage").await.problem(403, "api_key.bound");

    let mint = |scope: &str, user: &str| json!({"name": "n", "scopes": [scope], "external_user_id": user});
    kim.post("/v1/api-keys", mint("tools:read", "kim")).await.problem(403, "api_key.widened");
    kim.post("/v1/api-keys", mint("chat", "bob")).await.problem(403, "api_key.widened");
    let minted = kim.post("/v1/api-keys", mint("chat", "kim")).await.created();
    assert_eq!(minted["agents"], json!([clerk["id"]]));
}

#[tokio::test]
async fn a_request_that_cannot_be_read_says_why() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let broken = |text: &'static str, kind: &'static str| {
        ada.send(Request::post("/v1/agents").header(header::CONTENT_TYPE, kind), text)
    };
    broken("{\"name\": ", "application/json").await.problem(400, "request.bad_json");
    broken("{}", "text/plain").await.problem(415, "request.unsupported_media_type");
    let unknown = ada.post("/v1/api-keys", json!({"name": "n", "scopes": [], "colour": "red"})).await;
    assert_eq!(unknown.problem(422, "request.invalid")["errors"][0]["pointer"], "/colour");
    let large = ada.post("/v1/api-keys", json!({"name": "x".repeat(1 << 20), "scopes": []})).await;
    large.problem(413, "request.too_large");
    ada.get("/v1/nothing").await.problem(404, "route.not_found");
    let method = ada.delete("/v1/agents").await;
    method.problem(405, "route.method_not_allowed");
    assert!(method.headers.contains_key(header::ALLOW));
    ada.get("/v1/agents?limit=0").await.problem(422, "request.invalid");
    ada.get("/v1/agents?cursor=x").await.problem(422, "page.bad_cursor");
    ada.get("/v1/agents?colour=red").await.problem(422, "request.invalid");
    let id = ada.send(Request::get("/v1/tenant").header("x-request-id", "mine-1"), Body::empty()).await;
    assert_eq!(id.headers["x-request-id"], "mine-1");
    let document = answered(&app.tenants, Request::get("/openapi.json").body(Body::empty()).unwrap()).await.ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
}

#[tokio::test]
async fn a_tenant_changes_its_settings_and_nothing_else() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let patch = json!({"settings": {"default_model": "demo"}, "metadata": {"a": 1}});
    let changed = ada.patch("/v1/tenant", patch).await.ok();
    assert_eq!((&changed["settings"]["default_model"], &changed["metadata"]), (&json!("demo"), &json!({"a": 1})));
    let changed = ada.patch("/v1/tenant", json!({"settings": {"record_tool_calls": true}})).await.ok();
    assert_eq!(changed["settings"]["default_model"], "demo");
    assert_eq!(changed["scopes"], json!(["admin"]));
    ada.json(Method::PATCH, "/v1/tenant", json!({"plan": "pro"})).await.problem(422, "request.invalid");
}

#[tokio::test]
async fn a_page_reads_what_its_tenant_allows() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.patch("/v1/tenant", json!({"settings": {"cors_origins": ["https://app.example.com"]}})).await.ok();
    let allowed = |origin: &'static str| {
        let ada = ada.clone();
        async move {
            let answer = ada.send(Request::get("/v1/tenant").header(header::ORIGIN, origin), Body::empty()).await;
            answer.headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap().to_owned())
        }
    };
    assert_eq!(allowed("https://evil.example.com").await, None);
    assert_eq!(allowed("https://app.example.com").await.as_deref(), Some("https://app.example.com"));
    let preflight = Request::options("/v1/agents/clerk/chat")
        .header(header::ORIGIN, "https://app.example.com")
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
    let answer = answered(&app.tenants, preflight.body(Body::empty()).unwrap()).await;
    answer.done();
    assert!(answer.headers[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().contains("authorization"));
}
