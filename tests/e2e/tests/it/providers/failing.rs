//! Providers that fail: what the run says, what it keeps, what it costs, and who is asked next.

use serde_json::{Value, json};

use super::{
    KEY, Stage, provider,
    upstream::{STREAM, Script, delta, fragment},
};

#[tokio::test]
async fn a_provider_that_fails_fails_the_run_with_a_code_and_costs_nothing() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({"limits": {"deadline_seconds": 60}})).await;
    let said = |words: &str| json!({"error": {"message": words, "type": "x"}});
    let status = |status: &str, headers: &str| Script::refusal(status, headers, &said("no"));
    let stream = |body: &str| Script::raw(format!("{STREAM}{body}"));
    let four_billion = fragment(4_294_967_295, json!({"id": "a", "function": {"name": "calc__evaluate"}}));
    let leaks = Script::refusal("400 Bad Request", "", &said(&format!("what is {KEY}?")));
    for (name, script, times, code, words) in [
        ("a wrong key", status("401 Unauthorized", ""), 1, "provider.key_refused", "provider key named `acme`"),
        (
            "too many requests",
            status("429 Too Many Requests", "retry-after: 0\r\n"),
            3,
            "provider.rate_limited",
            "try later",
        ),
        (
            "an hour's wait",
            status("429 Too Many Requests", "retry-after: 3600\r\n"),
            1,
            "provider.rate_limited",
            "try later",
        ),
        ("a failure", status("500 Internal Server Error", ""), 3, "provider.unavailable", "try again"),
        ("an unknown model", status("404 Not Found", ""), 1, "provider.model_not_found", "`m-1`"),
        ("our key in its words", leaks, 1, "provider.request_refused", "what is [key]?"),
        (
            "a page",
            Script::raw("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html></html>"),
            1,
            "provider.bad_stream",
            "base_url",
        ),
        (
            "a redirect",
            Script::raw("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"),
            1,
            "provider.bad_stream",
            "another address",
        ),
        ("garbage", stream("data: {\"choices\": 7}\n\n"), 1, "provider.bad_stream", "base_url"),
        (
            "bytes",
            Script::raw([STREAM.as_bytes(), b"data: \xff\xfe\n\n"].concat()),
            1,
            "provider.bad_stream",
            "base_url",
        ),
        ("a line without end", stream(&"x".repeat(1 << 20)), 1, "provider.bad_stream", "256 KiB"),
        (
            "a call's index of four billion",
            stream(&format!("data: {four_billion}\n\n")),
            1,
            "provider.bad_stream",
            "above 63",
        ),
        (
            "an error in the stream",
            stream(&format!("data: {}\n\n", said("overloaded"))),
            3,
            "provider.unavailable",
            "overloaded",
        ),
        ("a closed door", Script::raw(""), 3, "egress.connect_failed", "127.0.0.1"),
    ] {
        for _ in 0..times {
            upstream.then(script.clone());
        }
        let answer = ada.post("/v1/agents/clerk/chat", json!({"message": name})).await;
        assert!(!answer.text.contains(KEY), "{name}: {}", answer.text);
        let turn = answer.ok();
        let run = &turn["run"];
        assert_eq!((&run["status"], &run["stop_reason"]), (&json!("failed"), &json!("error")), "{name}: {turn}");
        assert_eq!(run["error"]["code"], code, "{name}: {turn}");
        assert!(run["error"]["detail"].as_str().unwrap().contains(words), "{name}: {turn}");
        assert_eq!(
            (&run["cost"]["amount"], &run["steps"], &turn["message"]),
            (&json!("0"), &json!(0), &Value::Null),
            "{name}"
        );
        assert_eq!(upstream.asked().len(), times, "{name}");

        // Nothing is lost: the message is kept, and the conversation can go on.
        let path = format!("/v1/conversations/{}/messages", turn["conversation_id"].as_str().unwrap());
        assert_eq!(ada.get(&path).await.ok()["data"][0]["content"], name);
        upstream.then(Script::says(&["Here I am."], 10, 0, 2));
        let again = json!({"message": "Hello?", "conversation_id": turn["conversation_id"]});
        let turn = ada.post("/v1/agents/clerk/chat", again).await.ok();
        assert_eq!(turn["message"]["content"], "Here I am.", "{name}: {turn}");
        upstream.asked();
    }
}

#[tokio::test]
async fn a_passing_failure_is_tried_again() {
    let stage = Stage::set().await;
    stage.agent("clerk", json!("acme/m-1"), json!({})).await;
    let no = json!({"error": {"message": "no"}});
    stage
        .upstream
        .then(Script::refusal("429 Too Many Requests", "retry-after: 0\r\n", &no))
        .then(Script::refusal("503 Service Unavailable", "", &no))
        .then(Script::says(&["Now."], 10, 0, 2));
    assert_eq!(stage.ada.chat("clerk", "Hi").await["message"]["content"], "Now.");
    assert_eq!(stage.upstream.asked().len(), 3);
}

