//! `Idempotency-Key`: every POST is done once, however often it is sent.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use futures::future::join_all;
use gateway::{operator_routes, tenant_routes};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};

use crate::app::{Answered, App, Client};

const UPLOAD: &str = "/v1/tools/{tool}/versions";

/// What is sent to a route.
enum Sent {
    Json(Value),
    Wasm(&'static str),
    Nothing,
}

impl Client {
    async fn keyed(&self, key: &str, path: &str, sent: &Sent) -> Answered {
        let request = Request::post(path).header("idempotency-key", key);
        let typed = |request: http::request::Builder, kind| request.header(header::CONTENT_TYPE, kind);
        match sent {
            Sent::Json(body) => self.send(typed(request, "application/json"), body.to_string()).await,
            Sent::Wasm(bytes) => self.send(typed(request, "application/wasm"), *bytes).await,
            Sent::Nothing => self.send(request, Body::empty()).await,
        }
    }

    async fn post_once(&self, key: &str, path: &str, body: Value) -> Answered {
        self.keyed(key, path, &Sent::Json(body)).await
    }

    async fn count(&self, path: &str) -> usize {
        self.get(path).await.ok()["data"].as_array().unwrap().len()
    }
}

impl Answered {
    fn is_replayed(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }
}

/// A tenant with one of everything that a POST is about.
struct Ada {
    client: Client,
    tenant: String,
    names: BTreeMap<&'static str, String>,
}

async fn ada(app: &App) -> Ada {
    let client = app.tenant("ada").await;
    let tenant = text(&client.get("/v1/tenant").await.ok()["id"]);
    app.generous(&tenant).await;
    let webhook = json!({"url": "https://hooks.example.com/belljar", "events": ["tool_version.ready"]});
    let webhook = text(&client.post("/v1/webhooks", webhook).await.created()["id"]);
    client.clerk().await;
    let bindings = json!([{"tool": "echo", "version": "latest", "approval": "always"}]);
    let careful = json!({"name": "careful", "system_prompt": "help", "model": "demo", "tools": bindings});
    client.post("/v1/agents", careful).await.created();
    let waiting = client.post("/v1/agents/careful/chat", json!({"message": "/echo__run {}"})).await.accepted();
    // Called without an agent, its function would need the approval too.
    client.patch("/v1/agents/careful", json!({"tools": []})).await.ok();
    let call = json!({"function": "run", "arguments": {}, "record": true});
    let call = client.post("/v1/tools/echo/versions/latest/calls", call).await.ok();
    let delivery = client.get(&format!("/v1/webhooks/{webhook}/deliveries")).await.ok();
    let names = BTreeMap::from([
        ("agents", "clerk".to_owned()),
        ("revisions", "1".into()),
        ("tools", "echo".into()),
        ("versions", "latest".into()),
        ("runs", text(&waiting["run"]["id"])),
        ("pending", text(&waiting["run"]["pending_approvals"][0]["id"])),
        ("recorded", text(&call["id"])),
        ("webhooks", webhook),
        ("deliveries", text(&delivery["data"][0]["id"])),
    ]);
    Ada { client, tenant, names }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

impl Ada {
    /// A path with this tenant's names.
    fn path(&self, route: &str) -> String {
        let mut before = "";
        let steps = route.split('/').map(|step| {
            let name = match (before, step) {
                ("tenants", "{id}") => self.tenant.clone(),
                ("tool-calls", _) if route.contains("/runs/") => self.names["pending"].clone(),
                ("tool-calls", _) => self.names["recorded"].clone(),
                (noun, step) if step.starts_with('{') => self.names[noun].clone(),
                (_, step) => step.to_owned(),
            };
            before = step;
            name
        });
        steps.collect::<Vec<_>>().join("/")
    }
}

/// Every POST, and what is sent to it. In this order: one may end what the one before needs.
fn posts(prices: &Value) -> Vec<(&'static str, Sent)> {
    let json = Sent::Json;
    vec![
        ("/v1/api-keys", json(json!({"name": "k", "scopes": []}))),
        ("/v1/agents", json(json!({"name": "twin", "system_prompt": "help", "model": "demo"}))),
        ("/v1/agents/{agent}/revisions/{revision}/activate", Sent::Nothing),
        ("/v1/agents/{agent}/chat", json(json!({"message": "hi"}))),
        (UPLOAD, Sent::Wasm("another wasm")),
        ("/v1/tools/{tool}/versions/{version}/calls", json(json!({"function": "run", "arguments": {"n": 1}}))),
        ("/v1/tool-calls/{id}/replay", json(json!({"version": "latest"}))),
        ("/v1/conversations", json(json!({"agent": "clerk", "title": "t"}))),
        ("/v1/runs/{id}/tool-calls/{call}/decision", json(json!({"decision": "approve"}))),
        ("/v1/runs/{id}/cancel", Sent::Nothing),
        (
            "/v1/budgets",
            json(json!({
                "scope": "tenant", "subject": "*", "window": "month", "amount": {"amount": "5", "currency": "USD"},
            })),
        ),
        ("/v1/webhooks", json(json!({"url": "https://hooks.example.com/two", "events": ["run.failed"]}))),
        ("/v1/webhooks/{id}/rotate-secret", Sent::Nothing),
        ("/v1/webhooks/{id}/deliveries/{delivery}/redeliver", Sent::Nothing),
        ("/operator/v1/tenants", json(json!({"name": "born once"}))),
        ("/operator/v1/tenants/{id}/api-keys", json(json!({"name": "k", "scopes": ["chat"]}))),
        ("/operator/v1/price-books", json(prices.clone())),
    ]
}

#[tokio::test]
async fn every_post_is_done_once() {
    let app = App::start().await;
    let ada = ada(&app).await;
    let operator = app.operator();
    let mut prices = operator.get("/operator/v1/price-books").await.ok()["data"][0].clone();
    for known in ["version", "created_at"] {
        prices.as_object_mut().unwrap().remove(known);
    }
    let posts = posts(&prices);
    let tried: BTreeSet<String> = posts.iter().map(|(path, _)| (*path).to_owned()).collect();
    let served: BTreeSet<String> = [tenant_routes(), operator_routes()]
        .into_iter()
        .flatten()
        .filter_map(|(method, path)| (method == Method::POST).then_some(path))
        .collect();
    assert_eq!(tried, served, "name every POST in `posts`, and take `Once` in its handler");

    for (at, (route, sent)) in posts.iter().enumerate() {
        let client = if route.starts_with("/operator") { &operator } else { &ada.client };
        let (key, path) = (format!("key-{at}"), ada.path(route));
        let first = client.keyed(&key, &path, sent).await;
        assert!(first.status.is_success() && !first.is_replayed(), "{route}: {} {}", first.status, first.text);
        for key in [key.clone(), format!("\"{key}\"")] {
            let again = client.keyed(&key, &path, sent).await;
            assert_eq!(again.status, first.status, "{route}: {}", again.text);
            assert_eq!(again.text, first.text, "{route}");
            for name in [header::LOCATION, header::CONTENT_TYPE] {
                assert_eq!(again.headers.get(&name), first.headers.get(&name), "{route}");
            }
            assert!(again.is_replayed(), "{route}");
        }
        // The same key with anything else, here or at another route.
        let elsewhere = if *route == "/operator/v1/tenants" { posts[16].0 } else { "/operator/v1/tenants" };
        let elsewhere = if route.starts_with("/operator") { elsewhere } else { "/v1/conversations" };
        let other = match elsewhere {
            "/v1/conversations" => json!({"agent": "clerk"}),
            "/operator/v1/tenants" => json!({"name": "another"}),
            _ => prices.clone(),
        };
        // A key that makes a key of a tenant is kept with that tenant: it is tried there.
        let (elsewhere, other) = match *route {
            "/operator/v1/tenants/{id}/api-keys" => (path.as_str(), json!({"name": "other", "scopes": []})),
            _ => (elsewhere, other),
        };
        client.post_once(&key, elsewhere, other).await.problem(422, "idempotency_key.other_payload");
    }
}

#[tokio::test]
async fn a_key_is_nothing_to_another_tenant_or_another_api_key() {
    let app = App::start().await;
    let (ada, bob) = (app.tenant("ada").await, app.tenant("bob").await);
    let mint = json!({"name": "mine", "scopes": ["admin"]});
    let adas = ada.post_once("one", "/v1/api-keys", mint.clone()).await;
    let bobs = bob.post_once("one", "/v1/api-keys", mint.clone()).await;
    assert!(!bobs.is_replayed() && bobs.created()["key"] != adas.created()["key"]);
    // Another key of the same tenant does not get the text of the one that was made.
    let other = app.client(&adas.created());
    let others = other.post_once("one", "/v1/api-keys", mint).await;
    assert!(!others.is_replayed() && others.created()["key"] != adas.created()["key"]);
    // And what a key may not do, it may not have told again.
    let weak = json!({"name": "weak", "scopes": ["chat"]});
    let weak = app.client(&ada.post("/v1/api-keys", weak).await.created());
    weak.post_once("one", "/v1/api-keys", json!({"name": "n", "scopes": []}))
        .await
        .problem(403, "api_key.missing_scope");
}

#[tokio::test]
async fn of_many_at_once_one_is_done() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let many = async |path: &'static str, body: Value| {
        let answers = join_all((0..16).map(|_| ada.post_once("same", path, body.clone()))).await;
        let (mut done, mut refused) = (BTreeSet::new(), 0);
        for answer in answers {
            match answer.status {
                StatusCode::CONFLICT => {
                    assert!(answer.headers.contains_key(header::RETRY_AFTER));
                    answer.problem(409, "idempotency_key.in_progress");
                    refused += 1;
                }
                status => {
                    assert!(status.is_success(), "{}", answer.text);
                    done.insert(answer.text);
                }
            }
        }
        assert_eq!(done.len(), 1, "all were told the same, or to come back ({refused} of them)");
    };
    many("/v1/conversations", json!({"agent": "clerk", "title": "one"})).await;
    assert_eq!(ada.count("/v1/conversations").await, 1);
    ada.delete(&format!("/v1/conversations/{}", text(&ada.get("/v1/conversations").await.ok()["data"][0]["id"]))).await;

