use domain::{
    CallId, Problem, SystemIds,
    message::{FunctionSpec, Part, Role},
};
use serde_json::json;

use super::*;
use crate::{
    Message, ModelEvent, StopReason, Usage,
    wire::tests::{KEY, call, read_text},
};

fn event(event: Value) -> String {
    format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or("x"))
}

fn stop(reason: &str) -> String {
    event(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}}))
        + &event(json!({"type": "message_stop"}))
}

fn start(index: u64, block: Value) -> String {
    event(json!({"type": "content_block_start", "index": index, "content_block": block}))
}

fn delta(index: u64, delta: Value) -> String {
    event(json!({"type": "content_block_delta", "index": index, "delta": delta}))
}

fn end(index: u64) -> String {
    event(json!({"type": "content_block_stop", "index": index}))
}

fn tool(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "f", "input": {}})
}

#[tokio::test]
async fn garbage_is_refused_before_it_costs_anything() {
    let json = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
    let thinks = |text: &str| json!({"type": "thinking_delta", "thinking": text});
    let long = "x".repeat(200 * 1024);
    for (what, text, reason) in [
        ("a block's index of four billion", start(4_000_000_000, tool("a")), "index"),
        ("an index of 512", start(512, tool("a")), "index"),
        ("65 calls", (0..65).map(|n| start(n, tool("a"))).collect(), "more than 64"),
        ("arguments of no call", delta(3, json("{")), "not begun"),
        ("long arguments", start(0, tool("a")) + &delta(0, json(&long)) + &delta(0, json(&long)), "arguments"),
        ("a long id", start(0, tool(&"n".repeat(300))), "256 bytes"),
        (
            "long thoughts",
            start(0, json!({"type": "thinking", "thinking": ""})) + &delta(0, thinks(&long)).repeat(6),
            "1 MiB",
        ),
        (
            "many thoughts",
            (0..6)
                .map(|n| start(n, json!({"type": "thinking", "thinking": ""})) + &delta(n, thinks(&long)) + &end(n))
                .collect(),
            "1 MiB",
        ),
        ("long text", delta(0, json!({"type": "text_delta", "text": long})).repeat(21), "4 MiB"),
        ("a chat completion", "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n".into(), "no event stream"),
        ("a number for a type", "data: {\"type\":7}\n\n".into(), "JSON object"),
        ("nothing", String::new(), "no event stream"),
    ] {
        let error = read_text(&Messages, text + "data: {\"x\":1}\n\n").await.unwrap_err();
        assert_eq!(error.code(), "provider.bad_stream", "{what}: {error}");
        assert!(error.to_string().contains(reason), "{what}: {error}");
    }
}

#[tokio::test]
async fn what_is_said_ends_for_a_reason_and_is_counted_only_at_its_end() {
    for (reason, expected) in [
        ("end_turn", StopReason::Done),
        ("stop_sequence", StopReason::Done),
        ("new_reason", StopReason::Done),
        ("max_tokens", StopReason::Length),
        ("model_context_window_exceeded", StopReason::Length),
        ("refusal", StopReason::ContentFilter),
    ] {
        let (_, events) = read_text(&Messages, stop(reason)).await.unwrap();
        assert!(matches!(events[..], [ModelEvent::End { stop, .. }] if stop == expected), "{reason} {events:?}");
    }
    // The first event's count of the output is a placeholder: without the last one everything is counted here.
    let begun =
        event(json!({"type": "message_start", "message": {"usage": {"input_tokens": 900, "output_tokens": 1}}}));
    let said = delta(0, json!({"type": "text_delta", "text": "hello world"}));
    let uncounted = event(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}));
    let (_, events) = read_text(&Messages, begun + &said + &uncounted).await.unwrap();
    let [ModelEvent::End { usage: Usage { output_tokens: 2, reported: false, .. }, .. }] = events[..] else {
        panic!("{events:?}")
    };
}

