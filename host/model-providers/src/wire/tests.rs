//! Recorded answers through the adapters: whole, however they are cut, and broken in every place.

mod told;
mod upstream;

use serde_json::{Value, json};

use super::*;
use crate::{StopReason, Usage, anthropic::Messages, openai::Flavor};

pub(crate) const KEY: &str = "sk-very-secret";

/// The text, joined, and the other events.
pub(crate) type Read = Result<(String, Vec<ModelEvent>), ProviderError>;

pub(crate) async fn collect(mut stream: ModelStream) -> Read {
    let (mut text, mut events) = (String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event? {
            ModelEvent::Text(piece) => text.push_str(&piece),
            ModelEvent::Unseen(_) => {}
            event => events.push(event),
        }
    }
    Ok((text, events))
}

/// Reads a body that arrives in these pieces.
pub(crate) async fn read(dialect: &dyn Dialect, pieces: Vec<Result<Bytes, EgressError>>) -> Read {
    read_with(dialect, ModelRequest::for_tests(), pieces).await
}

async fn read_with(dialect: &dyn Dialect, request: ModelRequest, pieces: Vec<Result<Bytes, EgressError>>) -> Read {
    collect(reader(dialect, request, pieces).events()).await
}

fn reader(dialect: &dyn Dialect, request: ModelRequest, pieces: Vec<Result<Bytes, EgressError>>) -> Reader {
    Reader {
        provider: "local".into(),
        key: KEY.to_owned().into(),
        key_of: KeyOf::Tenant,
        lines: dialect.lines(&request),
        frames: dialect.frames(),
        request,
        body: futures::stream::iter(pieces).boxed(),
    }
}

pub(crate) async fn read_text(dialect: &dyn Dialect, text: impl Into<String>) -> Read {
    read(dialect, vec![Ok(Bytes::from(text.into()))]).await
}

pub(crate) fn call(id: &str, name: &str, arguments: Value) -> ModelEvent {
    ModelEvent::ToolCall { provider_id: id.into(), name: name.into(), arguments }
}

fn end(stop: StopReason, input_tokens: u64, cached_input_tokens: u64, output_tokens: u64) -> ModelEvent {
    ModelEvent::End { stop, usage: Usage { input_tokens, cached_input_tokens, output_tokens, reported: true } }
}

struct Recording {
    name: &'static str,
    dialect: Box<dyn Dialect>,
    text: &'static str,
    reply: (&'static str, Vec<ModelEvent>),
}

impl Recording {
    /// From which byte on nothing is missing of the reply, though perhaps of the usage.
    fn whole_from(&self) -> usize {
        let marks = ["\"finish_reason\":\"", "\"stop_reason\":\""];
        let stop = marks.iter().find_map(|mark| self.text.find(mark)).unwrap();
        stop + self.text[stop..].find("\n\n").unwrap() + 2
    }