#[tokio::test]
async fn a_provider_that_hangs_is_left_at_the_runs_deadline() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({"limits": {"deadline_seconds": 2}})).await;
    let partial = format!("{STREAM}data: {}\n\n", delta(json!({"content": "I think that"})));
    for (script, kept) in
        [(Script::hang(""), None), (Script::hang(STREAM), None), (Script::hang(partial), Some("I think that"))]
    {
        upstream.then(script);
        let turn = ada.chat("clerk", "Hi").await;
        let run = &turn["run"];
        assert_eq!((&run["status"], &run["stop_reason"]), (&json!("failed"), &json!("deadline")), "{turn}");
        assert_eq!(run["error"]["code"], "run.deadline", "{turn}");
        assert_eq!(turn["message"]["content"].as_str(), kept, "{turn}");
        upstream.asked();
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_kept_and_counted() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let fallback = json!({"fallback_models": ["demo"]});
    stage.agent("clerk", json!("acme/m-1"), fallback).await;
    let line = format!("data: {}\n\n", delta(json!({"content": "The answer is"})));
    // A connection that ends, and one that breaks in the middle of a chunk.
    let chunked = STREAM.replace("connection: close", "transfer-encoding: chunked");
    let broken = format!("{chunked}{:x}\r\n{line}\r\nff\r\ndata: ", line.len());
    let call = fragment(0, json!({"id": "a", "function": {"name": "calc__evaluate", "arguments": "{}"}}));
    let with_call = format!("{STREAM}{line}data: {call}\n\n");
    for script in [format!("{STREAM}{line}"), broken, with_call] {
        upstream.then(Script::raw(script));
        let told = ada.chat_stream("clerk", "Hi").await;
        let kinds: Vec<_> = told.iter().map(|(_, kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["run.started", "message.delta", "step.completed", "run.failed"]);
        let turn = &told[3].2;
        assert_eq!(turn["run"]["error"]["code"], "provider.cut_short", "{turn}");
        assert_eq!((&turn["message"]["content"], &turn["tool_calls"]), (&json!("The answer is"), &json!([])), "{turn}");
        assert!(turn["run"]["usage"]["input_tokens"].as_u64().unwrap() > 50, "{turn}");
        assert!(turn["run"]["usage"]["output_tokens"].as_u64().unwrap() >= 3, "{turn}");
        assert_ne!(turn["run"]["cost"]["amount"], "0");
        let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.ok();
        assert_eq!(run["timeline"][0]["model"], "acme/m-1", "what was said cannot be unsaid: no other model is asked");
        assert_eq!(upstream.asked().len(), 1);
    }
}

#[tokio::test]
async fn another_model_is_asked_when_the_first_fails_before_its_first_word() {
    let stage = Stage::set().await;
    let Stage { app, ada, upstream } = &stage;
    provider(ada, "second", &upstream.base_url()).await.created();
    let models = json!({"fallback_models": [{"provider": "second", "name": "m-2", "temperature": 0.5}, "demo"]});
    stage.agent("clerk", json!("acme/m-1"), models).await;
    let refused = || Script::refusal("401 Unauthorized", "", &json!({"error": {"message": "no"}}));
    upstream.then(refused()).then(Script::says(&["I am second."], 10, 0, 2));
    let turn = ada.chat("clerk", "What is 6 * 7?").await;
    assert_eq!(turn["message"]["content"], "I am second.");
    let asked = upstream.asked();
    assert_eq!((&asked[0].body["model"], &asked[0].body["temperature"]), (&json!("m-1"), &Value::Null));
    assert_eq!((&asked[1].body["model"], &asked[1].body["temperature"]), (&json!("m-2"), &json!(0.5)));
    let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.ok();
    assert_eq!(run["timeline"][0]["model"], "second/m-2");
    let events = ada.get("/v1/usage/events").await.ok();
    assert!(events["data"].as_array().unwrap().iter().all(|event| event["provider"] == "own:second"), "{events}");

    // Each step asks the first one again.
    upstream.then(refused()).then(refused()).then(refused()).then(refused());
    let turn = ada.chat("clerk", "What is 6 * 7?").await;
    assert_eq!(turn["message"]["content"], "calc__evaluate says: 42", "the demo model is the last");
    assert_eq!(upstream.asked().len(), 4);

    // A stranger has no such provider, whatever name it is given.
    let bob = app.tenant("bob").await;
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "acme/m-1"});
    bob.post("/v1/agents", agent).await.created();
    assert_eq!(bob.chat("clerk", "Hi").await["run"]["error"]["code"], "provider.unknown");
}
