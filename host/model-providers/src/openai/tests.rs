mod upstream;

use domain::{
    CallId, Problem, SystemIds,
    message::{FunctionSpec, Part, Role},
};
use serde_json::{Map, Value, json};

use super::*;
use crate::{Message, ModelRef, StopReason, Usage};

const KEY: &str = "sk-very-secret";
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What a whole stream looks like: a role, text, two calls in fragments, usage, the end.
const RECORDED: &str = r#": keep-alive

data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}

data: {"choices":[{"index":0,"delta":{"content":"Grüße, "},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"content":"Ada"},"finish_reason":null},{"index":1,"delta":{"content":"never read"}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"calc__evaluate","arguments":""}}]}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"expression\""}}]}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"clock__now","arguments":""}}]}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":\"1+1\"}"}}]}}]}

data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: {"choices":[],"usage":{"prompt_tokens":90,"completion_tokens":12,"total_tokens":102,"prompt_tokens_details":{"cached_tokens":64}}}

data: [DONE]

"#;

fn recorded_reply() -> (String, Vec<ModelEvent>) {
    let call =
        |id: &str, name: &str, arguments| ModelEvent::ToolCall { provider_id: id.into(), name: name.into(), arguments };
    let usage = Usage { input_tokens: 90, cached_input_tokens: 64, output_tokens: 12, reported: true };
    (
        "Grüße, Ada".into(),
        vec![
            call("call_a", "calc__evaluate", json!({"expression": "1+1"})),
            call("call_b", "clock__now", json!({})),
            ModelEvent::End { stop: StopReason::ToolCalls, usage },
        ],
    )
}

fn request() -> ModelRequest {
    ModelRequest {
        model: ModelRef::new("local", "m-1"),
        system: "Be brief.".into(),
        messages: vec![Message { role: Role::User, parts: vec![Part::text("1+1?")] }],
        functions: Vec::new(),
        temperature: None,
        max_output_tokens: None,
        options: Map::new(),
    }
}

/// The text, joined, and the other events.
type Read = Result<(String, Vec<ModelEvent>), ProviderError>;

async fn collect(mut stream: ModelStream) -> Read {
    let (mut text, mut events) = (String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event? {
            ModelEvent::Text(piece) => text.push_str(&piece),
            event => events.push(event),
        }
    }
    Ok((text, events))
}

/// Reads a body that arrives in these pieces.
async fn read(pieces: Vec<Result<Bytes, EgressError>>) -> Read {
    let body = futures::stream::iter(pieces).boxed();
    let reader = Reader { provider: "local".into(), key: KEY.to_owned().into(), request: request(), body };
    collect(reader.events()).await
}

async fn read_text(text: impl Into<String>) -> Read {
    read(vec![Ok(Bytes::from(text.into()))]).await
}

fn broken() -> EgressError {
    EgressError::Timeout { host: "models.test".into(), waited_for: egress::Wait::Body }
}

#[tokio::test]
async fn a_recorded_stream_is_read_however_it_is_cut() {
    let bytes = Bytes::from_static(RECORDED.as_bytes());
    assert_eq!(read(vec![Ok(bytes.clone())]).await.unwrap(), recorded_reply());
    let one_by_one = (0..bytes.len()).map(|at| Ok(bytes.slice(at..at + 1))).collect();
    assert_eq!(read(one_by_one).await.unwrap(), recorded_reply());
    for at in 1..bytes.len() {
        let pieces = vec![Ok(bytes.slice(..at)), Ok(bytes.slice(at..))];
        assert_eq!(read(pieces).await.unwrap(), recorded_reply(), "cut at {at}");
    }
    assert_eq!(read_text(RECORDED.replace('\n', "\r\n")).await.unwrap(), recorded_reply());
}

