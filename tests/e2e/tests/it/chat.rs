//! Chatting with an agent on the demo model: what is said, what its tools do, and how both are told.

mod refused;
mod stream;

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, Client, TestApp},
    tools::guest,
};

/// Longest wait for a run that goes on by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tenant whose agent `clerk` has these tools.
async fn clerk(app: &TestApp, guests: &[&str]) -> Client {
    let ada = app.tenant("ada").await;
    let tools: Vec<String> = guests.iter().map(|name| name.replace('_', "-")).collect();
    for (name, tool) in guests.iter().zip(&tools) {
        ada.upload(tool, guest(name)).await.created();
    }
    ada.agent("clerk", &tools.iter().map(String::as_str).collect::<Vec<_>>()).await;
    ada
}

async fn say(client: &Client, body: Value) -> Answer {
    client.post("/v1/agents/clerk/chat", body).await
}

/// Asks until the run has ended.
async fn ended(client: &Client, run: &Value) -> Value {
    let (path, began) = (format!("/v1/runs/{}", run["id"].as_str().unwrap()), Instant::now());
    loop {
        let run = client.get(&path).await.ok();
        if !["queued", "running"].contains(&run["status"].as_str().unwrap()) {
            return run;
        }
        assert!(began.elapsed() < PATIENCE, "still running: {run}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_demo_model_calls_each_example() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc", "clock", "table"]).await;
    let csv = "city,amount\nRome,3\nOslo,4\nRome,5.5";
    let groups = json!({"groups": [
        {"by": {"city": "Oslo"}, "rows": 1, "sum": {"amount": "4"}},
        {"by": {"city": "Rome"}, "rows": 2, "sum": {"amount": "8.5"}},
    ]});
    let query = json!({"csv": csv, "group_by": ["city"], "sum": ["amount"]});
    let days = json!({"days": 31, "weekdays": 22});
    for (said, function, structured, content) in [
        ("What is 12.5 * 3?", "calc__evaluate", Value::Null, "calc__evaluate says: 37.5".to_owned()),
        (
            r#"/calc__evaluate {"expression": "12.5 * 3"}"#,
            "calc__evaluate",
            Value::Null,
            "calc__evaluate says: 37.5".into(),
        ),
        (
            "How many days are there between 2026-01-01 and 2026-02-01?",
            "clock__days_between",
            days.clone(),
            "clock__days_between says: days: 31, weekdays: 22".into(),
        ),
        (
            r#"/clock__days_between {"from": "2026-01-01", "to": "2026-02-01"}"#,
            "clock__days_between",
            days,
            "clock__days_between says: days: 31, weekdays: 22".into(),
        ),
        (
            &format!("Sum of amount, grouped by city:\n{csv}"),
            "table__query",
            groups.clone(),
            format!("table__query says: {groups}"),
        ),
        (&format!("/table__query {query}"), "table__query", groups.clone(), format!("table__query says: {groups}")),
    ] {
        let turn = ada.chat("clerk", said).await;
        assert_eq!(
            (&turn["run"]["status"], &turn["run"]["stop_reason"]),
            (&json!("completed"), &json!("done")),
            "{turn}"
        );
        assert_eq!(turn["message"]["content"], content, "{said}");
        let [called] = turn["tool_calls"].as_array().unwrap().as_slice() else { panic!("{turn}") };
        let (tool, name) = (called["tool"].as_str().unwrap(), called["function"].as_str().unwrap());
        assert_eq!(format!("{tool}__{name}"), function);
        assert_eq!((&called["outcome"]["status"], &called["outcome"]["structured"]), (&json!("ok"), &structured));
        assert!(called["receipt"]["fuel_used"].as_u64().unwrap() > 0, "{called}");
    }
    for said in ["What time is it in Europe/Berlin?", r#"/clock__now {"zone": "Europe/Berlin"}"#] {
        let turn = ada.chat("clerk", said).await;
        let now = &turn["tool_calls"][0]["outcome"]["structured"];
        assert!(["CET", "CEST"].contains(&now["abbreviation"].as_str().unwrap()), "{turn}");
    }
    let turn = ada.chat("clerk", "Hello!").await;
    assert!(turn["message"]["content"].as_str().unwrap().contains("demo model"), "{turn}");
    assert_eq!((&turn["tool_calls"], &turn["run"]["steps"]), (&json!([]), &json!(1)));
}

