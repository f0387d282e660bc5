//! Webhooks over HTTP: made, changed, told of what happened, told again.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::{
    app::{Client, TestApp, component},
    outside::{Asked, NOBODY, Outside, Reply},
};

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a webhook was told, verified with the specification's own library.
#[track_caller]
fn verified(asked: &Asked, secret: &Value) -> Value {
    assert!(verifies(asked, secret), "{asked:?}");
    serde_json::from_slice(&asked.body).unwrap()
}

fn verifies(asked: &Asked, secret: &Value) -> bool {
    let mut headers = HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, asked.headers[name].parse().unwrap());
    }
    Webhook::new(secret.as_str().unwrap()).unwrap().verify(&asked.body, &headers).is_ok()
}

/// Waits until so many requests have come.
async fn heard(outside: &Outside, count: usize) -> Vec<Asked> {
    let enough = async {
        loop {
            let asked = outside.asked();
            if asked.len() >= count {
                return asked;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, enough).await.unwrap_or_else(|_| panic!("{count}: {:?}", outside.asked()))
}

/// The newest delivery of a webhook, once it is in this state.
async fn delivery(client: &Client, webhook: &str, status: &str) -> Value {
    let settled = async {
        loop {
            let newest = client.get(&format!("{webhook}/deliveries?limit=1")).await.ok()["data"][0].clone();
            if newest["status"] == status {
                return newest;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap()
}

#[tokio::test]
async fn a_webhook_is_refused_with_the_place_of_the_mistake() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let url = "https://example.com/hook";
    for (body, code, pointer) in [
        (json!({"url": url, "events": []}), "webhook.no_events", "/events"),
        (json!({"url": url, "events": ["run.started"]}), "request.invalid", "/events/0"),
        (json!({"url": url, "events": ["run.failed"], "secret": "mine"}), "request.invalid", "/secret"),
        (json!({"events": ["run.failed"]}), "request.invalid", ""),
    ] {
        let problem = ada.post("/v1/webhooks", body.clone()).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
    }
    for (url, code) in [
        ("http://127.0.0.1:9/", "egress.address_refused"),
        ("https://169.254.169.254/", "egress.address_refused"),
        ("http://example.com/", "egress.bad_url"),
        ("ftp://example.com/", "egress.bad_url"),
        ("https://user:word@example.com/", "egress.bad_url"),
    ] {
        let problem = ada.post("/v1/webhooks", json!({"url": url, "events": ["run.failed"]})).await;
        assert_eq!((problem.status, problem.json()["code"].as_str()), (422, Some(code)), "{url}: {}", problem.text);
    }
    assert_eq!(ada.get("/v1/webhooks").await.ok()["data"], json!([]));

    let made = ada.post("/v1/webhooks", json!({"url": url, "events": ["run.failed", "run.failed"]})).await.created();
    let secret = made["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_") && secret.len() == 50, "{secret}");
    assert_eq!(made["events"], json!(["run.failed"]));
    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    for patch in [json!({"url": null}), json!({"events": null}), json!({"enabled": null}), json!({"secret": "x"})] {
        ada.patch(&path, patch).await.problem(422, "request.invalid");
    }
    ada.patch(&path, json!({"url": "http://127.0.0.1:9/"})).await.problem(422, "egress.address_refused");
    let changed = ada.patch(&path, json!({"events": ["run.completed"], "enabled": false})).await.ok();
    assert_eq!((&changed["url"], &changed["disabled_reason"]), (&json!(url), &json!("by you")));
    let all = [ada.get(&path).await, ada.get("/v1/webhooks").await];
    assert!(all.iter().all(|answer| !answer.text.contains(secret)), "a secret is told once");
    assert_eq!(ada.delete(&path).await.status, 204);
    ada.get(&path).await.problem(404, "webhook.not_found");

    // Of a key that speaks for one agent or one user, webhooks are no business.
    ada.agent("clerk", &[]).await;
    let bound = json!({"name": "bound", "scopes": ["admin"], "agents": ["clerk"]});
    let minted = ada.post("/v1/api-keys", bound).await;
    if minted.status == 201 {
        let bound = app.client(minted.json()["key"].as_str().unwrap());
        assert_eq!(bound.get("/v1/webhooks").await.status, 403);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_background_run_ends_at_its_webhook() {
    let outside = Outside::start(|_| Reply::text("")).await;
    let app = TestApp::with_egress(vec![outside.address]).await;
    let ada = app.tenant("ada").await;
    let events = ["run.completed", "tool_version.ready", "tool_version.rejected"];
    let made = ada.post("/v1/webhooks", json!({"url": outside.url("/hook"), "events": events})).await.created();
    let webhook = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());

    ada.upload("echo", component("echo")).await.created();
    let told = verified(&heard(&outside, 1).await[0], &made["secret"]);
    assert_eq!((&told["type"], &told["data"]["tool"]), (&json!("tool_version.ready"), &json!("echo")));
    ada.upload("bad", "not a component").await.problem(422, "tool_version.rejected");
    let told = verified(&heard(&outside, 2).await[1], &made["secret"]);
    assert_eq!((&told["type"], &told["data"]["status"]), (&json!("tool_version.rejected"), &json!("rejected")));

    ada.agent("clerk", &["echo"]).await;
    let said = json!({"message": "/echo__run {\"x\": 1}", "background": true, "metadata": {"order": 7}});
    let accepted = ada.post("/v1/agents/clerk/chat", said).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let run = accepted.json()["run"]["id"].clone();
    let asked = heard(&outside, 3).await.remove(2);
    let told = verified(&asked, &made["secret"]);
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/hook"));
    assert_eq!((&told["type"], &told["data"]["run"]["id"]), (&json!("run.completed"), &run));
    assert_eq!(told["data"]["run"]["metadata"], json!({"order": 7}));
    let run = ada.get(&format!("/v1/runs/{}", run.as_str().unwrap())).await.ok();
    assert_eq!((&told["data"]["run"]["cost"], &run["status"]), (&run["cost"], &json!("completed")));
    assert!(told["data"]["message"]["content"].as_str().is_some_and(|said| !said.is_empty()), "{told}");

    // It is listed, with what it told; and sent again when asked, as the same notice.
    let delivered = delivery(&ada, &webhook, "delivered").await;
    assert_eq!((&delivered["event"], &delivered["attempts"]), (&json!("run.completed"), &json!(1)));
    assert_eq!(delivered["last_attempt"]["response_status"], 200);
    let path = format!("{webhook}/deliveries/{}", delivered["id"].as_str().unwrap());
    assert_eq!(ada.get(&path).await.ok()["data"], told["data"]);
    assert_eq!(ada.get(&format!("{webhook}/deliveries?status=failed")).await.ok()["data"], json!([]));
    let rotated = ada.post(&format!("{webhook}/rotate-secret"), json!({})).await.ok();
    assert!(rotated["previous_secret_until"].is_string());
    ada.post(&format!("{path}/redeliver"), json!({})).await.ok();
    let again = heard(&outside, 4).await.remove(3);
    assert_eq!(again.headers["webhook-id"], asked.headers["webhook-id"]);
    assert!(verifies(&again, &made["secret"]) && verifies(&again, &rotated["secret"]), "both sign for a day");
    ada.get(&format!("{webhook}/deliveries/evt_{}", "0".repeat(32))).await.problem(404, "delivery.not_found");
    ada.get(&format!("{webhook}/deliveries/x")).await.problem(404, "delivery.not_found");
    app.stop().await;
}

#[tokio::test]
async fn notices_outlive_the_process_that_wrote_them() {
    let outside = Outside::start(|_| Reply::text("")).await;
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let ada = app.tenant("ada").await;
    // Only the next process may reach the receiver.
    let made = json!({"url": format!("http://{NOBODY}/"), "events": ["run.completed"]});
    let made = ada.post("/v1/webhooks", made).await.created();
    let webhook = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    ada.patch(&webhook, json!({"enabled": true})).await.ok();
    ada.agent("clerk", &[]).await;
    ada.chat("clerk", "hello").await;
    let key = ada.key.clone();
    let db = app.stop().await;

    let app = TestApp::on(db, kit::master_key(), vec![outside.address]).await;
    let ada = app.client(&key);
    ada.patch(&webhook, json!({"url": outside.url("/"), "enabled": false})).await.ok();
    ada.patch(&webhook, json!({"enabled": true})).await.ok();
    let told = verified(&heard(&outside, 1).await[0], &made["secret"]);
    assert_eq!(told["data"]["run"]["status"], "completed");
    delivery(&ada, &webhook, "delivered").await;
    app.stop().await;
}
