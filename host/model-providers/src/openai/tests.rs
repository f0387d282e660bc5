use bytes::Bytes;
use domain::{
    CallId, Problem, SystemIds,
    message::{FunctionSpec, Part, Role},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    Message, ModelEvent, StopReason, Usage, tokens,
    wire::tests::{KEY, read, read_text},
};

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
        let error = read_text(&Flavor::Compatible, text).await.unwrap_err();
        assert_eq!(error.code(), "provider.bad_stream", "{what}");
        assert!(error.to_string().contains(reason), "{what}: {error}");
    }
    let error = read(&Flavor::Compatible, vec![Ok(Bytes::from_static(b"data: \xff\xfe\n\n"))]).await.unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
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
        let (_, events) = read_text(&Flavor::Compatible, text + &end("stop")).await.unwrap();
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
        let (_, events) = read_text(&Flavor::Compatible, end(reason)).await.unwrap();
        assert!(matches!(&events[..], [ModelEvent::End { stop: found, .. }] if *found == stop), "{reason} {events:?}");
    }
    let (text, _) = read_text(&Flavor::Compatible, delta(r#"{"refusal":"No."}"#) + "data: [DONE]\n\n").await.unwrap();
    assert_eq!(text, "No.");
}

#[tokio::test]
async fn usage_that_is_not_reported_is_counted_and_an_absurd_one_is_cut() {
    let (text, events) =
        read_text(&Flavor::Compatible, delta(r#"{"content":"hello world"}"#) + &end("stop")).await.unwrap();
    assert_eq!(text, "hello world");
    let [ModelEvent::End { usage, .. }] = events[..] else { panic!("{events:?}") };
    let input_tokens = tokens::count_request(&ModelRequest::for_tests());
    assert!(input_tokens > 5);
    assert_eq!(usage, Usage { input_tokens, cached_input_tokens: 0, output_tokens: 2, reported: false });

    let usage = r#"data: {"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":-4,"prompt_tokens_details":{"cached_tokens":2e9}}}"#;
    let (_, events) = read_text(&Flavor::Compatible, format!("{usage}\n\n{}", end("stop"))).await.unwrap();
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
        let error = read_text(&Flavor::Compatible, text).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(words) && !format!("{error:?}").contains(KEY), "{error:?}");
    }
}

#[test]
fn the_body_has_what_was_set_and_nothing_else() {
    let base = ModelRequest::for_tests();
    assert_eq!(
        body::build(Flavor::Openai, &base),
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
    let of_tool = image.clone();
    let message = |role, parts| Message { role, parts };
    let full = ModelRequest {
        system: String::new(),
        messages: vec![
            message(Role::User, vec![Part::text("look"), image]),
            message(Role::Assistant, vec![Part::text("ok"), call("a", json!({"x": 1})), call("b", json!("{bad"))]),
            message(Role::Tool, vec![result("a", "2"), result("b", "not JSON")]),
            message(Role::Assistant, vec![call("c", json!({}))]),
            message(Role::Tool, vec![result("c", "3"), of_tool]),
            message(Role::Assistant, vec![Part::text("")]),
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
    let built = body::build(Flavor::Compatible, &full);
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
                {"role": "user", "content": [
                    {"type": "text", "text": "The images of the results above, in their order:"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ]},
                {"role": "assistant", "content": "done"},
            ],
        })
    );
    assert_eq!(body::build(Flavor::Openai, &full)["max_completion_tokens"], json!(100));
}

#[test]
fn what_a_provider_wants_back_it_gets_and_nobody_else() {
    let id = CallId::new(&SystemIds);
    let call = |provider_id: &str, name: &str| Part::ToolCall {
        id,
        provider_id: provider_id.into(),
        name: name.into(),
        arguments: json!({}),
    };
    let signature = |text: &str| json!({"google": {"thought_signature": text}});
    let kept = |provider: &str, text| Part::Reasoning {
        provider: provider.into(),
        data: json!({"tool_call": "a", "extra_content": signature(text)}),
    };
    let image = Part::Image { media_type: "image/png".into(), data: "AAAA".into() };
    let said = vec![kept("another", "no"), kept("local", "yes"), call("a", "f"), call("b", "made up")];
    let mut request = ModelRequest {
        messages: vec![
            Message { role: Role::Assistant, parts: said },
            Message { role: Role::Assistant, parts: vec![image] },
        ],
        ..ModelRequest::for_tests()
    };
    let calls = |flavor, request: &ModelRequest| -> Vec<Value> {
        let body = body::build(flavor, request);
        assert_eq!(body["messages"][2], json!({"role": "assistant", "content": "[an image]"}));
        let calls = body["messages"][1]["tool_calls"].as_array().unwrap();
        assert_eq!(calls[1]["function"]["name"], "made_up");
        calls.iter().map(|call| call["extra_content"].clone()).collect()
    };
    assert_eq!(calls(Flavor::Gemini, &request), [signature("yes"), Value::Null]);
    request.model.name = "gemini-3-flash-preview".into();
    assert_eq!(calls(Flavor::Gemini, &request), [signature("yes"), signature("skip_thought_signature_validator")]);
    request.model.provider = "openai".into();
    assert_eq!(calls(Flavor::Openai, &request), [Value::Null, Value::Null]);
}

#[test]
fn a_schema_is_told_to_who_can_be_told_and_no_option_passes_a_limit() {
    let request = ModelRequest {
        output_schema: Some(json!({"type": "object"})),
        max_output_tokens: Some(7),
        options: json!({"max_tokens": 1_000_000, "max_completion_tokens": 1_000_000}).as_object().unwrap().clone(),
        ..ModelRequest::for_tests()
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "object"}}});
    for (flavor, told, limits) in [
        (Flavor::Openai, format.clone(), [Value::Null, json!(7)]),
        (Flavor::Gemini, format, [json!(7), Value::Null]),
        (Flavor::Compatible, Value::Null, [json!(7), Value::Null]),
    ] {
        let body = body::build(flavor, &request);
        assert_eq!(body["response_format"], told, "{flavor:?}");
        assert_eq!([&body["max_tokens"], &body["max_completion_tokens"]], [&limits[0], &limits[1]], "{flavor:?}");
    }
}
