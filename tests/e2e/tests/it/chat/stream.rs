//! A turn as a stream of events: in order, resumable anywhere, ended once.

use reqwest::Method;
use serde_json::{Value, json};

use super::{clerk, ended, say};
use crate::app::{Client, TestApp, events};

type Event = (String, String, Value);

/// An event's id as numbers: `n` or `n.offset`.
fn place(id: &str) -> (u32, u64) {
    let (n, offset) = id.split_once('.').unwrap_or((id, "0"));
    (n.parse().unwrap(), offset.parse().unwrap())
}

/// The text of all deltas.
fn text(events: &[Event]) -> String {
    let deltas = events.iter().filter(|(_, kind, _)| kind == "message.delta");
    deltas.map(|(.., data)| data["text"].as_str().unwrap()).collect()
}

/// All but the deltas, which may be cut elsewhere the next time.
fn stored(events: &[Event]) -> Vec<Event> {
    events.iter().filter(|(_, kind, _)| kind != "message.delta").cloned().collect()
}

fn kinds(events: &[Event]) -> Vec<&str> {
    let mut kinds: Vec<_> = events.iter().map(|(_, kind, _)| kind.as_str()).collect();
    kinds.dedup_by(|a, b| a == b && *a == "message.delta");
    kinds
}

async fn resumed(client: &Client, run: &str, after: &str) -> Vec<Event> {
    let request = client.request(Method::GET, &format!("/v1/runs/{run}/events")).header("last-event-id", after);
    events(request.send().await.unwrap()).await
}

#[tokio::test]
async fn events_come_in_order_and_end_once() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let told = ada.chat_stream("clerk", "What is 12.5 * 3?").await;
    assert_eq!(
        kinds(&told),
        [
            "run.started",
            "tool_call.started",
            "tool_call.completed",
            "step.completed",
            "message.delta",
            "step.completed",
            "run.completed"
        ]
    );
    let places: Vec<_> = told.iter().map(|(id, ..)| place(id)).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    let run = told[0].2["run"]["id"].as_str().unwrap().to_owned();
    for (id, kind, data) in &told {
        assert_eq!((&data["run_id"], &data["seq"]), (&json!(run), &json!(place(id).0)), "{kind}: {data}");
    }
    let (started, completed) = (&told[1].2, &told[2].2);
    assert_eq!((&started["tool"], &started["function"]), (&json!("calc"), &json!("evaluate")));
    assert_eq!(started["arguments"], json!({"expression": "12.5 * 3"}));
    assert_eq!((&completed["id"], &completed["outcome"]["status"]), (&started["id"], &json!("ok")));
    assert!(completed["receipt"]["fuel_used"].as_u64().unwrap() > 0, "{completed}");
    assert_eq!((&told[3].2["step"], &told[0].2["conversation_id"]), (&json!(1), &told[0].2["run"]["conversation_id"]));
    assert!(told[3].2["usage"]["input_tokens"].as_u64().unwrap() > 0 && told[3].2["cost"]["currency"] == "USD");

    // The last event has the body of the JSON form.
    let body = &told.last().unwrap().2;
    assert_eq!(text(&told), body["message"]["content"].as_str().unwrap());
    assert!(told.iter().filter(|(_, kind, _)| kind == "message.delta").count() > 1, "the text came in pieces");
    for (_, kind, data) in &told {
        assert!(kind != "message.delta" || data["message_id"] == body["message"]["id"], "{data}");
    }
    let mut run = ada.get(&format!("/v1/runs/{run}")).await.ok();
    for detail in ["timeline", "resumes"] {
        run.as_object_mut().unwrap().remove(detail);
    }
    assert_eq!(body["run"], run);
    let call = &body["tool_calls"][0];
    assert_eq!(ada.get(&format!("/v1/tool-calls/{}", call["id"].as_str().unwrap())).await.ok(), *call);
    assert_eq!((&call["outcome"], &call["receipt"]), (&completed["outcome"], &completed["receipt"]));
    let fields = |body: &Value, extra: &[&str]| -> Vec<String> {
        body.as_object().unwrap().keys().filter(|name| !extra.contains(&name.as_str())).cloned().collect()
    };
    let json_form = ada.chat("clerk", "What is 12.5 * 3?").await;
    assert_eq!(fields(body, &["run_id", "seq"]), fields(&json_form, &[]));
    assert_eq!(body["message"]["content"], json_form["message"]["content"]);
}