#[tokio::test]
async fn a_turn_has_its_steps_its_usage_and_its_price() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let turn = say(&ada, json!({"message": "What is 6 * 7?", "metadata": {"ticket": 7}})).await.ok();
    let run = &turn["run"];
    assert_eq!((&run["agent"], &run["revision"], &run["steps"]), (&json!("clerk"), &json!(1), &json!(2)));
    assert_eq!((&run["metadata"], &run["conversation_id"]), (&json!({"ticket": 7}), &turn["conversation_id"]));
    for used in ["input_tokens", "output_tokens", "fuel"] {
        assert!(run["usage"][used].as_u64().unwrap() > 0, "{used}: {run}");
    }
    assert_eq!(run["usage"]["fuel"], turn["tool_calls"][0]["receipt"]["fuel_used"]);

    let detail = ada.get(&format!("/v1/runs/{}", run["id"].as_str().unwrap())).await.ok();
    let timeline = detail["timeline"].as_array().unwrap();
    assert_eq!(timeline.len(), 2);
    assert_eq!(
        (&timeline[0]["model"], &timeline[0]["tool_calls"]),
        (&json!("demo/demo"), &json!([turn["tool_calls"][0]["id"]]))
    );
    assert_eq!(ada.get("/v1/usage").await.ok()["total"]["cost"], run["cost"]);
    assert_ne!(run["cost"]["amount"], "0");

    let path = format!("/v1/conversations/{}/messages", turn["conversation_id"].as_str().unwrap());
    let messages = ada.get(&path).await.ok()["data"].clone();
    let roles: Vec<_> = messages.as_array().unwrap().iter().map(|message| message["role"].clone()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
    assert_eq!(messages[3], turn["message"]);
}

#[tokio::test]
async fn functions_of_one_step_run_side_by_side() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc", "clock", "sleep_long"]).await;
    let both = "/calc__evaluate {\"expression\": \"6 * 7\"}\n\
                /clock__days_between {\"from\": \"2026-01-01\", \"to\": \"2026-01-02\"}";
    let turn = ada.chat("clerk", both).await;
    let content = "calc__evaluate says: 42\nclock__days_between says: days: 1, weekdays: 1";
    assert_eq!(turn["message"]["content"], content);
    let calls = turn["tool_calls"].as_array().unwrap();
    assert_eq!(calls.iter().map(|call| call["step"].clone()).collect::<Vec<_>>(), [1, 1]);

    // Each has begun before any has ended, and the short one need not wait for the long one.
    let events = ada.chat_stream("clerk", "/sleep-long__run {\"seconds\": 1}\n/sleep-long__run {\"seconds\": 0}").await;
    let kinds: Vec<_> =
        events.iter().map(|(_, kind, _)| kind.as_str()).filter(|kind| kind.starts_with("tool_call")).collect();
    assert_eq!(kinds, ["tool_call.started", "tool_call.started", "tool_call.completed", "tool_call.completed"]);
    let ids: Vec<_> =
        events.iter().filter(|(_, kind, _)| kind.starts_with("tool_call")).map(|(.., data)| &data["id"]).collect();
    assert_eq!((ids[2], ids[3]), (ids[1], ids[0]));
}

