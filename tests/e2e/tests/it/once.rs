//! A turn that is asked for again while the first request waits for it, and after.

use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::app::{Answer, Client, TestApp, events};

const SAID: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
    data: {\"choices\": [{\"index\": 0, \"delta\": {\"role\": \"assistant\", \"content\": \"hello\"}}]}\n\n\
    data: {\"choices\": [{\"index\": 0, \"delta\": {}, \"finish_reason\": \"stop\"}]}\n\n\
    data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 5, \"completion_tokens\": 1}}\n\n\
    data: [DONE]\n\n";

/// A model that answers when it is told to, and the agent that speaks through it.
async fn slow_model(client: &Client, listener: &TcpListener) {
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let key = json!({"kind": "openai_compatible", "api_key": "sk-slow", "base_url": url});
    client.put("/v1/provider-keys/acme", key).await.created();
    let agent = json!({"name": "clerk", "system_prompt": "You help.", "model": "acme/m-1"});
    client.post("/v1/agents", agent).await.created();
}

fn chat(client: &Client, body: &serde_json::Value) -> RequestBuilder {
    client.request(Method::POST, "/v1/agents/clerk/chat").header("idempotency-key", "one").json(body)
}

/// The model was asked: the run is durable, and goes on.
async fn asked(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    while !read.windows(8).any(|window| window == b"messages") {
        stream.read_buf(&mut read).await.unwrap();
    }
    stream
}

#[tokio::test]
async fn while_the_first_waits_the_second_is_told_to_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = TestApp::with_egress(vec![listener.local_addr().unwrap()]).await;
    let ada = app.tenant("ada").await;
    slow_model(&ada, &listener).await;
    let body = json!({"message": "hi"});
    let meanwhile = async {
        let mut model = asked(&listener).await;
        let second = Answer::of(chat(&ada, &body)).await;
        assert_eq!(second.headers["retry-after"], "1");
        second.problem(409, "idempotency_key.in_progress");
        let other = Answer::of(chat(&ada, &json!({"message": "bye"}))).await;
        other.problem(422, "idempotency_key.other_payload");
        model.write_all(SAID.as_bytes()).await.unwrap();
        model
    };
    let (first, _model) = tokio::join!(Answer::of(chat(&ada, &body)), meanwhile);
    let third = Answer::of(chat(&ada, &body)).await;
    assert_eq!((first.status, third.status), (200, 200), "{}", first.text);
    assert_eq!(first.text, third.text);
    assert_eq!(first.json()["message"]["content"], "hello");
    assert!(third.headers.contains_key("idempotent-replayed") && !first.headers.contains_key("idempotent-replayed"));
    assert_eq!(ada.get("/v1/runs").await.ok()["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_stream_that_broke_off_is_told_from_the_start_while_its_run_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = TestApp::with_egress(vec![listener.local_addr().unwrap()]).await;
    let ada = app.tenant("ada").await;
    slow_model(&ada, &listener).await;
    let body = json!({"message": "hi", "stream": true});
    let broken = chat(&ada, &body).send().await.unwrap();
    let mut model = asked(&listener).await;
    drop(broken);
    let again = chat(&ada, &body).send().await.unwrap();
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    model.write_all(SAID.as_bytes()).await.unwrap();
    let told = events(again).await;
    let kinds: Vec<&str> = told.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"run.started"), Some(&"run.completed")));
    assert_eq!(told.last().unwrap().2["message"]["content"], "hello");
    assert_eq!(ada.get("/v1/runs").await.ok()["data"].as_array().unwrap().len(), 1);
    app.stop().await;
}
