//! Turns that cannot be taken: each is told why and where, and nothing is kept of it.

use reqwest::Method;
use serde_json::{Value, json};

use super::{clerk, say};
use crate::app::{Answer, TestApp};

const UNKNOWN: &str = "conv_0192f0c1d2e37f008000000000000001";

#[tokio::test]
async fn a_turn_that_cannot_be_taken_is_told_why_and_where() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let known = ada.chat("clerk", "Hi").await["conversation_id"].clone();
    let user = json!({"role": "user", "content": "Hi"});
    let model = json!({"role": "assistant", "content": "Hello."});
    let says = |role: &str| json!({"role": role, "content": "x"});
    let image = |media_type: &str, data: &str| json!([{"type": "image", "media_type": media_type, "data": data}]);
    for (body, code, pointer) in [
        (json!({}), "chat.invalid", "/message"),
        (json!({"message": ""}), "chat.invalid", "/message"),
        (json!({"message": []}), "chat.invalid", "/message"),
        (json!({"message": "Hi", "messages": [user]}), "chat.invalid", "/messages"),
        (json!({"messages": [user, model]}), "chat.invalid", "/messages/1/role"),
        (json!({"messages": [says("system"), user]}), "chat.role_not_allowed", "/messages/0/role"),
        (json!({"messages": [user, says("developer"), user]}), "chat.role_not_allowed", "/messages/1/role"),
        (json!({"messages": [says("tool"), user]}), "chat.role_not_allowed", "/messages/0/role"),
        (json!({"messages": [user, model, user], "conversation_id": known}), "chat.history_resent", "/messages/1/role"),
        (json!({"message": [{"type": "audio", "data": "aGk="}]}), "request.invalid", "/message/0/type"),
        (
            json!({"message": [{"type": "image", "url": "https://example.com/a.png"}]}),
            "request.invalid",
            "/message/0/url",
        ),
        (json!({"message": [{"type": "text", "text": "Hi", "data": "aGk="}]}), "request.invalid", "/message/0"),
        (json!({"message": [{"type": "text", "text": "Hi"}, {"type": "text"}]}), "request.invalid", "/message/1"),
        (json!({"message": image("image/svg+xml", "aGk=")}), "chat.invalid", "/message/0"),
        (json!({"message": image("image/png", "not base64")}), "chat.invalid", "/message/0"),
        (json!({"message": 7}), "request.invalid", "/message"),
        (json!({"message": "Hi", "colour": "red"}), "request.invalid", "/colour"),
        (json!({"message": "Hi", "conversation_id": "conv_1"}), "request.invalid", "/conversation_id"),
        (json!({"message": "Hi", "context": {"n": 1}}), "request.invalid", "/context/n"),
        (json!({"message": "Hi", "context": {"n": "x".repeat(17_000)}}), "chat.invalid", "/context"),
        (json!({"message": "Hi", "metadata": {"n": "x".repeat(17_000)}}), "chat.invalid", "/metadata"),
        (json!({"message": "Hi", "stream": true, "background": true}), "chat.stream_in_background", "/stream"),
    ] {
        let problem = say(&ada, body.clone()).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
        assert!(!problem["errors"][0]["detail"].as_str().unwrap().is_empty());
    }
    let in_unknown = json!({"message": "Hi", "conversation_id": UNKNOWN});
    say(&ada, in_unknown).await.problem(404, "conversation.not_found");
    say(&ada, json!({"message": "Hi", "revision": 7})).await.problem(404, "revision.not_found");
    ada.post("/v1/agents/nobody/chat", json!({"message": "Hi"})).await.problem(404, "agent.not_found");
    let with_key = ada.request(Method::POST, "/v1/agents/clerk/chat").header("x-provider-key", "sk 1");
    Answer::of(with_key.json(&json!({"message": "Hi"}))).await.problem(422, "provider_key.bad_key");

    let count = async |list: &str| ada.get(list).await.ok()["data"].as_array().unwrap().len();
    assert_eq!((count("/v1/runs").await, count("/v1/conversations").await), (1, 1), "nothing is kept of them");
    let messages = ada.get(&format!("/v1/conversations/{}/messages", known.as_str().unwrap())).await.ok();
    assert_eq!(messages["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_conversation_stays_with_its_agent() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    ada.agent("other", &[]).await;
    let conversation = ada.chat("clerk", "Hi").await["conversation_id"].clone();
    let body = json!({"message": "Hi", "conversation_id": conversation});
    ada.post("/v1/agents/other/chat", body.clone()).await.problem(422, "conversation.other_agent");
    say(&ada, body).await.ok();
}

#[tokio::test]
async fn a_broken_body_is_told_where_it_breaks() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let raw = async |kind: &str, body: Vec<u8>| {
        let request = ada.request(Method::POST, "/v1/agents/clerk/chat").header("content-type", kind);
        Answer::of(request.body(body)).await
    };
    for (body, pointer) in [
        (r#"{"message": "Hi""#, ""),
        (r#"{"message": "Hi" "stream": true}"#, ""),
        (r#"{"messages": [{"role": "user", "content": }]}"#, "/messages/0/content"),
        ("", ""),
        ("hello", ""),
        (r#"{"message": "Hi"} and more"#, ""),
    ] {
        let problem = raw("application/json", body.into()).await.problem(400, "request.bad_json");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("line 1 column"), "{body}: {problem}");
    }
    raw("application/json", b"{\"message\": \"\xff\"}".into()).await.problem(400, "request.bad_json");
    let deep = format!("{{\"metadata\": {{\"n\": {}", "[".repeat(1000));
    raw("application/json", deep.into()).await.problem(400, "request.bad_json");
    let problem = raw("application/json", br#"["Hi"]"#.into()).await.problem(422, "request.invalid");
    assert_eq!(problem["errors"][0]["pointer"], "", "{problem}");
    raw("text/plain", br#"{"message": "Hi"}"#.into()).await.problem(415, "request.unsupported_media_type");
    let many = format!("{{\"message\": \"Hi\", \"metadata\": {{\"n\": [{}1]}}}}", "1,".repeat(200_001));
    raw("application/json", many.into()).await.problem(422, "request.too_complex");
    assert_eq!(ada.get("/v1/runs").await.ok()["data"], json!([]));
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let large = |bytes: usize| Value::String("x".repeat(bytes));
    let problem = say(&ada, json!({"message": large(21 << 20)})).await.problem(413, "request.too_large");
    assert!(problem["detail"].as_str().unwrap().contains("20971520 bytes"), "{problem}");
    let agent = json!({"name": "big", "system_prompt": large(2 << 20), "model": "demo"});
    ada.post("/v1/agents", agent).await.problem(413, "request.too_large");
    // Of a length that nobody announced.
    let pieces = futures::stream::iter((0..22).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    let request = ada.request(Method::POST, "/v1/agents/clerk/chat").header("content-type", "application/json");
    Answer::of(request.body(reqwest::Body::wrap_stream(pieces))).await.problem(413, "request.too_large");
    assert_eq!(ada.chat("clerk", "What is 6 * 7?").await["message"]["content"], "calc__evaluate says: 42");
}