#[tokio::test]
async fn a_model_is_told_of_an_error_and_goes_on() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["fails", "calc", "traps"]).await;
    for (said, status, code, content) in [
        ("/fails__run", "tool_error", "", "fails__run failed: the oven is cold; preheat it first"),
        ("/calc__evaluate {\"expression\": \"1 / 0\"}", "tool_error", "", "calc__evaluate failed: division by zero"),
        ("/traps__run", "trap", "", "traps__run failed: trap: wasm `unreachable` instruction executed"),
    ] {
        let turn = ada.chat("clerk", said).await;
        assert_eq!((&turn["run"]["status"], &turn["run"]["steps"]), (&json!("completed"), &json!(2)), "{turn}");
        let call = &turn["tool_calls"][0];
        assert_eq!(call["outcome"]["status"], status, "{turn}");
        assert_eq!(call["outcome"]["code"].as_str().unwrap_or_default(), code, "{turn}");
        assert!(call["receipt"]["fuel_used"].as_u64().unwrap() > 0, "{turn}");
        assert_eq!(turn["message"]["content"], content);
    }
    // What never began: the model is told, and no tool ran.
    for (said, code, words) in [
        ("/calc__evaluate {\"expression\": 5}", "tool.bad_arguments", "/expression"),
        ("/calc__evaluate {broken", "tool.bad_arguments", "{broken"),
        ("/calc__divide {}", "tool.unknown_function", "calc__evaluate"),
    ] {
        let turn = ada.chat("clerk", said).await;
        let call = &turn["tool_calls"][0];
        assert_eq!((&call["outcome"]["code"], &call["receipt"]), (&json!(code), &Value::Null), "{turn}");
        let content = turn["message"]["content"].as_str().unwrap();
        assert!(content.contains(" failed: ") && content.contains(words), "{content}");
        assert_eq!(turn["run"]["usage"]["fuel"], 0);
    }
    let turn = ada.chat("clerk", "/fails__run\n/calc__evaluate {\"expression\": \"6 * 7\"}").await;
    let content = turn["message"]["content"].as_str().unwrap();
    assert!(content.contains("fails__run failed:") && content.ends_with("calc__evaluate says: 42"), "{content}");
}

#[tokio::test]
async fn a_run_in_the_background_is_asked_for_later() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let background = say(&ada, json!({"message": "What is 6 * 7?", "background": true})).await;
    let prefer = ada.request(Method::POST, "/v1/agents/clerk/chat").header("prefer", "wait=0");
    let prefer = Answer::of(prefer.json(&json!({"message": "What is 6 * 7?"}))).await;
    for answer in [background, prefer] {
        assert_eq!(answer.status, 202, "{}", answer.text);
        let run = answer.json()["run"].clone();
        assert_eq!(answer.headers["location"], format!("/v1/runs/{}", run["id"].as_str().unwrap()));
        let run = ended(&ada, &run).await;
        assert_eq!((&run["status"], &run["stop_reason"]), (&json!("completed"), &json!("done")));
        let path = format!("/v1/conversations/{}/messages", run["conversation_id"].as_str().unwrap());
        let messages = ada.get(&path).await.ok();
        assert_eq!(messages["data"][3]["content"], "calc__evaluate says: 42");
    }
}

#[tokio::test]
async fn a_conversation_goes_on() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let user = |text: &str| json!({"role": "user", "content": text});
    let history = [user("Hi"), json!({"role": "assistant", "content": [{"type": "text", "text": "Hello, Ada."}]})];
    let first = [&history[..], &[user("What is 1 + 1?")]].concat();
    let turn = say(&ada, json!({"messages": first})).await.ok();
    let conversation = turn["conversation_id"].clone();
    let image = json!([{"type": "text", "text": "What is 2 + 2?"}, {"type": "image", "media_type": "image/png", "data": "aGk="}]);
    for body in [json!({"message": image}), json!({"messages": [user("Listen."), user("What is 2 + 2?")]})] {
        let mut body = body;
        body["conversation_id"] = conversation.clone();
        let turn = say(&ada, body).await.ok();
        assert_eq!(turn["conversation_id"], conversation);
        assert_eq!(turn["message"]["content"], "calc__evaluate says: 4");
    }
    let path = format!("/v1/conversations/{}/messages", conversation.as_str().unwrap());
    let messages = ada.get(&path).await.ok();
    let shown: Vec<_> = messages["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
        .collect();
    let turn = |said, answer| [("user", said), ("assistant", ""), ("tool", ""), ("assistant", answer)];
    let expected = [
        &[("user", "Hi"), ("assistant", "Hello, Ada.")][..],
        &turn("What is 1 + 1?", "calc__evaluate says: 2"),
        &turn("What is 2 + 2?", "calc__evaluate says: 4"),
        &[("user", "Listen.")],
        &turn("What is 2 + 2?", "calc__evaluate says: 4"),
    ];
    assert_eq!(shown, expected.concat());
}

