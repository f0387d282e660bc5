//! What is refused before any noun is asked, and what a page of another origin may read.

use axum::body::Body;
use http::{Method, Request, header};
use serde_json::json;

use crate::app::{App, answered};

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
    let changed = ada.patch("/v1/tenant", json!({"settings": {"cors_origins": []}})).await.ok();
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
