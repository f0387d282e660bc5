//! Every kind of provider, from the request to the bill: Anthropic, Gemini, images in and out, the platform's own.

use std::collections::BTreeMap;

use model_providers::{Endpoint, EndpointKind, KeyOf};
use serde_json::{Value, json};

use super::{
    KEY, Stage,
    upstream::{STREAM, Script, Upstream},
};
use crate::app::{Client, TestApp, component};

const ANTHROPIC: &str = include_str!("../../../../../host/model-providers/tests/streams/anthropic-thinking.sse");
const GEMINI: &str = include_str!("../../../../../host/model-providers/tests/streams/gemini.sse");
const IMAGES: &str = include_str!("../../../../../host/model-providers/tests/streams/images.sse");
const IMAGE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

fn recorded(stream: &str) -> Script {
    Script::raw(format!("{STREAM}{stream}"))
}

/// Anthropic's answer in words, with what it read from its cache beside the input.
fn anthropic_says(text: &str, input: u64, cached: u64, output: u64) -> Script {
    let events = [
        json!({"type": "message_start", "message": {"usage": {"input_tokens": input, "cache_read_input_tokens": cached, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": output}}),
        json!({"type": "message_stop"}),
    ];
    let event = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
    recorded(&events.iter().map(event).collect::<String>())
}

/// What was billed, by provider, kind and quantity, each with its price.
async fn billed(client: &Client) -> Vec<String> {
    let events = client.get("/v1/usage/events?limit=100").await.ok();
    let of_models = events["data"].as_array().unwrap().iter().filter(|event| event["provider"].is_string());
    let mut lines: Vec<String> = of_models
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap().to_owned();
            format!(
                "{}/{} {} {} at {}",
                text("provider"),
                text("model"),
                text("kind"),
                text("quantity"),
                text("unit_price")
            )
        })
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn anthropic_calls_tools_and_gets_its_thoughts_back_which_nobody_else_sees() {
    let stage = Stage::set().await;
    let Stage { app, ada, upstream } = &stage;
    let base_url = format!("http://{}", upstream.address);
    let key = json!({"kind": "anthropic", "api_key": KEY, "base_url": base_url});
    let stored = ada.put("/v1/provider-keys/claude", key).await.created();
    assert_eq!(stored["kind"], "anthropic");
    let model = json!({"provider": "claude", "name": "claude-opus-4-5", "options": {"thinking": {"type": "enabled", "budget_tokens": 1024}}});
    stage.agent("clerk", model, json!({})).await;
    upstream.then(recorded(ANTHROPIC)).then(anthropic_says("It is 37.5.", 100, 400, 9));
    let turn = ada.post("/v1/agents/clerk/chat", json!({"message": "12.5 * 3?", "context": {"who": "Ada"}})).await.ok();
    assert_eq!(turn["message"]["content"], "It is 37.5.", "{turn}");
    assert_eq!(turn["tool_calls"][0]["outcome"]["content"][0]["text"], "37.5");

    let asked = upstream.asked();
    let [first, second] = asked.as_slice() else { panic!("{asked:?}") };
    for request in &asked {
        assert_eq!(request.line, "POST /v1/messages HTTP/1.1");
        assert_eq!(
            (&request.headers["x-api-key"], request.headers.contains_key("authorization")),
            (&KEY.to_owned(), false)
        );
        assert_eq!((&request.body["max_tokens"], &request.body["system"]), (&json!(9216), &json!("You help Ada.")));
        assert_eq!(request.body["tools"][0]["name"], "calc__evaluate");
    }
    assert_eq!(first.body["messages"].as_array().unwrap().len(), 1);
    let said = second.body["messages"][1]["content"].as_array().unwrap();
    let kinds: Vec<_> = said.iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "redacted_thinking", "tool_use"]);
    assert_eq!(said[0]["signature"], "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds");
    let result = json!({"type": "tool_result", "tool_use_id": "toolu_01XcZb5Ls8Kq2HcXz7Yw4Pd0", "content": "37.5"});
    assert_eq!(second.body["messages"][2], json!({"role": "user", "content": [result]}));

    // The next turn brings them again: they are kept. No answer shows them.
    upstream.then(anthropic_says("Gladly.", 10, 0, 2));
    let again = json!({"message": "Thanks", "conversation_id": turn["conversation_id"], "context": {"who": "Ada"}});
    let again = ada.post("/v1/agents/clerk/chat", again).await.ok();
    let asked = upstream.asked();
    assert_eq!(asked[0].body["messages"][1]["content"][0]["type"], "thinking");
    let messages = ada.get(&format!("/v1/conversations/{}/messages", turn["conversation_id"].as_str().unwrap())).await;
    let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await;
    for told in [turn.to_string(), again.to_string(), messages.text, run.text] {
        assert!(
            !told.contains("better ask the tool") && !told.contains("EqQBCgIY") && !told.contains("reasoning\""),
            "{told}"
        );
    }
    let stored: Vec<String> = sqlx::query_scalar("SELECT parts::text FROM belljar.message")
        .fetch_all(&mut app.db.superuser().await)
        .await
        .unwrap();
    assert!(stored.iter().any(|parts| parts.contains("EqQBCgIY")));

    // What the cache held is priced apart, at the platform's fee for a key of the tenant's own.
    let bill = billed(ada).await;
    assert_eq!(
        bill.iter().filter(|line| line.contains("model_cached_input_tokens 400 at 0.1")).count(),
        1,
        "{bill:#?}"
    );
    assert!(bill.iter().all(|line| line.starts_with("own:claude/claude-opus-4-5 ")), "{bill:#?}");
}

#[tokio::test]
async fn gemini_gets_its_signatures_back() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let key =
        json!({"kind": "gemini", "api_key": KEY, "base_url": format!("http://{}/v1beta/openai", upstream.address)});
    ada.put("/v1/provider-keys/google", key).await.created();
    stage.agent("clerk", json!("google/gemini-3-flash-preview"), json!({})).await;
    upstream.then(recorded(GEMINI)).then(Script::says(&["It is 37.5."], 50, 0, 5));
    let turn = ada.chat("clerk", "12.5 * 3? And when?").await;
    assert_eq!(turn["message"]["content"], "It is 37.5.", "{turn}");
    assert_eq!(turn["tool_calls"].as_array().unwrap().len(), 2, "{turn}");
    let asked = upstream.asked();
    assert_eq!(asked[0].line, "POST /v1beta/openai/chat/completions HTTP/1.1");
    let calls = asked[1].body["messages"][2]["tool_calls"].as_array().unwrap();
    let signature = |call: &Value| call["extra_content"]["google"]["thought_signature"].as_str().unwrap().to_owned();
    assert_eq!(signature(&calls[0]), "EjQKMgEMOdbHJChLX75QUCJjyYlmWq0aQ3mBfTQw0yHkXzJv4cN5tY8=");
    assert_eq!(calls[0]["function"]["arguments"], "{\"expression\":\"12.5 * 3\"}");
    // What it thought is in its total alone, and was paid for.
    assert_eq!(turn["run"]["usage"]["output_tokens"], 228 + 5, "{turn}");
}

