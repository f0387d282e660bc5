//! API keys: who may come in, what a key hands on, and what a bound key reaches.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::app::{Answer, Client, TestApp};

async fn mint(client: &Client, body: Value) -> Value {
    client.post("/v1/api-keys", body).await.created()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn a_key_that_has_ended_says_how() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let revoked = mint(&ada, json!({"name": "revoked", "scopes": ["admin"]})).await;
    let expired =
        mint(&ada, json!({"name": "expired", "scopes": ["admin"], "expires_at": "2999-01-01T00:00:00Z"})).await;
    let [revoked_client, expired_client] = [&revoked, &expired].map(|key| app.client(text(&key["key"])));
    for client in [&revoked_client, &expired_client] {
        client.get("/v1/tenant").await.ok();
    }

    let path = format!("/v1/api-keys/{}", text(&revoked["id"]));
    assert_eq!(ada.delete(&path).await.status, 204);
    revoked_client.get("/v1/tenant").await.problem(401, "api_key.revoked");
    assert_eq!(ada.delete(&path).await.status, 204, "revoking it again changes nothing");

    let uuid = text(&expired["id"]).trim_start_matches("key_").to_owned();
    let sql = format!("UPDATE belljar.api_key SET expires_at = now() - interval '1 s' WHERE api_key_id = '{uuid}'");
    let touched = sqlx::query(AssertSqlSafe(sql)).execute(&mut app.db.superuser().await).await.unwrap();
    assert_eq!(touched.rows_affected(), 1);
    expired_client.get("/v1/tenant").await.problem(401, "api_key.expired");

    let listed = ada.get("/v1/api-keys").await.ok();
    let of = |name: &str| listed["data"].as_array().unwrap().iter().find(|key| key["name"] == name).unwrap().clone();
    assert!(of("revoked")["revoked_at"].is_string() && of("expired")["revoked_at"].is_null());
    app.stop().await;
}

#[tokio::test]
async fn a_key_comes_in_one_of_two_headers() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.tenant("ada").await, app.tenant("bob").await);
    let ask = || app.http.get(format!("{}/v1/tenant", app.tenant_url));
    let both = |request: RequestBuilder, bearer: &str, other: &str| {
        Answer::of(request.bearer_auth(bearer).header("x-api-key", other))
    };
    Answer::of(ask()).await.problem(401, "api_key.missing");
    Answer::of(ask().basic_auth("ada", Some(&ada.key))).await.problem(401, "api_key.missing");
    both(ask(), &ada.key, &bob.key).await.problem(401, "api_key.ambiguous");
    Answer::of(ask().header("x-api-key", "bj_test_x")).await.problem(401, "api_key.unknown");
    let in_the_query = app.http.get(format!("{}/v1/tenant?api_key={}", app.tenant_url, ada.key));
    Answer::of(in_the_query).await.problem(401, "api_key.missing");
    assert_eq!(both(ask(), &ada.key, &ada.key).await.ok()["name"], "ada");
    assert_eq!(Answer::of(ask().header("x-api-key", &bob.key)).await.ok()["name"], "bob");
    assert_eq!(Answer::of(ask().bearer_auth(&bob.key)).await.ok()["name"], "bob");
    app.stop().await;
}

#[tokio::test]
async fn a_key_is_shown_once() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let answer = ada.post("/v1/api-keys", json!({"name": "browser", "scopes": ["chat"]})).await;
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    let key = answer.created();
    let whole = text(&key["key"]);
    assert_eq!(location, format!("/v1/api-keys/{}", text(&key["id"])));
    assert!(whole.starts_with("bj_test_") && whole.len() == 57, "{whole}");
    assert_eq!(text(&key["hint"]), &whole[..12]);

    let listed = ada.get("/v1/api-keys").await;
    assert!(!listed.text.contains(whole) && !listed.text.contains(&ada.key));
    let listed = listed.ok();
    let shown = &listed["data"][0];
    assert_eq!((&shown["id"], &shown["name"], &shown["hint"]), (&key["id"], &json!("browser"), &key["hint"]));
    assert_eq!(shown["scopes"], json!(["chat"]));
    assert!(shown.get("key").is_none() && shown.get("hash").is_none(), "{shown}");
    // The same name twice is two keys.
    let other = mint(&ada, json!({"name": "browser", "scopes": ["chat"]})).await;
    assert!(other["id"] != key["id"] && other["key"] != key["key"]);
    app.stop().await;
}

