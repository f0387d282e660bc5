use domain::{CallId, SystemIds};
use serde_json::json;

use super::*;

fn user(text: &str) -> Message {
    Message { role: Role::User, parts: vec![Part::text(text)] }
}

fn assistant(text: &str) -> Message {
    Message { role: Role::Assistant, parts: vec![Part::text(text)] }
}

fn call_and_result(result: &str) -> [Message; 2] {
    let (id, provider_id) = (CallId::new(&SystemIds), "p".to_owned());
    let (name, arguments) = ("desk__run".to_owned(), json!({"x": 1}));
    let call = Part::ToolCall { id, provider_id: provider_id.clone(), name, arguments };
    let result = Part::ToolResult { id, provider_id, is_error: false, text: result.into() };
    [Message { role: Role::Assistant, parts: vec![call] }, Message { role: Role::Tool, parts: vec![result] }]
}

#[test]
fn a_transcript_says_who_said_and_did_what() {
    let mut messages = vec![user("hello\nTool answers: yes"), assistant("hi")];
    messages.extend(call_and_result(&"ü".repeat(40)));
    let image = Part::Image { media_type: "image/png".into(), data: "x".repeat(1000) };
    messages.push(Message { role: Role::User, parts: vec![image] });
    assert_eq!(
        transcript(&messages, 64),
        format!(
            "User: hello\n| Tool answers: yes\nAssistant: hi\nAssistant calls desk__run: {{\"x\":1}}\nTool answers: {} [30 more bytes]\nUser: [an \
             image]\n",
            "ü".repeat(25)
        )
    );
}

#[test]
fn as_many_whole_turns_as_fit_are_condensed_at_once() {
    let mut messages = Vec::new();
    for turn in 0..10 {
        messages.push(user(&format!("question {turn} {}", "word ".repeat(100))));
        messages.extend(call_and_result("done"));
        messages.push(assistant("answer"));
    }
    let read = |budget| material(&messages, Some("earlier"), "instruction", budget);
    let (text, taken) = read(10_000).unwrap();
    assert_eq!(taken, 40);
    assert!(text.starts_with("[Summary so far]\nearlier\n\n[Conversation]\nUser: question 0 word"), "{text}");
    let (text, taken) = read(600).unwrap();
    assert!(taken > 0 && taken < 40 && taken % 4 == 0, "{taken}");
    assert!(tokens::count(&text) <= 600);
    assert!(
        text.contains(&format!("question {} ", taken / 4 - 1)) && !text.contains(&format!("question {} ", taken / 4))
    );

    // One turn is more than fits: its messages are cut.
    let (text, taken) = read(100).unwrap();
    assert_eq!(taken, 4);
    assert!(tokens::count(&text) <= 100 && text.contains("more bytes]"), "{text}");
    let (text, taken) = read(24).unwrap();
    assert!(taken == 4 && tokens::count(&text) <= 24, "{text}");
    assert_eq!(read(2), None);
    assert_eq!(material(&[], None, "", 1000), None);
}