#[tokio::test]
async fn a_tool_learns_who_asks_and_in_what_context() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("echo", guest("echo")).await.created();
    let grants = json!({"config": {"unit": "km", "home": "users/{external_user_id}"}});
    let agent = json!({"name": "clerk", "system_prompt": "You help.", "model": "demo",
                       "tools": [{"tool": "echo", "version": "latest", "grants": grants}]});
    ada.post("/v1/agents", agent).await.created();
    let body =
        json!({"message": "/echo__run {\"a\": [1, \"two\"]}", "external_user_id": "u-1", "context": {"plan": "gold"}});
    let turn = say(&ada, body).await.ok();
    let call = &turn["tool_calls"][0];
    let told = &call["outcome"]["structured"];
    assert_eq!(told["arguments"], json!({"a": [1, "two"]}));
    assert_eq!(told["config"], json!({"unit": "km", "home": "users/u-1"}));
    for (name, value) in [
        ("call_id", call["id"].clone()),
        ("idempotency_key", call["receipt"]["idempotency_key"].clone()),
        ("attempt", json!(1)),
        ("agent", json!("clerk")),
        ("conversation", turn["conversation_id"].clone()),
        ("external_user_id", json!("u-1")),
        ("context", json!({"plan": "gold"})),
    ] {
        assert_eq!(told["call"][name], value, "{name}");
    }
    assert_eq!((&turn["run"]["external_user_id"], &call["external_user_id"]), (&json!("u-1"), &json!("u-1")));
    let logs = call["receipt"]["logs"].as_array().unwrap();
    let levels: Vec<_> = logs.iter().map(|line| line["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["trace", "debug", "info", "warn", "error", "critical", "stdout"]);

    // The config names the end user, and this turn has none.
    let turn = say(&ada, json!({"message": "/echo__run {}"})).await.ok();
    assert_eq!(turn["tool_calls"][0]["outcome"]["code"], "denied.config", "{turn}");
    assert_eq!(turn["tool_calls"][0]["outcome"]["status"], "denied");
    assert_eq!(turn["run"]["status"], "completed");
}

#[tokio::test]
async fn a_conversation_is_with_its_first_end_user() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &["calc"]).await;
    let turn = say(&ada, json!({"message": "Hi", "external_user_id": "u-1"})).await.ok();
    let next = |user: Option<&str>| {
        let mut body = json!({"message": "Hi", "conversation_id": turn["conversation_id"]});
        if let Some(user) = user {
            body["external_user_id"] = json!(user);
        }
        body
    };
    say(&ada, next(Some("u-2"))).await.problem(404, "conversation.not_found");
    say(&ada, next(Some("u-1"))).await.ok();
    say(&ada, json!({"message": "Hi", "external_user_id": ""})).await.problem(422, "request.invalid");

    // A key that is bound to one end user is that user, whatever is asked.
    let bound = async |user: &str| {
        let key =
            json!({"name": user, "scopes": ["chat", "conversations:read", "runs:read"], "external_user_id": user});
        let key = ada.post("/v1/api-keys", key).await.created();
        app.client(key["key"].as_str().unwrap())
    };
    let (first, second) = (bound("u-1").await, bound("u-2").await);
    assert_eq!(say(&first, next(None)).await.ok()["run"]["external_user_id"], "u-1");
    say(&first, next(Some("u-2"))).await.problem(403, "api_key.other_external_user");
    say(&second, next(None)).await.problem(404, "conversation.not_found");
    let path = format!("/v1/conversations/{}", turn["conversation_id"].as_str().unwrap());
    first.get(&path).await.ok();
    second.get(&path).await.problem(404, "conversation.not_found");
    assert_eq!(second.get("/v1/conversations").await.ok()["data"], json!([]));
}

#[tokio::test]
async fn turns_wait_in_line_for_their_conversation() {
    let app = TestApp::start().await;
    let ada = clerk(&app, &[]).await;
    let conversation = ada.chat("clerk", "Hi").await["conversation_id"].clone();
    let turns = (0..6)
        .map(|n| say(&ada, json!({"message": format!("turn {n}"), "conversation_id": conversation, "queue": true})));
    for answer in futures::future::join_all(turns).await {
        assert_eq!(answer.ok()["run"]["status"], "completed");
    }
    let path = format!("/v1/conversations/{}/messages", conversation.as_str().unwrap());
    let messages = ada.get(&path).await.ok();
    let roles: Vec<&str> = messages["data"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant"].repeat(7), "no turn is said before the one before it is answered");
}