#[tokio::test]
async fn a_key_gives_no_more_than_it_has() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    ada.agent("other", &[]).await;
    let id = async |name: &str| ada.get(&format!("/v1/agents/{name}")).await.ok()["id"].clone();
    let (clerk, other) = (id("clerk").await, id("other").await);

    let minter = mint(&ada, json!({"name": "minter", "scopes": ["keys:write", "chat"]})).await;
    let minter = app.client(text(&minter["key"]));
    for (scopes, at) in
        [(json!(["admin"]), 0), (json!(["chat", "agents:write"]), 1), (json!(["chat", "usage:read"]), 1)]
    {
        let problem = minter
            .post("/v1/api-keys", json!({"name": "more", "scopes": scopes}))
            .await
            .problem(403, "api_key.widened");
        assert_eq!(problem["errors"][0]["pointer"], format!("/scopes/{at}"));
    }
    mint(&minter, json!({"name": "as much", "scopes": ["chat", "keys:write"]})).await;

    let bound = json!({
        "name": "bound", "scopes": ["keys:write", "chat"], "agents": [clerk], "external_user_id": "ada-1",
    });
    let bound = app.client(text(&mint(&ada, bound).await["key"]));
    for (field, value, pointer) in
        [("agents", json!([clerk, other]), "/agents/1"), ("external_user_id", json!("bob-2"), "/external_user_id")]
    {
        let mut body = json!({"name": "more", "scopes": ["chat"]});
        body[field] = value;
        let problem = bound.post("/v1/api-keys", body).await.problem(403, "api_key.widened");
        assert_eq!(problem["errors"][0]["pointer"], pointer);
    }
    // What is left out is what the minter has.
    let heir = mint(&bound, json!({"name": "heir", "scopes": ["chat"]})).await;
    assert_eq!((&heir["agents"], &heir["external_user_id"]), (&json!([clerk]), &json!("ada-1")));

    for (body, code, pointer) in [
        (json!({"name": "x", "scopes": ["everything"]}), "request.invalid", Some("/scopes/0")),
        (json!({"name": "x", "scopes": [], "colour": 1}), "request.invalid", Some("/colour")),
        (json!({"name": "x", "scopes": [], "agents": ["clerk"]}), "request.invalid", Some("/agents/0")),
        (json!({"name": "x", "scopes": [], "external_user_id": ""}), "request.invalid", Some("/external_user_id")),
        (json!({"name": "", "scopes": []}), "api_key.bad_name", None),
        (json!({"name": "x", "scopes": [], "expires_at": "2020-01-01T00:00:00Z"}), "api_key.expired", None),
    ] {
        let problem = ada.post("/v1/api-keys", body.clone()).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{body}: {problem}");
    }
    app.stop().await;
}

