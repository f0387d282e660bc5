//! Invariant 3 with a real kill: what was accepted is there, and nothing is charged twice.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};

use crate::process::Dev;

/// A lease lasts 15 s; whoever looks for abandoned runs looks every second.
const INTERRUPTED_SECONDS_MAX: u64 = 40;

/// The sum of all usage events equals the totals, and every cause is billed once.
async fn the_bill_adds_up(dev: &Dev) -> Value {
    let events = dev.get("/v1/usage/events?limit=100").await;
    let events = events["data"].as_array().unwrap();
    let report = dev.get("/v1/usage").await;
    assert_eq!(report["total"]["events"], events.len());
    let mut causes: Vec<String> =
        events.iter().map(|event| format!("{} {} {}", event["run_id"], event["call_id"], event["kind"])).collect();
    let all = causes.len();
    causes.sort();
    causes.dedup();
    // A run of one step has each kind of event once.
    assert_eq!(causes.len(), all, "{events:#?}");
    report["total"]["cost"]["amount"].clone()
}

#[tokio::test]
async fn a_killed_run_keeps_its_message_and_is_charged_for_nothing_that_was_not_committed() {
    let home = tempfile::tempdir().unwrap();
    let dev = Dev::start(home.path()).await;
    dev.upload("sleep_long").await;
    dev.agent("sleeper", &["sleep-long", "calc"]).await;

    let chat = |message: &str| dev.post("/v1/agents/sleeper/chat", json!({"message": message}));
    let done: Value = chat("hello").send().await.unwrap().json().await.unwrap();
    assert_eq!(done["run"]["status"], "completed");
    let conversation = done["conversation_id"].as_str().unwrap().to_owned();
    let cost = the_bill_adds_up(&dev).await;

    // Killed while the tool sleeps: accepted, told to have begun, not answered.
    let turn =
        json!({"message": "/sleep-long__run {\"seconds\": 30}", "conversation_id": conversation, "stream": true});
    let stream = dev.post("/v1/agents/sleeper/chat", turn).send().await.unwrap();
    assert_eq!(stream.status().as_u16(), 200);
    let (mut bytes, mut seen) = (stream.bytes_stream(), String::new());
    while !seen.contains("tool_call.started") {
        seen.push_str(&String::from_utf8_lossy(&bytes.next().await.unwrap().unwrap()));
    }
    dev.kill();

    let dev = Dev::start(home.path()).await;
    let messages = dev.get(&format!("/v1/conversations/{conversation}/messages")).await;
    let said: Vec<&str> =
        messages["data"].as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(said, ["user", "assistant", "user"], "both turns' messages are there: {messages}");
    assert_eq!(the_bill_adds_up(&dev).await, cost, "what was not committed is not charged");

    // No conversation stays busy.
    let began = Instant::now();
    let runs = format!("/v1/runs?conversation={conversation}&limit=1");
    loop {
        let run = dev.get("/v1/runs?limit=1").await["data"][0].clone();
        if run["status"] != "running" {
            assert_eq!(
                (run["status"].as_str(), run["stop_reason"].as_str()),
                (Some("failed"), Some("interrupted")),
                "{run}"
            );
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(INTERRUPTED_SECONDS_MAX), "still running: {runs}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let again = json!({"message": "/calc__evaluate {\"expression\": \"6*7\"}", "conversation_id": conversation});
    let answer: Value = dev.post("/v1/agents/sleeper/chat", again).send().await.unwrap().json().await.unwrap();
    assert!(answer["message"]["content"].as_str().unwrap().contains("42"), "{answer}");
    assert_eq!(dev.stop(), Some(0));
}

#[tokio::test]
async fn a_turn_that_was_answered_202_is_there_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let dev = Dev::start(home.path()).await;
    let mut conversations = Vec::new();
    for n in 0..5 {
        let turn = json!({"message": format!("message {n}"), "background": true});
        let answer = dev.post("/v1/agents/assistant/chat", turn).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
        let run: Value = answer.json().await.unwrap();
        conversations.push(run["conversation_id"].as_str().unwrap().to_owned());
    }
    dev.kill();
    let dev = Dev::start(home.path()).await;
    for (n, conversation) in conversations.iter().enumerate() {
        let messages = dev.get(&format!("/v1/conversations/{conversation}/messages")).await;
        assert_eq!(messages["data"][0]["content"], format!("message {n}"));
    }
    the_bill_adds_up(&dev).await;
}