#[tokio::test]
async fn a_stream_that_breaks_is_never_taken_for_a_whole_one() {
    let finish = RECORDED.find("\"finish_reason\":\"tool_calls\"").unwrap();
    let whole = finish + RECORDED[finish..].find("\n\n").unwrap() + 2;
    for at in (0..RECORDED.len()).filter(|at| RECORDED.is_char_boundary(*at)) {
        let cut = read_text(&RECORDED[..at]).await;
        assert_eq!(cut.is_ok(), at >= whole, "cut at {at}");
        if let Err(error) = cut {
            assert!(["provider.cut_short", "provider.bad_stream"].contains(&error.code()), "{error}");
        }
    }
    let failed = read(vec![Ok(Bytes::from_static(&RECORDED.as_bytes()[..400])), Err(broken())]).await;
    assert_eq!(failed.unwrap_err().code(), "provider.timeout");
    let failed = read(vec![Ok(Bytes::from_static(&RECORDED.as_bytes()[..whole])), Err(broken())]).await;
    assert!(failed.is_ok(), "nothing was missing");
}

fn delta(delta: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n")
}

fn end(reason: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"{reason}\"}}]}}\n\n")
}

#[tokio::test]
async fn garbage_is_refused_before_it_costs_anything() {
    let call = |index: &str, arguments: &str| {
        delta(&format!(
            r#"{{"tool_calls":[{{"index":{index},"id":"x","function":{{"name":"n","arguments":"{arguments}"}}}}]}}"#
        ))
    };
    let long = "x".repeat(200 * 1024);
    for (what, text, reason) in [
        ("a line without end", "x".repeat(300 * 1024), "256 KiB"),
        ("a data line without end", format!("data: {}", "x".repeat(1024 * 1024)), "256 KiB"),
        ("an event without end", format!("data: {long}\ndata: {long}\n\n"), "256 KiB"),
        ("an index of four billion", call("4000000000", ""), "index"),
        ("an index of 64", call("64", ""), "index"),
        ("an index beyond integers", call("1e300", ""), "JSON chunk"),
        ("a negative index", call("-1", ""), "JSON chunk"),
        ("long arguments", call("0", &long) + &call("0", &long), "arguments"),
        (
            "a long name",
            delta(&format!(r#"{{"tool_calls":[{{"function":{{"name":"{}"}}}}]}}"#, "n".repeat(300))),
            "name",
        ),
        ("long text", delta(&format!(r#"{{"content":"{long}"}}"#)).repeat(21), "4 MiB"),
        ("no JSON", "data: {\"choices\":\n\n".into(), "JSON chunk"),
        ("other JSON", "data: []\n\n".into(), "JSON chunk"),
        ("deep JSON", format!("data: {}\n\n", "[".repeat(100_000)), "JSON chunk"),
        ("a page", "<html>\n<body>hello</body>\n</html>\n\n".into(), "no event stream"),
        ("a whole answer", r#"{"choices":[{"message":{"content":"hi"}}]}"#.into(), "no event stream"),
        ("nothing", String::new(), "no event stream"),
    ] {
        let error = read_text(text).await.unwrap_err();
        assert_eq!(error.code(), "provider.bad_stream", "{what}");
        assert!(error.to_string().contains(reason), "{what}: {error}");
    }
    let error = read(vec![Ok(Bytes::from_static(b"data: \xff\xfe\n\n"))]).await.unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

/// A parser that looks at everything again with each byte would need minutes.
#[tokio::test]
async fn a_long_line_byte_by_byte_takes_no_longer_than_at_once() {
    let began = std::time::Instant::now();
    let pieces = (0..256 * 1024 + 1).map(|_| Ok(Bytes::from_static(b"x"))).collect();
    assert_eq!(read(pieces).await.unwrap_err().code(), "provider.bad_stream");
    let many_lines = delta(r#"{"content":"x"}"#).repeat(20_000) + &end("stop");
    assert_eq!(read_text(many_lines).await.unwrap().0.len(), 20_000);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_providers_do_differently_is_read_too() {
    let calls = |events: &[ModelEvent]| -> Vec<(String, String, Value)> {
        let calls = events.iter().filter_map(|event| match event {
            ModelEvent::ToolCall { provider_id, name, arguments } => {
                Some((provider_id.clone(), name.clone(), arguments.clone()))
            }
            _ => None,
        });
        calls.collect()
    };
    let call = |id: &str, name: &str, arguments: Value| (id.to_owned(), name.to_owned(), arguments);
    for (what, text, expected) in [
        (
            "no index",
            delta(r#"{"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\"x\":"}}]}"#)
                + &delta(r#"{"tool_calls":[{"function":{"arguments":"1}"}}]}"#)
                + &delta(r#"{"tool_calls":[{"id":"b","function":{"name":"g","arguments":"{}"}}]}"#),
            vec![call("a", "f", json!({"x": 1})), call("b", "g", json!({}))],
        ),
        (
            "no id, the name again and again, arguments as an object",
            delta(r#"{"tool_calls":[{"index":0,"function":{"name":"f","arguments":null}}]}"#)
                + &delta(r#"{"tool_calls":[{"index":0,"function":{"name":"f","arguments":{"x":2}}}]}"#),
            vec![call("call_0", "f", json!({"x": 2}))],
        ),
        (
            "a name in pieces",
            delta(r#"{"tool_calls":[{"index":3,"id":"a","function":{"name":"calc__"}}]}"#)
                + &delta(r#"{"tool_calls":[{"index":3,"id":"a","function":{"name":"evaluate"}}]}"#),
            vec![call("a", "calc__evaluate", json!({}))],
        ),
        (
            "arguments that are not JSON",
            delta(r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{x: 1"}}]}"#),
            vec![call("a", "f", json!("{x: 1"))],
        ),
    ] {
        let (_, events) = read_text(text + &end("stop")).await.unwrap();
        assert_eq!(calls(&events), expected, "{what}");
        assert!(matches!(events.last(), Some(ModelEvent::End { stop: StopReason::ToolCalls, .. })), "{what}");
    }
    for (reason, stop) in [
        ("stop", StopReason::Done),
        ("length", StopReason::Length),
        ("content_filter", StopReason::ContentFilter),
        ("tool_calls", StopReason::Done),
        ("new_reason", StopReason::Done),
    ] {
        let (_, events) = read_text(end(reason)).await.unwrap();
        assert!(matches!(&events[..], [ModelEvent::End { stop: found, .. }] if *found == stop), "{reason} {events:?}");
    }
    let (text, _) = read_text(delta(r#"{"refusal":"No."}"#) + "data: [DONE]\n\n").await.unwrap();
    assert_eq!(text, "No.");
}

#[tokio::test]
async fn usage_that_is_not_reported_is_counted_and_an_absurd_one_is_cut() {
    let (text, events) = read_text(delta(r#"{"content":"hello world"}"#) + &end("stop")).await.unwrap();
    assert_eq!(text, "hello world");
    let [ModelEvent::End { usage, .. }] = events[..] else { panic!("{events:?}") };
    let input_tokens = tokens::count_request(&request());
    assert!(input_tokens > 5);
    assert_eq!(usage, Usage { input_tokens, cached_input_tokens: 0, output_tokens: 2, reported: false });

    let usage = r#"data: {"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":-4,"prompt_tokens_details":{"cached_tokens":2e9}}}"#;
    let (_, events) = read_text(format!("{usage}\n\n{}", end("stop"))).await.unwrap();
    let [ModelEvent::End { usage, .. }] = events[..] else { panic!("{events:?}") };
    assert_eq!(usage, Usage { input_tokens: 1_000_000_000, cached_input_tokens: 0, output_tokens: 0, reported: true });
}

#[tokio::test]
async fn an_error_in_the_stream_is_an_error() {
    for (error, code, words) in [
        (r#"{"message":"overloaded","type":"server_error"}"#, "provider.unavailable", "overloaded"),
        (r#"{"message":"slow down","type":"x","code":"rate_limit_exceeded"}"#, "provider.rate_limited", ""),
        (r#"{"message":"slow down","code":429}"#, "provider.rate_limited", ""),
        (r#"{"message":"no sk-very-secret","type":"invalid_request_error"}"#, "provider.request_refused", "no [key]"),
        (r#""plain""#, "provider.unavailable", "plain"),
        ("{}", "provider.unavailable", "without a message"),
    ] {
        let text = delta(r#"{"content":"Well"}"#) + &format!("data: {{\"error\":{error}}}\n\ndata: [DONE]\n\n");
        let error = read_text(text).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(words) && !format!("{error:?}").contains(KEY), "{error:?}");
    }
}

#[test]
fn the_body_has_what_was_set_and_nothing_else() {
    let base = request();
    assert_eq!(
        body::build(EndpointKind::Openai, &base),
        json!({
            "model": "m-1", "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
        })
    );

    let id = CallId::new(&SystemIds);
    let call = |provider_id: &str, arguments| Part::ToolCall {
        id,
        provider_id: provider_id.into(),
        name: "calc__evaluate".into(),
        arguments,
    };
    let result = |provider_id: &str, text: &str| Part::ToolResult {
        id,
        provider_id: provider_id.into(),
        is_error: false,
        text: text.into(),
    };
    let image = Part::Image { media_type: "image/png".into(), data: "AAAA".into() };
    let message = |role, parts| Message { role, parts };
    let full = ModelRequest {
        system: String::new(),
        messages: vec![
            message(Role::User, vec![Part::text("look"), image]),
            message(Role::Assistant, vec![Part::text("ok"), call("a", json!({"x": 1})), call("b", json!("{bad"))]),
            message(Role::Tool, vec![result("a", "2"), result("b", "not JSON")]),
            message(Role::Assistant, vec![call("c", json!({}))]),
            message(Role::Tool, vec![result("c", "3")]),
            message(Role::Assistant, vec![Part::text("done")]),
        ],
        functions: vec![FunctionSpec {
            tool: "calc".parse().unwrap(),
            function: "evaluate".parse().unwrap(),
            model_name: "calc__evaluate".into(),
            description: "Evaluates.".into(),
            input_schema: json!({"type": "object"}),
        }],
        temperature: Some(0.5),
        max_output_tokens: Some(100),
        options: json!({
            "top_p": 0.9, "temperature": 2, "model": "evil", "messages": [], "stream": false, "stream_options": {},
            "tools": [], "functions": [], "n": 5,
        })
        .as_object()
        .unwrap()
        .clone(),
        ..base
    };
    let function = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "calc__evaluate", "arguments": arguments}});
    let built = body::build(EndpointKind::OpenaiCompatible, &full);
    assert_eq!(
        built,
        json!({
            "model": "m-1", "stream": true, "stream_options": {"include_usage": true},
            "top_p": 0.9, "temperature": 0.5, "max_tokens": 100,
            "tools": [{"type": "function", "function": {
                "name": "calc__evaluate", "description": "Evaluates.", "parameters": {"type": "object"},
            }}],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ]},
                {"role": "assistant", "content": "ok", "tool_calls": [function("a", r#"{"x":1}"#), function("b", "{bad")]},
                {"role": "tool", "tool_call_id": "a", "content": "2"},
                {"role": "tool", "tool_call_id": "b", "content": "not JSON"},
                {"role": "assistant", "content": null, "tool_calls": [function("c", "{}")]},
                {"role": "tool", "tool_call_id": "c", "content": "3"},
                {"role": "assistant", "content": "done"},
            ],
        })
    );
    assert_eq!(body::build(EndpointKind::Openai, &full)["max_completion_tokens"], json!(100));
}