#[tokio::test]
async fn images_go_in_and_come_out() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let model = json!({"provider": "acme", "name": "image-model", "options": {"modalities": ["image", "text"]}});
    stage.agent("painter", model, json!({})).await;
    upstream.then(recorded(IMAGES));
    let image = json!({"type": "image", "media_type": "image/png", "data": IMAGE});
    let said = json!({"message": [{"type": "text", "text": "Paint it red"}, image]});
    let turn = ada.post("/v1/agents/painter/chat", said).await.ok();
    let text = json!({"type": "text", "text": "Here it is."});
    assert_eq!(
        (&turn["message"]["content"], &turn["message"]["parts"]),
        (&json!("Here it is."), &json!([text, image]))
    );
    let asked = upstream.asked();
    assert_eq!(asked[0].body["modalities"], json!(["image", "text"]));
    let url = format!("data:image/png;base64,{IMAGE}");
    let sent = json!([{"type": "text", "text": "Paint it red"}, {"type": "image_url", "image_url": {"url": url}}]);
    assert_eq!(asked[0].body["messages"][1]["content"], sent);

    let path = format!("/v1/conversations/{}/messages", turn["conversation_id"].as_str().unwrap());
    let messages = ada.get(&path).await.ok();
    assert_eq!((&messages["data"][0]["parts"][1], &messages["data"][1]["parts"][1]), (&image, &image));
    upstream.then(Script::says(&["You are welcome."], 10, 0, 3));
    let again = json!({"message": "Thanks", "conversation_id": turn["conversation_id"]});
    ada.post("/v1/agents/painter/chat", again).await.ok();
    assert_eq!(upstream.asked()[0].body["messages"][2]["content"], "Here it is.");
}