#[tokio::test]
async fn arguments_come_in_pieces_at_once_or_not_at_all() {
    let json = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
    let begun = json!({"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}});
    for (text, arguments) in [
        (start(0, tool("a")) + &end(0), json!({})),
        (start(0, tool("a")) + &delta(0, json("{\"x\"")) + &delta(0, json(":2}")) + &end(0), json!({"x": 2})),
        (start(0, begun.clone()) + &end(0), json!({"x": 1})),
        (start(0, begun) + &delta(0, json("{\"x\":2}")) + &end(0), json!({"x": 2})),
        (start(0, tool("a")) + &delta(0, json("{x: 1")) + &end(0), json!("{x: 1")),
    ] {
        let (_, events) = read_text(&Messages, text + &stop("tool_use")).await.unwrap();
        assert_eq!(events[0], call("a", "f", arguments));
    }
}

#[tokio::test]
async fn an_error_in_the_stream_is_an_error() {
    for (kind, code) in [
        ("overloaded_error", "provider.unavailable"),
        ("api_error", "provider.unavailable"),
        ("rate_limit_error", "provider.rate_limited"),
        ("invalid_request_error", "provider.request_refused"),
        ("authentication_error", "provider.key_refused"),
        ("not_found_error", "provider.model_not_found"),
        ("billing_error", "provider.quota_used_up"),
    ] {
        let error = json!({"type": "error", "error": {"type": kind, "message": format!("it was {KEY}")}});
        let said = delta(0, json!({"type": "text_delta", "text": "Well"}));
        let error = read_text(&Messages, said + &event(error)).await.unwrap_err();
        assert_eq!(error.code(), code, "{kind}");
        assert!(!format!("{error} {error:?}").contains(KEY), "{error:?}");
    }
    let error = read_text(&Messages, event(json!({"type": "error"}))).await.unwrap_err();
    assert!(error.to_string().contains("without a message"), "{error}");
}

#[test]
fn the_body_is_what_anthropic_takes() {
    let base = ModelRequest::for_tests();
    assert_eq!(
        body::build(&base),
        json!({
            "model": "m-1", "stream": true, "system": "Be brief.", "max_tokens": 8192,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}],
        })
    );

    let id = CallId::new(&SystemIds);
    let call = |provider_id: &str, name: &str, arguments| Part::ToolCall {
        id,
        provider_id: provider_id.into(),
        name: name.into(),
        arguments,
    };
    let result = |provider_id: &str, is_error, text: &str| Part::ToolResult {
        id,
        provider_id: provider_id.into(),
        is_error,
        text: text.into(),
    };
    let image = || Part::Image { media_type: "image/png".into(), data: "AAAA".into() };
    let thought = |provider: &str| Part::Reasoning {
        provider: provider.into(),
        data: json!({"type": "thinking", "signature": provider}),
    };
    let message = |role, parts| Message { role, parts };
    let full = ModelRequest {
        system: String::new(),
        messages: vec![
            message(Role::User, vec![Part::text("look"), image(), Part::text(" ")]),
            message(
                Role::Assistant,
                vec![
                    thought("local"),
                    thought("another"),
                    Part::text(""),
                    call("a", "calc__evaluate", json!({"x": 1})),
                    call("functions.f:0", "made up", json!("{bad")),
                ],
            ),
            message(Role::Tool, vec![result("a", false, "2"), image(), image(), result("functions.f:0", true, "")]),
            message(Role::User, vec![Part::text("and?")]),
            message(Role::Assistant, vec![Part::text("")]),
            message(Role::User, vec![Part::text("hello?")]),
            message(Role::Assistant, vec![image()]),
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
            "top_k": 5, "model": "evil", "messages": [], "stream": false, "system": "evil", "tools": [],
            "max_tokens": 100_000, "temperature": 2,
        })
        .as_object()
        .unwrap()
        .clone(),
        ..base.clone()
    };
    assert_eq!(
        body::build(&full),
        json!({
            "model": "m-1", "stream": true, "top_k": 5, "temperature": 0.5, "max_tokens": 100,
            "tools": [{"name": "calc__evaluate", "description": "Evaluates.", "input_schema": {"type": "object"}}],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "signature": "local"},
                    {"type": "tool_use", "id": "a", "name": "calc__evaluate", "input": {"x": 1}},
                    {"type": "tool_use", "id": "functions_f_0", "name": "made_up", "input": {"not_an_object": "{bad"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": [
                        {"type": "text", "text": "2"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    ]},
                    {"type": "tool_result", "tool_use_id": "functions_f_0", "is_error": true},
                    {"type": "text", "text": "and?"},
                    {"type": "text", "text": "hello?"},
                ]},
                {"role": "assistant", "content": [{"type": "text", "text": "[an image]"}]},
            ],
        })
    );
    let thinking = |options: Value| ModelRequest { options: options.as_object().unwrap().clone(), ..base.clone() };
    let budget = json!({"type": "enabled", "budget_tokens": 2000});
    for (options, tokens) in [
        (json!({"thinking": budget}), 10_192),
        (json!({"thinking": budget, "max_tokens": 4000}), 4000),
        (json!({"thinking": "x"}), 8192),
    ] {
        assert_eq!(body::build(&thinking(options))["max_tokens"], tokens);
    }
    for (tokens, thinks) in [(2000, false), (2001, true)] {
        let request = ModelRequest { max_output_tokens: Some(tokens), ..thinking(json!({"thinking": budget})) };
        assert_eq!(body::build(&request).get("thinking").is_some(), thinks, "{tokens}");
    }
}
