//! A stream of events: told once, and told again to who resumes it.

use axum::body::Body;
use http::{Request, header};
use serde_json::{Value, json};

use crate::app::App;

/// The events of a stream: id, type, data.
fn events(text: &str) -> Vec<(String, String, Value)> {
    let field = |event: &str, name: &str| {
        let lines = event.lines().filter_map(|line| line.strip_prefix(name).map(str::trim));
        lines.collect::<Vec<_>>().join("\n")
    };
    text.split("\n\n")
        .filter(|event| event.contains("data:"))
        .map(|event| {
            let data = serde_json::from_str(&field(event, "data:")).unwrap();
            (field(event, "id:"), field(event, "event:"), data)
        })
        .collect()
}

#[tokio::test]
async fn a_stream_ends_in_exactly_one_terminal_event_and_resumes() {
    let app = App::start().await;
    let ada = app.tenant("ada").await;
    ada.clerk().await;
    let body = json!({"message": "/echo__run {\"n\": 1}", "stream": true});
    let answered = ada.post("/v1/agents/clerk/chat", body).await;
    assert_eq!(answered.headers[header::CONTENT_TYPE], "text/event-stream");
    let all = events(&answered.text);
    let kinds: Vec<&str> = all.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(kinds.first(), Some(&"run.started"));
    assert_eq!(kinds.iter().filter(|kind| ["run.completed", "run.failed", "run.cancelled"].contains(kind)).count(), 1);
    assert_eq!(kinds.last(), Some(&"run.completed"));
    for kind in ["message.delta", "tool_call.started", "tool_call.completed", "step.completed"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    let run = all[0].2["run_id"].as_str().unwrap();
    assert!(all.iter().all(|(_, _, data)| data["run_id"] == run && data["seq"].is_u64()));
    assert_eq!(all.last().unwrap().2["run"]["status"], "completed");
    assert!(all.last().unwrap().2["tool_calls"][0]["receipt"].is_object());

    let path = format!("/v1/runs/{run}/events");
    let text = |events: &[(String, String, Value)]| {
        let deltas = events.iter().filter(|(_, kind, _)| kind == "message.delta");
        deltas.map(|(_, _, data)| data["text"].as_str().unwrap().to_owned()).collect::<String>()
    };
    assert_eq!(text(&events(&ada.get(&path).await.text)), text(&all));
    for (at, (id, _, _)) in all.iter().enumerate() {
        let rest = ada.send(Request::get(&path).header("last-event-id", id), Body::empty()).await;
        assert_eq!(text(&events(&rest.text)), text(&all[at + 1..]), "after {id}");
        assert_eq!(ada.get(&format!("{path}?after={id}")).await.text, rest.text, "after {id}");
    }
    ada.get(&format!("{path}?after=x")).await.problem(422, "request.invalid");
}