#[tokio::test]
async fn the_model_that_answered_has_its_price_and_the_platform_is_named_when_its_key_is_wrong() {
    let upstream = Upstream::start().await;
    let endpoint = |kind| Endpoint {
        kind,
        base_url: Some(upstream.base_url()),
        api_key: "sk-of-the-platform".to_owned().into(),
        key_of: KeyOf::Platform,
    };
    let app = TestApp::with_platform(BTreeMap::from([
        ("openai".to_owned(), endpoint(EndpointKind::Openai)),
        ("anthropic".to_owned(), endpoint(EndpointKind::Anthropic)),
    ]))
    .await;
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    let models = ada.get("/v1/models").await.ok().to_string();
    assert!(models.contains("\"anthropic/claude-sonnet") || models.contains("\"anthropic/*\""), "{models}");
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "gpt-4o", "fallback_models": ["anthropic/claude-sonnet-4-5"]});
    ada.post("/v1/agents", agent).await.created();
    let no = json!({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}});
    let refused = || Script::refusal("401 Unauthorized", "", &no);
    upstream.then(refused()).then(anthropic_says("I am Claude.", 60, 40, 10));
    let turn = ada.chat("clerk", "Who are you?").await;
    assert_eq!(turn["message"]["content"], "I am Claude.", "{turn}");
    let asked = upstream.asked();
    assert_eq!(asked[1].headers["x-api-key"], "sk-of-the-platform");
    assert_eq!(
        billed(&ada).await,
        [
            "anthropic/claude-sonnet-4-5 model_cached_input_tokens 40 at 0.3",
            "anthropic/claude-sonnet-4-5 model_input_tokens 60 at 3",
            "anthropic/claude-sonnet-4-5 model_output_tokens 10 at 15",
        ]
    );
    assert_eq!(turn["run"]["cost"]["amount"], "0.000342");

    let refusal = json!({"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}});
    upstream.then(refused()).then(Script::refusal("401 Unauthorized", "", &refusal));
    let turn = ada.chat("clerk", "Who are you?").await;
    let error = &turn["run"]["error"];
    assert_eq!(error["code"], "provider.key_refused", "{turn}");
    let words = error["detail"].as_str().unwrap();
    assert!(words.contains("`openai`") && words.contains("operator") && !words.contains("sk-of"), "{words}");
}

#[tokio::test]
async fn a_provider_in_trouble_is_left_alone_for_whom_it_fails() {
    let stage = Stage::set().await;
    let Stage { app, ada, upstream } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({"fallback_models": ["demo"]})).await;
    stage.agent("alone", json!("acme/m-1"), json!({})).await;
    let broken = || Script::refusal("503 Service Unavailable", "", &json!({"error": {"message": "down"}}));
    // Three tries of one run, two of the next: then it is asked no more.
    for _ in 0..5 {
        upstream.then(broken());
    }
    for _ in 0..3 {
        let turn = ada.chat("clerk", "What is 6 * 7?").await;
        assert_eq!(turn["message"]["content"], "calc__evaluate says: 42", "{turn}");
    }
    assert_eq!(upstream.asked().len(), 5);
    let turn = ada.chat("alone", "Hi").await;
    assert_eq!(turn["run"]["error"]["code"], "provider.circuit_open", "{turn}");
    assert!(turn["run"]["error"]["detail"].as_str().unwrap().contains("more seconds"), "{turn}");
    assert_eq!(turn["run"]["cost"]["amount"], "0");

    let bob = app.tenant("bob").await;
    super::provider(&bob, "acme", &upstream.base_url()).await.created();
    bob.post("/v1/agents", json!({"name": "clerk", "system_prompt": "", "model": "acme/m-1"})).await.created();
    upstream.then(Script::says(&["Hello Bob."], 10, 0, 2));
    assert_eq!(bob.chat("clerk", "Hi").await["message"]["content"], "Hello Bob.");
}