    let again = "same"; // Of another API key: keys of one are nothing to another.
    let other = app.client(&ada.post("/v1/api-keys", json!({"name": "o", "scopes": ["admin"]})).await.created());
    let said = json!({"message": "/echo__run {\"n\": 1}"});
    let answers = join_all((0..16).map(|_| other.post_once(again, "/v1/agents/clerk/chat", said.clone()))).await;
    assert!(answers.iter().any(|answer| answer.status == StatusCode::OK));
    assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 200 | 409)), "{answers:?}");
    assert_eq!((other.count("/v1/runs").await, other.count("/v1/tool-calls").await), (1, 1));
    let conversation = text(&other.get("/v1/conversations").await.ok()["data"][0]["id"]);
    let messages = other.get(&format!("/v1/conversations/{conversation}/messages")).await.ok();
    let users = messages["data"].as_array().unwrap().iter().filter(|message| message["role"] == "user");
    assert_eq!(users.count(), 1);
}

#[tokio::test]
async fn an_error_is_not_kept() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    for _ in 0..2 {
        let refused = ada.post_once("one", "/v1/conversations", json!({"agent": "clerk"})).await;
        refused.problem(404, "agent.not_found");
        let chat = ada.post_once("two", "/v1/agents/clerk/chat", json!({"message": "hi"})).await;
        chat.problem(404, "agent.not_found");
        let call = json!({"function": "run", "arguments": {}});
        let call = ada.post_once("three", "/v1/tools/echo/versions/latest/calls", call).await;
        call.problem(404, "tool.not_found");
        let upload = Sent::Wasm("bad wasm");
        let upload = ada.keyed("four", "/v1/tools/bad/versions", &upload).await;
        upload.problem(422, "tool_version.rejected");
    }
    ada.clerk().await;
    ada.post_once("one", "/v1/conversations", json!({"agent": "clerk"})).await.created();
    ada.post_once("two", "/v1/agents/clerk/chat", json!({"message": "hi"})).await.ok();
    let call = json!({"function": "run", "arguments": {}});
    ada.post_once("three", "/v1/tools/echo/versions/latest/calls", call).await.ok();
    for key in ["", "\"open", &"x".repeat(256)] {
        let refused = ada.post_once(key, "/v1/conversations", json!({"agent": "clerk"})).await;
        refused.problem(422, "idempotency_key.invalid");
    }
}

