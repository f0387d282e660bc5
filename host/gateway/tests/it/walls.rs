//! A stranger's key gets the same answer as a random id.

use http::Method;
use serde_json::{Value, json};

use crate::app::{App, Client};

/// What a problem says, without the request's id.
async fn said(client: &Client, method: &Method, path: &str, body: &Value) -> (u16, Value) {
    let answer = client.json(method.clone(), path, body.clone()).await;
    let mut said: Value = serde_json::from_str(&answer.text).unwrap_or(Value::Null);
    said["request_id"] = Value::Null;
    (answer.status.as_u16(), said)
}

#[tokio::test]
async fn a_strangers_id_is_a_random_id() {
    let app = App::start().await;
    let (ada, bob) = (app.tenant("ada").await, app.tenant("bob").await);
    let agent = ada.clerk().await;
    let turn = ada.post("/v1/agents/clerk/chat", json!({"message": "/echo__run {}"})).await.ok();
    let key = ada.post("/v1/api-keys", json!({"name": "n", "scopes": []})).await.created();
    let id = |value: &Value| value.as_str().unwrap().to_owned();
    let hers = [
        ("agents", id(&agent["id"])),
        ("runs", id(&turn["run"]["id"])),
        ("conversations", id(&turn["conversation_id"])),
        ("tool-calls", id(&turn["tool_calls"][0]["id"])),
        ("api-keys", id(&key["id"])),
    ];
    let version = ada.get("/v1/tools/echo/versions/latest").await.ok()["version"].as_str().unwrap().to_owned();
    for (method, path) in gateway::tenant_routes().into_iter().filter(|(_, path)| path.contains('{')) {
        let noun = path.split('/').nth(2).unwrap();
        let fill = |id: &str, tool: &str, version: &str| {
            path.replace("{id}", id)
                .replace("{agent}", id)
                .replace("{revision}", "1")
                .replace("{tool}", tool)
                .replace("{version}", version)
        };
        let (real, random) = match (noun, hers.iter().find(|(name, _)| *name == noun)) {
            (_, Some((_, id))) => {
                let random = format!("{}{}", &id[..id.len() - 4], "0000");
                (fill(id, "", ""), fill(&random, "", ""))
            }
            ("tools", None) => {
                let other = format!("sha256:{}", "0".repeat(64));
                (fill("", "echo", &version), fill("", "gone", &other))
            }
            // Not of a tenant, or named by the tenant itself.
            ("price-books" | "provider-keys", None) => continue,
            (noun, None) => panic!("say what a stranger sees of {noun}"),
        };
        let body = match path.as_str() {
            "/v1/agents/{agent}/chat" => json!({"message": "hi"}),
            "/v1/tools/{tool}/versions/{version}/calls" => json!({"function": "run"}),
            _ => json!({}),
        };
        // An upload creates the tool that it names.
        if path == "/v1/tools/{tool}/versions" && method == Method::POST {
            continue;
        }
        let answer = said(&bob, &method, &real, &body).await;
        assert_eq!(answer.0, 404, "{method} {path}: {answer:?}");
        let unknown = said(&bob, &method, &random, &body).await;
        assert_eq!(
            answer.1["detail"].as_str().unwrap().replace("echo", "gone"),
            unknown.1["detail"],
            "{method} {path}"
        );
        assert_eq!((answer.0, &answer.1["code"]), (unknown.0, &unknown.1["code"]), "{method} {path}");
    }
    for list in ["agents", "runs", "conversations", "tool-calls", "tools"] {
        assert_eq!(bob.get(&format!("/v1/{list}")).await.ok()["data"], json!([]), "{list}");
    }
    let cursor = ada.get("/v1/api-keys?limit=1").await.ok()["next_cursor"].clone();
    bob.get(&format!("/v1/api-keys?cursor={}", cursor.as_str().unwrap())).await.problem(422, "page.bad_cursor");
}
