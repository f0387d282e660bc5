use domain::{CallId, SystemIds, problem::Problem};
use futures::TryStreamExt;
use serde_json::json;

use super::*;
use crate::ModelRef;

fn function(name: &str, description: &str, input_schema: Value) -> FunctionSpec {
    let (tool, function) = domain::names::split_model_name(name).unwrap();
    FunctionSpec { tool, function, model_name: name.into(), description: description.into(), input_schema }
}

fn functions() -> Vec<FunctionSpec> {
    let text = |description: &str| json!({"type": "string", "description": description});
    let optional = |description: &str| json!({"type": ["string", "null"], "description": description});
    let columns =
        |description: &str| json!({"type": ["array", "null"], "items": {"type": "string"}, "description": description});
    vec![
        function(
            "calc__evaluate",
            "Evaluates an arithmetic expression in exact decimals of up to 28 digits: + - * / ^, parentheses and unary \
             minus, for example `(19.99 * 3 - 5) / 4`. Only a division is rounded; any other result that would lose \
             digits is an error.",
            json!({"type": "object", "required": ["expression"], "properties": {"expression": text("Numbers are written like `1250.75`, without spaces or separators inside.")}}),
        ),
        function(
            "clock__now",
            "The date and time right now in a time zone.",
            json!({"type": "object", "properties": {"zone": optional("An IANA zone such as `Europe/Berlin` or `UTC`; UTC if left out.")}}),
        ),
        function(
            "clock__days_between",
            "Counts the days from one date to another.",
            json!({"type": "object", "required": ["from", "to"], "properties": {
                "from": text("The first date, for example `2026-02-27`."), "to": text("The second date."),
            }}),
        ),
        function(
            "table__query",
            "Filters the rows of a CSV table, groups and counts them, and adds up columns of numbers exactly.",
            json!({"type": "object", "required": ["csv"], "properties": {
                "csv": text("The table; its first line names the columns."),
                "group_by": columns("Columns whose equal values form a group."), "sum": columns("Columns to add up."),
                "filter": {"type": ["array", "null"], "items": {"$ref": "#/$defs/Condition"}},
                "limit": {"type": ["integer", "null"]},
            }}),
        ),
        function(
            "shop__order",
            "Places an order.",
            json!({"type": "object", "required": ["size", "count"], "properties": {
                "size": {"$ref": "#/$defs/Size"}, "count": {"type": "integer"}, "gift": {"type": "boolean"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            }, "$defs": {"Size": {"oneOf": [{"const": "small"}, {"const": "large", "description": "Big."}]}}}),
        ),
        function(
            "words__reverse",
            "Reverses a text.",
            json!({"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}),
        ),
        function(
            "stats__mean",
            "The mean of numbers.",
            json!({"type": "object", "required": ["numbers"], "properties": {
                "numbers": {"type": "array", "items": {"type": "number"}},
            }}),
        ),
    ]
}

fn message(role: Role, parts: Vec<Part>) -> Message {
    Message { role, parts }
}

fn user(text: &str) -> Message {
    message(Role::User, vec![Part::text(text)])
}

fn call(name: &str, arguments: Value) -> Call {
    Call { name: name.into(), arguments }
}

#[test]
fn a_fitting_function_is_called_with_what_the_message_has() {
    let csv = "city,amount\nRome,3\nOslo,4";
    for (text, name, arguments) in [
        ("What is 12.5 * 3?", "calc__evaluate", json!({"expression": "12.5 * 3"})),
        ("evaluate 1+1", "calc__evaluate", json!({"expression": "1+1"})),
        ("How much is 7 times 6?", "calc__evaluate", json!({"expression": "7 * 6"})),
        (
            "how many days between 2026-01-01 and 2026-02-01",
            "clock__days_between",
            json!({"from": "2026-01-01", "to": "2026-02-01"}),
        ),
        (
            "How many days are there to 2026-02-01 from 2026-01-01?",
            "clock__days_between",
            json!({"from": "2026-01-01", "to": "2026-02-01"}),
        ),
        ("What time is it in Europe/Berlin?", "clock__now", json!({"zone": "Europe/Berlin"})),
        (
            "How many days from 2026-03-01 to 2026-02-01?",
            "clock__days_between",
            json!({"from": "2026-03-01", "to": "2026-02-01"}),
        ),
        ("(19.99 * 3 - 5) / 4 = ?", "calc__evaluate", json!({"expression": "(19.99 * 3 - 5) / 4"})),
        ("What time is it?", "clock__now", json!({})),
        (
            &format!("Sum of amount, grouped by city, limit 5:\n{csv}"),
            "table__query",
            json!({"csv": csv, "group_by": ["city"], "sum": ["amount"], "limit": 5}),
        ),
        (&format!("Sum the amount:\n```\n{csv}\n```"), "table__query", json!({"csv": csv, "sum": ["amount"]})),
        (
            &format!("Group by city and amount. Thanks!\n\n{csv}"),
            "table__query",
            json!({"csv": csv, "group_by": ["city", "amount"]}),
        ),
        (
            "Please order 3 large ones, gift: yes, note: \"hurry\"",
            "shop__order",
            json!({"size": "large", "count": 3, "gift": true, "note": "hurry"}),
        ),
        ("order a small one, count 2", "shop__order", json!({"size": "small", "count": 2})),
        ("Reverse the text hello world", "words__reverse", json!({"text": "hello world"})),
        ("reverse this: a b c", "words__reverse", json!({"text": "a b c"})),
        ("reverse \"drawer\" for me", "words__reverse", json!({"text": "drawer"})),
        ("mean of 1, 2.5 and -3", "stats__mean", json!({"numbers": [1, 2.5, -3]})),
    ] {
        assert_eq!(reply(&[user(text)], &functions()), Reply::Calls(vec![call(name, arguments)]), "{text}");
    }
}

#[test]
fn without_a_fitting_function_it_explains_itself() {
    for text in ["Hello!", "Hi, what can you do?", "", "Evaluate my essay", "order some", "/calc", "/ x__y {}"] {
        let Reply::Text(said) = reply(&[user(text)], &functions()) else { panic!("{text}") };
        assert!(said.contains("demo model") && said.contains("not a language model"), "{said}");
        assert!(said.contains("- clock__days_between: Counts the days from one date to another."), "{said}");
        assert!(said.ends_with("/calc__evaluate {\"expression\":\"12.5 * 3\"}"), "{said}");
    }
    let Reply::Text(said) = reply(&[user("What is 1 + 1?")], &[]) else { panic!() };
    assert!(said.contains("demo model") && said.contains("has no tools"), "{said}");
}

#[test]
fn written_lines_are_called_as_they_are() {
    let text = "Please do:\n/calc__evaluate {\"expression\": \"1\"}\n  /clock__now\n/no__such {bad json\n/calc__evaluate 5\nthanks";
    assert_eq!(
        reply(&[user(text)], &[]),
        Reply::Calls(vec![
            call("calc__evaluate", json!({"expression": "1"})),
            call("clock__now", json!({})),
            call("no__such", json!("{bad json")),
            call("calc__evaluate", json!(5)),
        ])
    );
}

fn after_results(results: &[(&str, bool, &str)]) -> Vec<Message> {
    let id = CallId::new(&SystemIds);
    let calls = results.iter().enumerate().map(|(n, (name, ..))| Part::ToolCall {
        id,
        provider_id: format!("demo_{n}"),
        name: (*name).into(),
        arguments: json!({}),
    });
    let results = results.iter().enumerate().map(|(n, (_, is_error, text))| {
        let text = (*text).to_owned();
        message(Role::Tool, vec![Part::ToolResult { id, provider_id: format!("demo_{n}"), is_error: *is_error, text }])
    });
    [user("/calc__evaluate {}"), message(Role::Assistant, calls.collect())].into_iter().chain(results).collect()
}

#[test]
fn after_results_it_says_what_they_say() {
    for (results, expected) in [
        (vec![("calc__evaluate", false, r#"{"value":"37.5"}"#)], "calc__evaluate says: 37.5"),
        (vec![("calc__evaluate", false, "37.5")], "calc__evaluate says: 37.5"),
        (vec![("calc__evaluate", false, r#""text""#)], "calc__evaluate says: text"),
        (vec![("x__y", false, r#"{"a":1,"b":"two"}"#)], "x__y says: a: 1, b: two"),
        (vec![("x__y", false, r#"{"a":[1]}"#)], r#"x__y says: {"a":[1]}"#),
        (vec![("x__y", false, "not json")], "x__y says: not json"),
        (vec![("x__y", true, "limit.fuel: too long")], "x__y failed: limit.fuel: too long"),
        (
            vec![("calc__evaluate", false, "1"), ("clock__now", true, "no such zone")],
            "calc__evaluate says: 1\nclock__now failed: no such zone",
        ),
    ] {
        assert_eq!(reply(&after_results(&results), &functions()), Reply::Text(expected.into()));
    }
}

fn request(messages: Vec<Message>) -> ModelRequest {
    ModelRequest {
        model: ModelRef::parse("demo"),
        system: "You are a clerk.".into(),
        messages,
        functions: functions(),
        temperature: None,
        max_output_tokens: None,
        options: Map::new(),
        output_schema: None,
    }
}

async fn run(request: &ModelRequest) -> Vec<ModelEvent> {
    Demo.stream(request).await.unwrap().try_collect().await.map_err(|error: ProviderError| error.code()).unwrap()
}

#[tokio::test]
async fn an_answer_by_a_schema_has_what_was_said_or_an_example() {
    let schema =
        |name: &str, is: &str| json!({"type": "object", "required": [name], "properties": {name: {"type": is}}});
    for (messages, schema, expected) in [
        (after_results(&[("calc__evaluate", false, "37.5")]), schema("total", "number"), json!({"total": 37.5})),
        (vec![user("Hello")], schema("total", "integer"), json!({"total": 1})),
        (vec![user("There are 12 of them.")], schema("count", "integer"), json!({"count": 12})),
    ] {
        let asked = ModelRequest { output_schema: Some(schema), functions: Vec::new(), ..request(messages) };
        let said: String = run(&asked)
            .await
            .into_iter()
            .filter_map(|event| match event {
                ModelEvent::Text(text) => Some(text),
                _ => None,
            })
            .collect();
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), expected);
    }
}

#[tokio::test]
async fn it_streams_pieces_and_reports_usage() {
    let events = run(&request(after_results(&[("calc__evaluate", false, "37.5")]))).await;
    let text = |text: &str| ModelEvent::Text(text.into());
    assert_eq!(events[..3], [text("calc__evaluate"), text(" says:"), text(" 37.5")]);
    let ModelEvent::End { stop: StopReason::Done, usage } = events[3] else { panic!("{events:?}") };
    assert!(usage.reported && usage.input_tokens > 100 && (6..15).contains(&usage.output_tokens), "{usage:?}");

    let events = run(&ModelRequest { max_output_tokens: Some(2), ..request(vec![user("Hello")]) }).await;
    assert_eq!(events[..2], [text("I"), text(" am")]);
    assert!(matches!(events[2..], [ModelEvent::End { stop: StopReason::Length, .. }]), "{events:?}");
}

#[tokio::test]
async fn calls_have_ids_of_their_own_and_the_same_request_has_the_same_answer() {
    let mut messages = after_results(&[("calc__evaluate", false, "1"), ("calc__evaluate", false, "2")]);
    messages.push(user("/calc__evaluate {}\n/clock__now {}"));
    let asked = request(messages);
    let events = run(&asked).await;
    let ids: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ModelEvent::ToolCall { provider_id, .. } => Some(provider_id.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(ids, ["demo_3", "demo_4"]);
    assert!(matches!(events.last(), Some(ModelEvent::End { stop: StopReason::ToolCalls, .. })));
    assert_eq!(events, run(&asked).await);
}