    fn expected(&self) -> (String, Vec<ModelEvent>) {
        (self.reply.0.to_owned(), self.reply.1.clone())
    }
}

fn recordings() -> Vec<Recording> {
    let calc = json!({"expression": "12.5 * 3"});
    vec![
        Recording {
            name: "openai",
            dialect: Box::new(Flavor::Openai),
            text: include_str!("../../tests/streams/openai.sse"),
            reply: (
                "Ich prüfe das 🧮.",
                vec![
                    call("call_9ZkQx1c3Jt5vB7nM2aLsDfGh", "calc__evaluate", calc.clone()),
                    call("call_2bYw8Rk4Hs6uC0oN9eXtVgQj", "clock__now", json!({})),
                    end(StopReason::ToolCalls, 1310, 1152, 48),
                ],
            ),
        },
        Recording {
            name: "openai-text",
            dialect: Box::new(Flavor::Openai),
            text: include_str!("../../tests/streams/openai-text.sse"),
            reply: ("It is 37.5.", vec![end(StopReason::Done, 212, 0, 138)]),
        },
        Recording {
            name: "anthropic",
            dialect: Box::new(Messages),
            text: include_str!("../../tests/streams/anthropic.sse"),
            reply: (
                "Ich prüfe das 🧮.",
                vec![
                    call("toolu_01NvRb5Ls8Kq2HcXz7Yw4Pd9", "calc__evaluate", calc.clone()),
                    call("toolu_01Wd3EfKbVjQ4u6nYt8RzXc2", "clock__now", json!({})),
                    // The provider counts 58, 200 written to its cache and 1052 read from it: all of it is input.
                    end(StopReason::ToolCalls, 1310, 1052, 112),
                ],
            ),
        },
        Recording {
            name: "anthropic-thinking",
            dialect: Box::new(Messages),
            text: include_str!("../../tests/streams/anthropic-thinking.sse"),
            reply: (
                "",
                vec![
                    ModelEvent::Reasoning(json!({
                        "type": "thinking", "thinking": "12.5 times 3: better ask the tool.",
                        "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds",
                    })),
                    ModelEvent::Reasoning(json!({
                        "type": "redacted_thinking",
                        "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8cr3qpPkNRj2YfWXGmKDxH4mPnZ5sQ7vB9URj2pLmN3kF8/dW5hR7xJ0aP1oLs9yTcMnKVf2wRpH7j9XZZvBG4UQwDScGMsfA==",
                    })),
                    call("toolu_01XcZb5Ls8Kq2HcXz7Yw4Pd0", "calc__evaluate", calc.clone()),
                    end(StopReason::ToolCalls, 431, 0, 87),
                ],
            ),
        },
        Recording {
            name: "gemini",
            dialect: Box::new(Flavor::Gemini),
            text: include_str!("../../tests/streams/gemini.sse"),
            reply: (
                "Ich prüfe das 🧮.",
                vec![
                    ModelEvent::Reasoning(json!({
                        "tool_call": "function-call-11742391288441263",
                        "extra_content": {"google": {
                            "thought_signature": "EjQKMgEMOdbHJChLX75QUCJjyYlmWq0aQ3mBfTQw0yHkXzJv4cN5tY8=",
                        }},
                    })),
                    call("function-call-11742391288441263", "calc__evaluate", calc.clone()),
                    call("function-call-11742391288441264", "clock__now", json!({})),
                    // 44 tokens of output, and 184 of thoughts, which only the total has.
                    end(StopReason::ToolCalls, 96, 0, 228),
                ],
            ),
        },
        Recording {
            name: "gemini-one-index",
            dialect: Box::new(Flavor::Compatible),
            text: include_str!("../../tests/streams/gemini-one-index.sse"),
            reply: (
                "",
                vec![
                    call("call_jm4owj31", "calc__evaluate", calc),
                    call("call_p2q9xk08", "calc__evaluate", json!({"expression": "1 + 1"})),
                    end(StopReason::ToolCalls, 90, 0, 40),
                ],
            ),
        },
        Recording {
            name: "images",
            dialect: Box::new(Flavor::Compatible),
            text: include_str!("../../tests/streams/images.sse"),
            reply: (
                "Here it is.",
                vec![
                    ModelEvent::Image {
                        media_type: "image/png".into(),
                        data: "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==".into(),
                    },
                    end(StopReason::Done, 9, 0, 1303),
                ],
            ),
        },
    ]
}

fn broken() -> EgressError {
    EgressError::Timeout { host: "models.test".into(), waited_for: egress::Wait::Body }
}

#[tokio::test]
async fn a_recorded_answer_is_read_however_it_is_cut_into_pieces() {
    for recording in recordings() {
        let Recording { name, dialect, text, .. } = &recording;
        let bytes = Bytes::from_static(text.as_bytes());
        assert_eq!(read(&**dialect, vec![Ok(bytes.clone())]).await.unwrap(), recording.expected(), "{name}");
        let one_by_one = (0..bytes.len()).map(|at| Ok(bytes.slice(at..at + 1))).collect();
        assert_eq!(read(&**dialect, one_by_one).await.unwrap(), recording.expected(), "{name}");
        for at in 1..bytes.len() {
            let pieces = vec![Ok(bytes.slice(..at)), Ok(bytes.slice(at..))];
            assert_eq!(read(&**dialect, pieces).await.unwrap(), recording.expected(), "{name} in two at {at}");
        }
        let crlf = text.replace('\n', "\r\n");
        assert_eq!(read_text(&**dialect, crlf).await.unwrap(), recording.expected(), "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one() {
    for recording in recordings() {
        let Recording { name, dialect, text, .. } = &recording;
        let bytes = Bytes::from_static(text.as_bytes());
        let whole = recording.whole_from();
        let (said, events) = recording.expected();
        for at in 0..bytes.len() {
            let ended = read(&**dialect, vec![Ok(bytes.slice(..at))]).await;
            let failed = read(&**dialect, vec![Ok(bytes.slice(..at)), Err(broken())]).await;
            if at < whole {
                let code = domain::Problem::code(ended.as_ref().unwrap_err());
                assert!(["provider.cut_short", "provider.bad_stream"].contains(&code), "{name} at {at}: {ended:?}");
                assert_eq!(domain::Problem::code(&failed.unwrap_err()), "provider.timeout", "{name} at {at}");
            } else {
                for (text, found) in [ended.unwrap(), failed.unwrap()] {
                    let (_, calls) = found.split_last().unwrap();
                    assert_eq!((text.as_str(), calls), (said.as_str(), &events[..events.len() - 1]), "{name} at {at}");
                }
            }
        }
    }
}

/// The events of a recording, each with the empty line that ends it.
fn events_of(text: &str) -> Vec<&str> {
    text.split_inclusive("\n\n").collect()
}

#[tokio::test]
async fn something_foreign_between_any_two_events_is_passed_over_or_refused() {
    let error = r#"{"type":"overloaded_error","message":"Overloaded, says sk-very-secret"}"#;
    for recording in recordings() {
        let Recording { name, dialect, text, .. } = &recording;
        let events = events_of(text);
        // A recording's last events are read only for the connection's sake.
        let last = events.iter().position(|event| event.contains("[DONE]") || event.contains("message_stop")).unwrap();
        let stop = events_of(&text[..recording.whole_from()]).len() - 1;
        for at in 0..=last {
            let with = |foreign: &str| [&events[..at].concat(), foreign, &events[at..].concat()].concat();
            for harmless in [
                ": a comment\n\n",
                "\n\n",
                "retry: 3000\n\n",
                "id: 7\n\n",
                "event: something_new\ndata: {\"type\":\"something_new\",\"deep\":[[{}]]}\n\n",
                "data: {\"type\":\"content_block_start\",\"index\":7,\"content_block\":{\"type\":\"new_block\"}}\n\n",
            ] {
                assert_eq!(
                    read_text(&**dialect, with(harmless)).await.unwrap(),
                    recording.expected(),
                    "{name} {at} {harmless}"
                );
            }
            for (foreign, code) in [
                ("data: {\"choices\":\n\n".to_owned(), "provider.bad_stream"),
                ("data: not JSON\n\n".to_owned(), "provider.bad_stream"),
                ("data: [1, 2]\n\n".to_owned(), "provider.bad_stream"),
                (format!("data: {}\n\n", "[".repeat(100_000)), "provider.bad_stream"),
                (format!("data: {}", "x".repeat(5 << 20)), "provider.bad_stream"),
                ("x".repeat(5 << 20), "provider.bad_stream"),
                (format!("event: error\ndata: {{\"type\":\"error\",\"error\":{error}}}\n\n"), "provider.unavailable"),
            ] {
                let read = read_text(&**dialect, with(&foreign)).await;
                // What comes behind the end of a reply does not undo it.
                if at > stop && code == "provider.bad_stream" {
                    assert_eq!(read.unwrap().0, recording.reply.0, "{name} {at}");
                    continue;
                }
                let broken = read.unwrap_err();
                assert_eq!(domain::Problem::code(&broken), code, "{name} {at} {}", &foreign[..foreign.len().min(40)]);
                assert!(!format!("{broken:?} {broken}").contains(KEY), "{broken}");
            }
            let mut pieces: Vec<_> =
                vec![Ok(Bytes::from(events[..at].concat())), Ok(Bytes::from_static(b"data: \xff\xfe\n\n"))];
            pieces.push(Ok(Bytes::from(events[at..].concat())));
            let read = read(&**dialect, pieces).await;
            assert_eq!(read.is_ok(), at > stop, "{name} {at}");
        }
    }
}

/// Whatever is wrong, there is one end, or one error.
fn is_sound(read: &Read) -> bool {
    match read {
        Ok((_, events)) => {
            let ends = events.iter().filter(|event| matches!(event, ModelEvent::End { .. })).count();
            ends == 1 && matches!(events.last(), Some(ModelEvent::End { .. }))
        }
        Err(error) => domain::Problem::code(error).starts_with("provider."),
    }
}

#[tokio::test]
async fn any_byte_may_be_wrong_and_any_event_missing_twice_or_out_of_order() {
    for recording in recordings() {
        let Recording { name, dialect, text, .. } = &recording;
        for at in 0..text.len() {
            let wrong = [b'\n', b'"', b'}', b'9', 0xff][at % 5];
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = wrong;
            let read = read(&**dialect, vec![Ok(Bytes::from(bytes))]).await;
            assert!(is_sound(&read), "{name}: {wrong} at {at}: {read:?}");
        }
        let events = events_of(text);
        for at in 0..events.len() {
            let mut missing = events.clone();
            missing.remove(at);
            let mut twice = events.clone();
            twice.insert(at, events[at]);
            let mut early = missing.clone();
            early.insert(0, events[at]);
            for changed in [missing, twice, early] {
                let read = read_text(&**dialect, changed.concat()).await;
                assert!(is_sound(&read), "{name}: event {at}: {read:?}");
            }
        }
    }
}

#[tokio::test]
async fn numbers_of_any_size_make_no_call_no_memory_and_no_bill() {
    let huge =
        ["4000000000", "18446744073709551615", "18446744073709551616", "1e300", "-1", "64000", "null", "\"0\"", "{}"];
    for recording in recordings() {
        let Recording { name, dialect, text, .. } = &recording;
        for number in huge {
            for field in [
                "index",
                "prompt_tokens",
                "completion_tokens",
                "total_tokens",
                "cached_tokens",
                "input_tokens",
                "output_tokens",
                "cache_read_input_tokens",
            ] {
                let mark = format!("\"{field}\":");
                for (at, _) in text.match_indices(&mark) {
                    let digits = at + mark.len();
                    let rest = text[digits..].trim_start_matches(|c: char| c.is_ascii_digit());
                    let read = read_text(&**dialect, format!("{}{number}{rest}", &text[..digits])).await;
                    assert!(is_sound(&read), "{name}: {field} {number}: {read:?}");
                    if let Ok((_, events)) = &read
                        && let Some(ModelEvent::End { usage, .. }) = events.last()
                    {
                        let most = usage.input_tokens.max(usage.output_tokens);
                        assert!(most <= 1_000_000_000 && usage.cached_input_tokens <= usage.input_tokens, "{usage:?}");
                    }
                }
            }
        }
    }
}

/// A parser that looks at everything again with each byte would need minutes.
#[tokio::test]
async fn a_long_line_byte_by_byte_takes_no_longer_than_at_once() {
    let began = std::time::Instant::now();
    let pieces = (0..256 * 1024 + 1).map(|_| Ok(Bytes::from_static(b"x"))).collect();
    let error = read(&Flavor::Compatible, pieces).await.unwrap_err();
    assert_eq!(domain::Problem::code(&error), "provider.bad_stream");
    // The event parser ends lines at these too, and copies the rest for each.
    let returns = read_text(&Flavor::Compatible, format!("{}\n\n", "\r".repeat(256 * 1024 - 2))).await.unwrap_err();
    assert_eq!(domain::Problem::code(&returns), "provider.bad_stream");
    let many = "data: {\"type\":\"ping\"}\n\n".repeat(20_000) + include_str!("../../tests/streams/anthropic.sse");
    assert_eq!(read_text(&Messages, many).await.unwrap().0, "Ich prüfe das 🧮.");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_image_may_be_a_long_line_only_where_images_were_asked_for() {
    let image = |bytes: usize| {
        let delta = json!({"images": [{"image_url": {"url": format!("data:image/png;base64,{}", "A".repeat(bytes))}}]});
        format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [{"delta": delta, "finish_reason": "stop"}]}))
    };
    let asked = |modalities: Value| {
        let options = json!({"modalities": modalities}).as_object().unwrap().clone();
        ModelRequest { options, ..ModelRequest::for_tests() }
    };
    for (request, bytes, reason) in [
        (asked(json!(["text", "image"])), 3 << 20, None),
        (asked(json!(["text", "image"])), 5 << 20, Some("4 MiB")),
        (asked(json!(["text"])), 300 << 10, Some("256 KiB")),
        (ModelRequest::for_tests(), 300 << 10, Some("256 KiB")),
    ] {
        let read = read_with(&Flavor::Compatible, request, vec![Ok(Bytes::from(image(bytes)))]).await;
        match (reason, read) {
            (None, Ok((_, events))) => {
                assert!(matches!(&events[0], ModelEvent::Image { data, .. } if data.len() == bytes))
            }
            (Some(reason), Err(error)) => assert!(error.to_string().contains(reason), "{error}"),
            (reason, read) => panic!("{reason:?} {:?}", read.map(|(text, _)| text)),
        }
    }
    for url in [
        "https://images.test/1.png",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,A<script>",
        "data:image/png,x",
        "",
    ] {
        let delta = json!({"choices": [{"delta": {"images": [{"image_url": {"url": url}}]}}]});
        let error = read_text(&Flavor::Compatible, format!("data: {delta}\n\n")).await.unwrap_err();
        assert!(error.to_string().contains("an image is not"), "{error}");
    }
    let many = json!({"choices": [{"delta": {"images": [{"image_url": {"url": "data:image/png;base64,AAAA"}}]}}]});
    let error = read_text(&Flavor::Compatible, format!("data: {many}\n\n").repeat(5)).await.unwrap_err();
    assert!(error.to_string().contains("more than 4 images"), "{error}");
}
