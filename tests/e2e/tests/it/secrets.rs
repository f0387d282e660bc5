//! Secrets: who may store them, who may name them, and the keys that seal them.

use std::sync::atomic::{AtomicBool, Ordering};

use domain::SecretString;
use reqwest::Method;
use serde_json::{Value, json};
use tenancy::{
    Db, DbSettings, rotate,
    seal::{Kek, MasterKey},
};

use crate::{
    app::{Answer, Client, TestApp, component},
    outside::Outside,
    tools::call,
};

/// A grant that sends the secret `token` to a host.
fn sends_to(host: &str) -> Value {
    json!({"http": [{"host": host, "headers": [{"name": "Authorization", "secret": "token", "format": "Bearer {}"}]}]})
}

fn agent(name: &str, grants: Value) -> Value {
    let binding = json!({"tool": "calc", "version": "latest", "grants": grants});
    json!({"name": name, "system_prompt": "You help.", "model": "demo", "tools": [binding]})
}

#[tokio::test]
async fn a_secret_that_cannot_be_is_refused_with_the_place() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    for (name, body, code, pointer) in [
        ("1st", json!({"value": "x"}), "request.invalid", "/name"),
        ("a%20b", json!({"value": "x"}), "request.invalid", "/name"),
        ("token", json!({}), "request.invalid", ""),
        ("token", json!({"value": ""}), "secret.bad_value", "/value"),
        ("token", json!({"value": "x".repeat(100_000)}), "secret.bad_value", "/value"),
        ("token", json!({"value": ["x"]}), "request.invalid", "/value"),
        ("token", json!({"value": "x", "hosts": ["https://a.example"]}), "request.invalid", "/hosts/0"),
        ("token", json!({"value": "x", "readable": "yes"}), "request.invalid", "/readable"),
        ("token", json!({"value": "x", "colour": "red"}), "request.invalid", "/colour"),
    ] {
        let problem = ada.put(&format!("/v1/secrets/{name}"), body.clone()).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
    }
    ada.delete("/v1/secrets/token").await.problem(404, "secret.not_found");
    ada.delete("/v1/secrets/1st").await.problem(404, "secret.not_found");
    assert_eq!(ada.get("/v1/secrets").await.ok()["data"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn a_secret_goes_in_and_its_name_comes_out() {
    const VALUE: &str = "value-that-never-comes-out";
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let spec = json!({"value": VALUE, "hosts": ["api.example.com", "*.example.org:8443"]});
    let answer = ada.put("/v1/secrets/token", spec.clone()).await;
    assert_eq!(answer.headers["location"], "/v1/secrets/token");
    let stored = answer.created();
    assert_eq!((&stored["name"], &stored["hosts"]), (&json!("token"), &spec["hosts"]));
    assert_eq!(stored["readable"], false);
    let again = ada.put("/v1/secrets/token", json!({"value": VALUE, "readable": true})).await.ok();
    assert_eq!((&again["hosts"], &again["readable"]), (&json!([]), &json!(true)), "written whole");
    for name in ["b", "a", "C"] {
        ada.secret(name, VALUE).await;
    }
    let mut names = Vec::new();
    let mut path = "/v1/secrets?limit=3".to_owned();
    loop {
        let answer = ada.get(&path).await;
        assert!(!answer.text.contains(VALUE), "{}", answer.text);
        let page = answer.ok();
        names.extend(page["data"].as_array().unwrap().iter().map(|secret| secret["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/secrets?limit=3&cursor={cursor}");
    }
    names.sort();
    assert_eq!(names, ["C", "a", "b", "token"]);
    assert_eq!(ada.delete("/v1/secrets/token").await.status, 204);
    ada.delete("/v1/secrets/token").await.problem(404, "secret.not_found");
    app.stop().await;
}

#[tokio::test]
async fn secrets_are_not_for_a_bound_key() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let bound = json!({"name": "browser", "scopes": ["secrets:write"], "external_user_id": "ada"});
    let key = ada.post("/v1/api-keys", bound).await.created();
    let browser = app.client(key["key"].as_str().unwrap());
    for (method, path) in
        [(Method::GET, "/v1/secrets"), (Method::PUT, "/v1/secrets/x"), (Method::DELETE, "/v1/secrets/x")]
    {
        let request = browser.request(method, path).json(&json!({"value": "y"}));
        Answer::of(request).await.problem(403, "api_key.bound");
    }
    app.stop().await;
}

#[tokio::test]
async fn who_may_not_write_secrets_sends_them_only_where_they_say() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    ada.put("/v1/secrets/token", json!({"value": "hunter2hunter2", "hosts": ["api.example.com"]})).await.created();
    let clerk = ada.with_scopes(&["agents:read", "agents:write", "tools:read"]).await;

    let problem = ada.post("/v1/agents", agent("a", json!({"secrets": ["absent"]}))).await;
    let problem = problem.problem(422, "secret.not_found");
    assert!(problem["detail"].as_str().unwrap().contains("absent"), "{problem}");
    for host in ["evil.example.com", "*.example.com", "api.example.com.evil.org"] {
        let problem = clerk.post("/v1/agents", agent("a", sends_to(host))).await.problem(403, "secret.host_outside");
        assert!(problem["detail"].as_str().unwrap().contains("secrets:write"), "{problem}");
    }
    clerk.post("/v1/agents", agent("a", sends_to("api.example.com"))).await.created();
    // Somebody with the right may; then others may change the rest.
    ada.post("/v1/agents", agent("b", sends_to("other.example.com"))).await.created();
    let changed = clerk.patch("/v1/agents/b", json!({"description": "changed"})).await.ok();
    assert_eq!(changed["revision"], 2, "{changed}");
    let moved = json!({"tools": agent("b", sends_to("evil.example.com"))["tools"]});
    clerk.patch("/v1/agents/b", moved).await.problem(403, "secret.host_outside");
    app.stop().await;
}

#[tokio::test]
async fn a_direct_call_that_names_a_secret_needs_the_scope() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    ada.put("/v1/secrets/token", json!({"value": "hunter2hunter2", "readable": true})).await.created();
    let caller = ada.with_scopes(&["tools:call"]).await;
    let body = |grants: Value| json!({"function": "evaluate", "arguments": {"expression": "1"}, "grants": grants});
    let basic = json!({"http": [{"host": "a.example", "basic": {"user": "u", "secret": "token"}}]});
    let query = json!({"http": [{"host": "a.example", "query": [{"name": "key", "secret": "token"}]}]});
    for grants in [json!({"secrets": ["token"]}), sends_to("a.example"), basic, query] {
        let problem = call(&caller, "calc", body(grants.clone())).await.problem(403, "api_key.missing_scope");
        assert!(problem["detail"].as_str().unwrap().contains("`secrets:write`"), "{problem}");
        assert_eq!(call(&ada, "calc", body(grants)).await.ok()["outcome"]["status"], "ok");
    }
    call(&caller, "calc", body(json!({"http": [{"host": "a.example"}]}))).await.ok();
    let problem = call(&ada, "calc", body(json!({"secrets": ["absent"]}))).await.problem(422, "secret.not_found");
    assert!(problem["errors"][0]["pointer"].as_str().unwrap().starts_with("/grants"), "{problem}");
    app.stop().await;
}

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

fn master(current: [u8; 32], previous: &[[u8; 32]]) -> MasterKey {
    let previous = previous.iter().map(|key| Kek::new(*key)).collect();
    kit::master_key().with_keks(Some(Kek::new(current)), previous)
}

/// A tenant whose agent sends a secret to the outside.
async fn sender(app: &TestApp, outside: &Outside, name: &str) -> Client {
    let client = app.tenant(name).await;
    client.upload("fetch", component("fetch")).await.created();
    client.secret("token", &format!("secret-of-{name}")).await;
    let mut grants = sends_to(&outside.host());
    grants["http"][0]["plain_http"] = true.into();
    let binding = json!({"tool": "fetch", "version": "latest", "grants": grants});
    let agent = json!({"name": "sender", "system_prompt": "You send.", "model": "demo", "tools": [binding]});
    client.post("/v1/agents", agent).await.created();
    client
}

async fn sends(client: &Client, outside: &Outside, name: &str) {
    let said = format!("/fetch__get {{\"url\": \"{}\"}}", outside.url("/"));
    let turn = client.chat("sender", &said).await;
    assert_eq!(turn["tool_calls"][0]["outcome"]["status"], "ok", "{turn}");
    let asked = outside.asked();
    assert!(asked.iter().any(|asked| asked.headers["authorization"] == format!("Bearer secret-of-{name}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_encryption_key_is_changed_while_chats_run() {
    let outside = Outside::reflecting().await;
    let allowed = vec![outside.address];
    let app = TestApp::start().await;
    let db = app.stop().await;
    let names = ["ada", "bob", "eve"];
    let app = TestApp::on(db, master(OLD, &[]), allowed.clone()).await;
    let mut clients = Vec::new();
    for name in names {
        let client = sender(&app, &outside, name).await;
        sends(&client, &outside, name).await;
        clients.push(client);
    }

    // Every server has both keys; data keys are still sealed by the old one.
    let app = TestApp::on(app.stop().await, master(NEW, &[OLD]), allowed.clone()).await;
    let at = |app: &TestApp| clients.iter().map(|client| app.client(&client.key)).collect::<Vec<_>>();
    let (clients_now, rotated) = (at(&app), AtomicBool::new(false));
    let chats = async {
        let mut turns = 0;
        while !rotated.load(Ordering::SeqCst) || turns < 2 {
            for (client, name) in clients_now.iter().zip(names) {
                sends(client, &outside, name).await;
            }
            turns += 1;
        }
    };
    let db = Db::connect(&DbSettings { url: SecretString::from(app.db.url()), connections: 2 }).await.unwrap();
    let rotate = async {
        let first = rotate::rotate(&db, &master(NEW, &[OLD]), |_| ()).await.unwrap();
        assert_eq!((first.rewrapped, first.already), (3, 0), "each tenant's one");
        // Interrupted and begun again, it has nothing left to do.
        let second = rotate::rotate(&db, &master(NEW, &[OLD]), |_| ()).await.unwrap();
        assert_eq!((second.rewrapped, second.already), (0, 3));
        rotated.store(true, Ordering::SeqCst);
    };
    tokio::join!(chats, rotate);

    // The old key can go.
    let app = TestApp::on(app.stop().await, master(NEW, &[]), allowed.clone()).await;
    for (client, name) in at(&app).iter().zip(names) {
        sends(client, &outside, name).await;
        client.put("/v1/secrets/another", json!({"value": "more"})).await.created();
    }
    // And does open nothing any more.
    let app = TestApp::on(app.stop().await, master(OLD, &[]), allowed).await;
    let late = &at(&app)[0];
    late.put("/v1/secrets/late", json!({"value": "late"})).await.problem(500, "internal");
    let error = rotate::rotate(&db, &master(OLD, &[]), |_| ()).await.unwrap_err().to_string();
    assert!(error.contains(&Kek::new(NEW).id()) && error.contains("previous_key_encryption_keys"), "{error}");
    app.stop().await;
}