/// A key for a browser: one agent, one end user.
#[tokio::test]
async fn a_bound_key_reaches_only_its_agent_and_its_user() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    ada.agent("other", &[]).await;
    let agent = ada.get("/v1/agents/clerk").await.ok()["id"].clone();
    // What the key must not see: another agent's turn of its user, and its agent's turns of others.
    let mut hidden = Vec::new();
    for (agent, user) in [("other", json!("user-1")), ("clerk", json!("user-2")), ("clerk", Value::Null)] {
        let body = json!({"message": "a secret", "external_user_id": user});
        hidden.push(ada.post(&format!("/v1/agents/{agent}/chat"), body).await.ok());
    }
    let scopes = json!([
        "chat",
        "runs:read",
        "conversations:read",
        "conversations:write",
        "agents:read",
        "agents:write",
        "keys:write",
        "tools:read",
        "tools:write",
        "tools:call",
        "usage:read",
        "secrets:write",
    ]);
    let body = json!({"name": "browser", "scopes": scopes, "agents": [agent], "external_user_id": "user-1"});
    let bound = app.client(text(&mint(&ada, body).await["key"]));

    bound.post("/v1/agents/other/chat", json!({"message": "hi"})).await.problem(404, "agent.not_found");
    bound.get("/v1/agents/other").await.problem(404, "agent.not_found");
    bound.get("/v1/agents/other/revisions").await.problem(404, "agent.not_found");
    bound.post("/v1/conversations", json!({"agent": "other"})).await.problem(404, "agent.not_found");
    let as_another = json!({"message": "hi", "external_user_id": "user-2"});
    bound.post("/v1/agents/clerk/chat", as_another).await.problem(403, "api_key.other_external_user");
    let as_another = json!({"agent": "clerk", "external_user_id": "user-2"});
    bound.post("/v1/conversations", as_another).await.problem(403, "api_key.other_external_user");
    for list in ["runs", "conversations", "tool-calls"] {
        let list = format!("/v1/{list}?external_user_id=user-2");
        bound.get(&list).await.problem(403, "api_key.other_external_user");
    }
    for turn in &hidden {
        let (run, conversation) = (text(&turn["run"]["id"]), text(&turn["conversation_id"]));
        for path in [format!("/v1/runs/{run}"), format!("/v1/runs/{run}/events")] {
            bound.get(&path).await.problem(404, "run.not_found");
        }
        bound.post(&format!("/v1/runs/{run}/cancel"), json!({})).await.problem(404, "run.not_found");
        let path = format!("/v1/conversations/{conversation}");
        bound.get(&path).await.problem(404, "conversation.not_found");
        bound.get(&format!("{path}/messages")).await.problem(404, "conversation.not_found");
        bound.patch(&path, json!({"title": "mine"})).await.problem(404, "conversation.not_found");
        bound.delete(&path).await.problem(404, "conversation.not_found");
        let body = json!({"message": "hi", "conversation_id": conversation});
        bound.post("/v1/agents/clerk/chat", body).await.problem(404, "conversation.not_found");
    }
    // What concerns the whole tenant is no bound key's, whatever its scopes.
    let whole: [(&str, &str, Value); 13] = [
        ("POST", "/v1/agents", json!({"name": "mine", "system_prompt": "", "model": "demo"})),
        ("PATCH", "/v1/agents/clerk", json!({"description": "mine"})),
        ("DELETE", "/v1/agents/clerk", Value::Null),
        ("POST", "/v1/agents/clerk/revisions/1/activate", Value::Null),
        ("GET", "/v1/api-keys", Value::Null),
        ("DELETE", "/v1/api-keys/key_01990000000070008000000000000000", Value::Null),
        ("DELETE", "/v1/tools/calc", Value::Null),
        ("POST", "/v1/tools/calc/versions/latest/calls", json!({"function": "run"})),
        ("GET", "/v1/usage", Value::Null),
        ("GET", "/v1/usage/events", Value::Null),
        ("GET", "/v1/provider-keys", Value::Null),
        ("PUT", "/v1/provider-keys/mine", json!({"kind": "openai", "api_key": "sk-1"})),
        ("DELETE", "/v1/provider-keys/mine", Value::Null),
    ];
    for (method, path, body) in whole {
        let method: Method = method.parse().unwrap();
        let request = bound.request(method, path);
        let request = if body.is_null() { request } else { request.json(&body) };
        Answer::of(request).await.problem(403, "api_key.bound");
    }

    // Its own it sees, and its user stands in what it does.
    let turn = bound.chat("clerk", "hello").await;
    assert_eq!(turn["run"]["external_user_id"], "user-1");
    let (run, conversation) = (turn["run"]["id"].clone(), turn["conversation_id"].clone());
    bound.get(&format!("/v1/runs/{}", text(&run))).await.ok();
    bound.get(&format!("/v1/conversations/{}/messages", text(&conversation))).await.ok();
    let made = bound.post("/v1/conversations", json!({"agent": "clerk"})).await.created();
    assert_eq!(made["external_user_id"], "user-1");
    let ids = |list: Value| list["data"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(bound.get("/v1/runs").await.ok()), [run]);
    assert_eq!(ids(bound.get("/v1/conversations").await.ok()), [made["id"].clone(), conversation]);
    assert_eq!(ids(bound.get("/v1/agents").await.ok()), std::slice::from_ref(&agent));
    assert_eq!(
        ids(bound.get("/v1/agents?limit=1").await.ok()),
        [agent],
        "a newer one that it must not see leaves no hole"
    );
    app.stop().await;
}