#[tokio::test]
async fn a_stream_is_resumed_anywhere_with_no_gap_and_no_duplicate() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let told = ada.chat_stream("clerk", "What is 12.5 * 3?").await;
    let run = told[0].2["run"]["id"].as_str().unwrap();
    let whole = resumed(&ada, run, "0").await;
    assert_eq!((stored(&whole), text(&whole)), (stored(&told), text(&told)));
    for (at, (id, ..)) in told.iter().enumerate() {
        let rest = resumed(&ada, run, id).await;
        assert_eq!((stored(&rest), text(&rest)), (stored(&told[at + 1..]), text(&told[at + 1..])), "after {id}");
        assert!(rest.iter().all(|(next, ..)| place(next) > place(id)), "after {id}: {rest:?}");
    }
    let after = events(ada.request(Method::GET, &format!("/v1/runs/{run}/events?after=3")).send().await.unwrap()).await;
    assert_eq!(after[0].0, "4");
    let problem = ada.get(&format!("/v1/runs/{run}/events?after=four")).await.problem(422, "request.invalid");
    assert_eq!(problem["errors"][0]["pointer"], "/after");
}

#[tokio::test]
async fn a_run_in_the_background_is_followed_live() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["sleep_long"]).await;
    let body = json!({"message": "/sleep-long__run {\"seconds\": 1}", "background": true});
    let run = say(&ada, body).await.json()["run"].clone();
    let id = run["id"].as_str().unwrap();
    let (one, other) = tokio::join!(resumed(&ada, id, "0"), resumed(&ada, id, "1"));
    assert_eq!(kinds(&one).last(), Some(&"run.completed"));
    assert_eq!(stored(&one)[1..], stored(&other));
    assert_eq!(ended(&ada, &run).await["status"], "completed");
    // A client that asks for events by the header is told them too.
    let request = ada.request(Method::POST, "/v1/agents/clerk/chat").header("accept", "text/event-stream");
    let told = events(request.json(&json!({"message": "Hi"})).send().await.unwrap()).await;
    assert_eq!(kinds(&told), ["run.started", "message.delta", "step.completed", "run.completed"]);
}

#[tokio::test]
async fn a_conversation_takes_one_run_at_a_time_and_a_run_can_be_cancelled() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["sleep_long"]).await;
    let body = json!({"message": "/sleep-long__run {\"seconds\": 60}", "background": true});
    let turn = say(&ada, body).await.json();
    let (run, conversation) = (&turn["run"], &turn["conversation_id"]);
    let id = run["id"].as_str().unwrap();
    let next = json!({"message": "Hi", "conversation_id": conversation});
    say(&ada, next.clone()).await.problem(409, "conversation.busy");
    say(&ada, json!({"message": "Hi"})).await.ok();

    let cancel = async {
        // Once the call has begun, so that there is something to stop.
        let path = format!("/v1/runs/{id}/events");
        let mut live = ada.request(Method::GET, &path).send().await.unwrap();
        let mut seen = String::new();
        while !seen.contains("tool_call.started") {
            seen.push_str(std::str::from_utf8(&live.chunk().await.unwrap().unwrap()).unwrap());
        }
        ada.post(&format!("/v1/runs/{id}/cancel"), json!({})).await.ok()
    };
    let (told, cancelled) = tokio::join!(resumed(&ada, id, "0"), cancel);
    assert_eq!((&cancelled["status"], &cancelled["stop_reason"]), (&json!("cancelled"), &json!("cancelled")));
    assert_eq!(
        kinds(&told).iter().filter(|kind| kind.starts_with("run.")).collect::<Vec<_>>(),
        [&"run.started", &"run.cancelled"]
    );
    let body = &told.last().unwrap().2;
    assert_eq!((&body["run"], &body["tool_calls"][0]["outcome"]["code"]), (&cancelled, &json!("call.cancelled")));
    assert_eq!(ada.post(&format!("/v1/runs/{id}/cancel"), json!({})).await.ok(), cancelled, "it stays as it is");
    assert_eq!(say(&ada, next).await.ok()["run"]["status"], "completed", "the conversation is free again");
}

#[tokio::test]
async fn erasing_a_conversation_stops_its_run() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["sleep_long"]).await;
    let body = json!({"message": "/sleep-long__run {\"seconds\": 60}", "background": true});
    let turn = say(&ada, body).await.json();
    let conversation = format!("/v1/conversations/{}", turn["conversation_id"].as_str().unwrap());
    assert_eq!(ada.delete(&conversation).await.status, 204);
    ada.get(&conversation).await.problem(404, "conversation.not_found");
    ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.problem(404, "run.not_found");
}