#[tokio::test]
async fn a_stream_is_told_again_from_the_start() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let said = json!({"message": "/echo__run {\"n\": 1}", "stream": true});
    let first = ada.post_once("one", "/v1/agents/clerk/chat", said.clone()).await;
    let again = ada.post_once("one", "/v1/agents/clerk/chat", said).await;
    assert_eq!(again.headers[header::CONTENT_TYPE], "text/event-stream");
    assert!(again.is_replayed() && !first.is_replayed());
    let kinds = |answer: &Answered| {
        let lines = answer.text.lines().filter(|line| line.starts_with("event:"));
        let mut kinds: Vec<String> = lines.map(str::to_owned).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(kinds(&again), kinds(&first));
    assert_eq!(ada.count("/v1/runs").await, 1);
    let other = json!({"message": "/echo__run {\"n\": 2}", "stream": true});
    ada.post_once("one", "/v1/agents/clerk/chat", other).await.problem(422, "idempotency_key.other_payload");
}

#[tokio::test]
async fn a_form_is_the_same_whatever_its_boundary() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    let upload = async |boundary: &str, component: &str| {
        let head = "Content-Disposition: form-data; name=\"component\"; filename=\"f\"";
        let body = format!("--{boundary}\r\n{head}\r\n\r\n{component}\r\n--{boundary}--\r\n");
        let kind = format!("multipart/form-data; boundary={boundary}");
        let request = Request::post("/v1/tools/echo/versions").header("idempotency-key", "one");
        ada.send(request.header(header::CONTENT_TYPE, kind), body).await
    };
    let first = upload("x", "wasm").await;
    let again = upload("another-boundary", "wasm").await;
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    assert!(again.is_replayed());
    upload("x", "other").await.problem(422, "idempotency_key.other_payload");
}
