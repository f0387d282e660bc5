//! `X-Provider-Key`: a key for one run, which nobody keeps.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    KEY, Stage,
    upstream::{STREAM, Script, delta},
};
use crate::app::{Answer, Client};

const BROUGHT: &str = "sk-brought-by-one-request";

async fn chat_with_key(client: &Client, agent: &str, body: Value) -> Answer {
    let path = format!("/v1/agents/{agent}/chat");
    Answer::of(client.request(Method::POST, &path).header("x-provider-key", BROUGHT).json(&body)).await
}

/// The runs that still have a key.
async fn keys_kept(stage: &Stage) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM belljar.run WHERE provider_key IS NOT NULL OR provider_key_version IS NOT NULL",
    )
    .fetch_one(&mut stage.app.db.superuser().await)
    .await
    .unwrap()
}

#[tokio::test]
async fn it_is_used_for_one_run_kept_sealed_and_erased_with_its_end() {
    let stage = Stage::set().await;
    let Stage { app, ada, upstream } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({})).await;
    // While the model answers, the key is there, and cannot be read.
    upstream.then(Script::hang(format!("{STREAM}data: {}\n\n", delta(json!({"content": "I think"})))));
    let body = json!({"message": "Hi", "stream": true});
    let request = ada.request(Method::POST, "/v1/agents/clerk/chat").header("x-provider-key", BROUGHT);
    let mut told = request.json(&body).send().await.unwrap();
    let mut events = String::new();
    while !events.contains("I think") {
        events += std::str::from_utf8(&told.chunk().await.unwrap().unwrap()).unwrap();
    }
    let run = events.split("\"run_id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert_eq!(keys_kept(&stage).await, 1);
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT r::text FROM belljar.run r").fetch_all(&mut app.db.superuser().await).await.unwrap();
    let in_hex: String = BROUGHT.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert!(rows.iter().all(|row| !row.contains(BROUGHT) && !row.contains(&in_hex)), "it is sealed");
    let cancelled = ada.post(&format!("/v1/runs/{run}/cancel"), json!({})).await;
    assert!(cancelled.status < 300, "{}", cancelled.text);
    while let Some(piece) = told.chunk().await.unwrap() {
        events += std::str::from_utf8(&piece).unwrap();
    }
    assert!(events.contains("event: run.cancelled") && !events.contains(BROUGHT), "{events}");
    assert_eq!(keys_kept(&stage).await, 0);
    upstream.asked();

    upstream.then(Script::says(&["Hello."], 100, 0, 2));
    let turn = chat_with_key(ada, "clerk", json!({"message": "Hi"})).await;
    assert!(!turn.text.contains(BROUGHT), "{}", turn.text);
    assert_eq!(turn.ok()["message"]["content"], "Hello.");
    assert_eq!(upstream.asked()[0].headers["authorization"], format!("Bearer {BROUGHT}"));
    assert_eq!(keys_kept(&stage).await, 0);
    let events = ada.get("/v1/usage/events").await.ok();
    let models: Vec<_> = events["data"].as_array().unwrap().iter().map(|event| &event["provider"]).collect();
    assert!(models.iter().all(|provider| **provider == "own:acme"), "{events}");

    // The next run has the stored one again.
    upstream.then(Script::says(&["Hello."], 100, 0, 2));
    ada.chat("clerk", "Hi").await;
    assert_eq!(upstream.asked()[0].headers["authorization"], format!("Bearer {KEY}"));
}

#[tokio::test]
async fn it_goes_to_the_provider_of_the_agents_model_and_to_no_other() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    super::provider(ada, "second", &upstream.base_url()).await.created();
    let models = json!({"fallback_models": ["second/m-2", "acme/m-3"]});
    stage.agent("clerk", json!("acme/m-1"), models).await;
    let refused = || Script::refusal("401 Unauthorized", "", &json!({"error": {"message": format!("not {BROUGHT}")}}));
    upstream.then(refused()).then(refused()).then(refused());
    let turn = chat_with_key(ada, "clerk", json!({"message": "Hi"})).await;
    assert!(!turn.text.contains(BROUGHT), "{}", turn.text);
    let error = turn.ok()["run"]["error"].clone();
    assert_eq!(error["code"], "provider.key_refused");
    assert!(error["detail"].as_str().unwrap().contains("`X-Provider-Key`"), "{error}");
    let keys: Vec<String> = upstream.asked().iter().map(|asked| asked.headers["authorization"].clone()).collect();
    assert_eq!(keys, [format!("Bearer {BROUGHT}"), format!("Bearer {KEY}"), format!("Bearer {BROUGHT}")]);
    assert_eq!(keys_kept(&stage).await, 0, "a run that failed keeps none either");

    // The demo model needs none, and a provider that nobody knows has no address to send it to.
    stage.agent("demo", json!("demo"), json!({})).await;
    let turn = chat_with_key(ada, "demo", json!({"message": "What is 6 * 7?"})).await.ok();
    assert_eq!(turn["message"]["content"], "calc__evaluate says: 42");
    stage.agent("lost", json!("nowhere/m"), json!({})).await;
    let turn = chat_with_key(ada, "lost", json!({"message": "Hi"})).await.ok();
    assert_eq!(turn["run"]["error"]["code"], "provider.unknown", "{turn}");
    assert_eq!((upstream.asked().len(), keys_kept(&stage).await), (0, 0));
}

#[tokio::test]
async fn what_is_no_key_begins_no_run() {
    let stage = Stage::set().await;
    let Stage { ada, .. } = &stage;
    ada.agent("clerk", &[]).await;
    for wrong in ["", "two words", &"k".repeat(4097)] {
        let request = ada.request(Method::POST, "/v1/agents/clerk/chat").header("x-provider-key", wrong);
        Answer::of(request.json(&json!({"message": "Hi"}))).await.problem(422, "provider_key.bad_key");
    }
    assert_eq!(ada.get("/v1/runs").await.ok()["data"], json!([]));
}
