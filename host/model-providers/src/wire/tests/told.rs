//! What is told of answers that break off.

use super::*;

/// What is told of an answer that breaks off behind this text, as it came: the text, what is not shown, and in how many
/// events.
async fn told(dialect: &dyn Dialect, text: impl Into<String>) -> (String, String, usize) {
    let pieces = vec![Ok(Bytes::from(text.into())), Err(broken())];
    let mut stream = reader(dialect, ModelRequest::for_tests(), pieces).events();
    let (mut said, mut unseen, mut events) = (String::new(), String::new(), 0);
    while let Some(Ok(event)) = stream.next().await {
        match event {
            ModelEvent::Text(piece) => said.push_str(&piece),
            ModelEvent::Unseen(piece) => unseen.push_str(&piece),
            other => panic!("it is not whole: {other:?}"),
        }
        events += 1;
    }
    (said, unseen, events)
}

#[tokio::test]
async fn whatever_has_come_of_an_answer_that_breaks_off_is_told() {
    for recording in recordings() {
        let Recording { name, dialect, text, .. } = &recording;
        let expected = match *name {
            "openai" => r#"calc__evaluate{"exclock__nowpression": "12.5 * 3"}{}"#,
            "openai-text" => "",
            "anthropic" => r#"calc__evaluate{"expression": "12.5 * 3"}clock__now"#,
            "anthropic-thinking" => r#"12.5 times 3: better ask the tool.calc__evaluate{"expression": "12.5 * 3"}"#,
            "gemini" => r#"calc__evaluate{"expression":"12.5 * 3"}clock__now{}"#,
            "gemini-one-index" => r#"calc__evaluate{"expression":"12.5 * 3"}calc__evaluate{"expression":"1 + 1"}"#,
            // An image has come, and has no text.
            "images" => "",
            other => panic!("{other}"),
        };
        let whole = events_of(&text[..recording.whole_from()]);
        let mut before = (String::new(), String::new(), 0);
        for at in 0..whole.len() {
            let now = told(&**dialect, whole[..at].concat()).await;
            assert!(now.0.starts_with(&before.0) && now.1.starts_with(&before.1), "{name} at {at}: {now:?}");
            assert!(now.2 > before.2 || (&now.0, &now.1) == (&before.0, &before.1), "{name} at {at}: {now:?}");
            before = now;
        }
        assert_eq!((before.0.as_str(), before.1.as_str()), (recording.reply.0, expected), "{name}");
    }
}

/// Until then it may be asked again.
#[tokio::test]
async fn nothing_is_told_before_something_has_come() {
    let chunk = |delta: Value| format!("data: {}\n\n", json!({"choices": [{"delta": delta}]}));
    let event = |event: Value| format!("data: {event}\n\n");
    let begin = |block: Value| event(json!({"type": "content_block_start", "index": 0, "content_block": block}));
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 900, "output_tokens": 1}}});
    let function = json!({"name": "f", "arguments": ""});
    let image = json!({"images": [{"image_url": {"url": "data:image/png;base64,AAAA"}}]});
    for (dialect, text, expected) in [
        (&Flavor::Compatible as &dyn Dialect, chunk(json!({"role": "assistant", "content": ""})), None),
        (&Flavor::Compatible, chunk(json!({"content": null, "reasoning_content": "", "reasoning": null})), None),
        (&Flavor::Compatible, ": processing\n\n".to_owned(), None),
        (&Flavor::Compatible, chunk(json!({"reasoning_content": "Well"})), Some("Well")),
        (&Flavor::Compatible, chunk(json!({"reasoning_content": "Well", "reasoning": "Well"})), Some("Well")),
        (&Flavor::Compatible, chunk(json!({"reasoning": "Well", "reasoning_details": [{}]})), Some("Well")),
        (&Flavor::Compatible, chunk(json!({"reasoning": {"of": "another kind"}})), None),
        (&Flavor::Compatible, chunk(json!({"tool_calls": [{"index": 0, "id": "a", "function": function}]})), Some("f")),
        (&Flavor::Compatible, chunk(image), Some("")),
        (&Messages, event(start.clone()), None),
        (&Messages, event(start) + &event(json!({"type": "ping"})), None),
        (&Messages, begin(json!({"type": "text", "text": ""})), None),
        (&Messages, begin(json!({"type": "thinking", "thinking": ""})), Some("")),
        (&Messages, begin(json!({"type": "redacted_thinking", "data": "x"})), Some("")),
        (&Messages, begin(json!({"type": "tool_use", "id": "a", "name": "f", "input": {}})), Some("f")),
    ] {
        let (said, unseen, events) = told(dialect, text.clone()).await;
        assert_eq!((said.as_str(), (events > 0).then_some(unseen.as_str())), ("", expected), "{text}");
    }
}
