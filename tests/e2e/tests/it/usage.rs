//! Invariant 6: money is exact. Totals are sums of events, and each event can be computed again.

use std::collections::BTreeMap;

use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::{Value, json};

use crate::app::{Answer, Client, TestApp, component};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Money and quantities are decimals in strings; floats would not parse here.
fn decimal(value: &Value) -> Decimal {
    Decimal::from_str_exact(value.as_str().unwrap_or_else(|| panic!("{value} is no decimal in a string"))).unwrap()
}

fn sum<'e>(events: impl IntoIterator<Item = &'e Value>) -> Decimal {
    events.into_iter().map(|event| decimal(&event["amount"]["amount"])).sum()
}

/// All events, from pages of three.
async fn events(client: &Client) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/usage/events?limit=3{cursor}")).await.ok();
        found.extend(page["data"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}

/// A tenant that used something of every kind, for several users, keys, agents and tools.
async fn spender(app: &TestApp) -> Client {
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    ada.upload("echo", component("echo")).await.created();
    ada.agent("clerk", &["calc", "echo"]).await;
    ada.agent("other", &[]).await;
    let key = ada.post("/v1/api-keys", json!({"name": "second", "scopes": ["chat"]})).await.created();
    let second = app.client(text(&key["key"]));
    let two_calls = "/calc__evaluate {\"expression\": \"1/3\"}\n/echo__run {\"x\": 1}";
    for (client, agent, message, user) in [
        (&ada, "clerk", two_calls, json!("user-1")),
        (&ada, "clerk", "/calc__evaluate {\"expression\": \"((\"}", json!("user-2")),
        (&second, "clerk", "/calc__evaluate {\"expression\": \"2^64\"}", json!("user-1")),
        (&second, "other", "hello there", Value::Null),
    ] {
        let body = json!({"message": message, "external_user_id": user});
        let turn = client.post(&format!("/v1/agents/{agent}/chat"), body).await.ok();
        assert_eq!(turn["run"]["status"], "completed", "{turn}");
    }
    for user in [json!("user-2"), Value::Null] {
        let call = json!({"function": "run", "arguments": {"x": "y"}, "external_user_id": user});
        ada.post("/v1/tools/echo/versions/latest/calls", call).await.ok();
    }
    ada
}

#[tokio::test]
async fn a_range_or_grouping_that_cannot_be_is_refused_with_the_place() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    for (query, code, pointer) in [
        ("from=yesterday", "usage.bad_range", "/from"),
        ("to=2026-13-01T00:00:00Z", "usage.bad_range", "/to"),
        ("from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "usage.bad_range", "/from"),
        ("from=2026-02-01T00:00:00Z&to=2026-02-01T00:00:00Z", "usage.bad_range", "/from"),
        ("from=2026-02-01", "usage.bad_range", "/from"),
        ("since=2026-02-01T00:00:00Z", "request.invalid", "/since"),
    ] {
        for path in ["/v1/usage", "/v1/usage/events"] {
            let problem = ada.get(&format!("{path}?{query}")).await.problem(422, code);
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{path}?{query}");
        }
    }
    for group_by in ["colour", "day,,kind", "day,colour", ","] {
        let problem = ada.get(&format!("/v1/usage?group_by={group_by}")).await.problem(422, "usage.bad_group_by");
        assert_eq!(problem["errors"][0]["pointer"], "/group_by");
    }
    let nothing = ada.get("/v1/usage").await.ok();
    assert_eq!((&nothing["total"]["cost"]["amount"], &nothing["totals"]), (&json!("0"), &json!([])));
    app.stop().await;
}

#[tokio::test]
async fn totals_are_the_exact_sums_of_the_events_however_they_are_grouped() {
    let app = TestApp::start().await;
    let ada = spender(&app).await;
    let events = events(&ada).await;
    let mut ids: Vec<&str> = events.iter().map(|event| text(&event["id"])).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len(), "the pages hold each event once");
    assert!(events.is_sorted_by(|a, b| text(&a["occurred_at"]) >= text(&b["occurred_at"])), "newest first");
    assert!(sum(&events) > Decimal::ZERO);

    let names = ["day", "agent", "kind", "tool", "model", "external_user_id", "api_key"];
    let mut groupings: Vec<Vec<&str>> = vec![Vec::new(), names.to_vec()];
    groupings.extend(names.iter().map(|name| vec![*name]));
    groupings.extend(
        [["day", "kind"], ["agent", "external_user_id"], ["tool", "api_key"], ["model", "kind"]].map(Vec::from),
    );
    for group_by in groupings {
        let report = ada.get(&format!("/v1/usage?group_by={}", group_by.join(","))).await.ok();
        assert_eq!(report["group_by"], json!(group_by));
        let mut expected: BTreeMap<Vec<Option<&str>>, Vec<&Value>> = BTreeMap::new();
        for event in &events {
            expected.entry(group_by.iter().map(|by| of_group(event, by)).collect()).or_default().push(event);
        }
        let rows = report["totals"].as_array().unwrap();
        assert_eq!(rows.len(), expected.len(), "{group_by:?}: {report}");
        for row in rows {
            let group: Vec<Option<&str>> = group_by.iter().map(|by| row["group"][*by].as_str()).collect();
            is_sum(row, expected.remove(&group).unwrap_or_else(|| panic!("{group_by:?}: nobody has {group:?}")));
        }
        is_sum(&report["total"], events.iter().collect());
        let costs: Decimal = rows.iter().map(|row| decimal(&row["cost"]["amount"])).sum();
        assert_eq!(costs, decimal(&report["total"]["cost"]["amount"]), "{group_by:?}");
        // The operator is told the same.
        let path = format!("/operator/v1/usage?tenant={}&group_by={}", ada.tenant, group_by.join(","));
        assert_eq!(app.operator().get(&path).await.ok(), report);
    }
    // Each event is in one of two halves.
    let middle = text(&events[events.len() / 2]["occurred_at"]).replace('+', "%2B");
    let half =
        async |query: String| decimal(&ada.get(&format!("/v1/usage?{query}")).await.ok()["total"]["cost"]["amount"]);
    let both = half(format!("to={middle}")).await + half(format!("from={middle}")).await;
    assert_eq!(both, sum(&events));
    app.stop().await;
}

/// The group of an event, as `group_by` names it.
fn of_group<'e>(event: &'e Value, by: &str) -> Option<&'e str> {
    match by {
        "day" => Some(&text(&event["occurred_at"])[..10]),
        "agent" => event["agent_id"].as_str(),
        "api_key" => event["api_key_id"].as_str(),
        field => event[field].as_str(),
    }
}

#[track_caller]
fn is_sum(row: &Value, events: Vec<&Value>) {
    assert_eq!(row["events"], events.len(), "{row}");
    assert_eq!(decimal(&row["cost"]["amount"]), sum(events.iter().copied()), "{row}");
    let of = |kinds: &[&str]| -> Decimal {
        let events = events.iter().filter(|event| kinds.contains(&text(&event["kind"])));
        events.map(|event| decimal(&event["quantity"])).sum()
    };
    let quantities = &row["quantities"];
    for (name, kinds) in [
        ("input_tokens", ["model_input_tokens", "model_cached_input_tokens"].as_slice()),
        ("cached_input_tokens", &["model_cached_input_tokens"]),
        ("output_tokens", &["model_output_tokens"]),
        ("fuel", &["tool_fuel"]),
    ] {
        assert_eq!(Decimal::from(quantities[name].as_u64().unwrap()), of(kinds), "{name}: {row}");
    }
    assert_eq!(decimal(&quantities["memory_byte_seconds"]), of(&["tool_memory_byte_seconds"]), "{row}");
}

#[tokio::test]
async fn what_a_run_and_a_receipt_cost_is_the_sum_of_their_events() {
    let app = TestApp::start().await;
    let ada = spender(&app).await;
    let events = events(&ada).await;
    let of = |field: &'static str, id: &Value| -> Decimal {
        let id = id.clone();
        sum(events.iter().filter(move |event| event[field] == id))
    };
    let runs = ada.get("/v1/runs").await.ok();
    assert_eq!(runs["data"].as_array().unwrap().len(), 4);
    for run in runs["data"].as_array().unwrap() {
        assert_eq!(decimal(&run["cost"]["amount"]), of("run_id", &run["id"]), "{run}");
        let detail = ada.get(&format!("/v1/runs/{}", text(&run["id"]))).await.ok();
        let steps = detail["timeline"].as_array().unwrap();
        let of_steps: Decimal = steps.iter().map(|step| decimal(&step["cost"]["amount"])).sum();
        assert_eq!(of_steps, decimal(&run["cost"]["amount"]), "{detail}");
        let fuel: u64 = steps.iter().map(|step| step["usage"]["fuel"].as_u64().unwrap()).sum();
        assert_eq!(run["usage"]["fuel"], fuel);
    }
    let calls = ada.get("/v1/tool-calls").await.ok();
    assert_eq!(calls["data"].as_array().unwrap().len(), 6);
    for call in calls["data"].as_array().unwrap() {
        let receipt = &call["receipt"];
        assert!(receipt["fuel_used"].as_u64().unwrap() > 0, "{call}");
        assert_eq!(decimal(&receipt["price"]["amount"]), of("call_id", &call["id"]), "{call}");
        let mine = events.iter().filter(|event| event["call_id"] == call["id"]);
        let fuel = mine.clone().find(|event| event["kind"] == "tool_fuel").unwrap();
        assert_eq!(decimal(&fuel["quantity"]), Decimal::from(receipt["fuel_used"].as_u64().unwrap()));
        let memory = mine.clone().find(|event| event["kind"] == "tool_memory_byte_seconds").unwrap();
        let byte_us = receipt["memory_peak_bytes"].as_u64().unwrap() * receipt["total_us"].as_u64().unwrap();
        assert_eq!(decimal(&memory["quantity"]), Decimal::from(byte_us) / Decimal::from(1_000_000));
        assert_eq!(mine.count(), 2);
    }
    app.stop().await;
}

#[tokio::test]
async fn every_event_is_computed_again_from_its_price_book() {
    let app = TestApp::start().await;
    let ada = spender(&app).await;
    let mut kinds = std::collections::BTreeSet::new();
    for event in events(&ada).await {
        let book = ada.get(&format!("/v1/price-books/{}", event["price_book"])).await.ok();
        let price = unit_price(&book, &event);
        assert_eq!(decimal(&event["unit_price"]), price, "{event}");
        let exact = decimal(&event["quantity"]) * price / Decimal::from(event["per"].as_u64().unwrap());
        let rounded = exact.round_dp_with_strategy(12, RoundingStrategy::MidpointNearestEven);
        assert_eq!(decimal(&event["amount"]["amount"]), rounded, "{event}");
        assert_eq!(event["amount"]["currency"], book["currency"]);
        kinds.insert(text(&event["kind"]).to_owned());
    }
    assert!(kinds.len() >= 4, "{kinds:?}");
    ada.get("/v1/price-books/99").await.problem(404, "price_book.not_found");
    ada.get("/v1/price-books/one").await.problem(404, "price_book.not_found");
    app.stop().await;
}

/// What the book says of an event's kind and model.
fn unit_price(book: &Value, event: &Value) -> Decimal {
    let model = || {
        let models = book["models"].as_array().unwrap();
        let fits = |entry: &&Value| entry["provider"] == event["provider"] && entry["model"] == "*";
        models.iter().find(fits).unwrap_or_else(|| panic!("no price for {event}"))
    };
    decimal(match text(&event["kind"]) {
        "model_input_tokens" => &model()["input_per_million"],
        "model_cached_input_tokens" => &model()["cached_input_per_million"],
        "model_output_tokens" => &model()["output_per_million"],
        "tool_fuel" => &book["tool"]["fuel_per_billion"],
        "tool_memory_byte_seconds" => &book["tool"]["memory_gib_second"],
        other => panic!("{other} has no price"),
    })
}

#[tokio::test]
async fn events_are_cloud_events_for_who_asks() {
    let app = TestApp::start().await;
    let ada = spender(&app).await;
    let told = events(&ada).await;
    let mut lines: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/usage/events?limit=4{cursor}");
        let request = ada.request(reqwest::Method::GET, &path).header("accept", "application/x-ndjson");
        let answer = Answer::of(request).await;
        assert_eq!((answer.status, &answer.headers["content-type"]), (200, &"application/x-ndjson".parse().unwrap()));
        assert!(answer.text.ends_with('\n'));
        lines.extend(answer.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        let Some(next) = answer.headers.get("x-next-cursor") else { break };
        cursor = format!("&cursor={}", next.to_str().unwrap());
    }
    assert_eq!(lines.len(), told.len());
    for (line, event) in lines.iter().zip(&told) {
        for field in ["specversion", "id", "source", "type", "subject", "time"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {line}");
        }
        assert_eq!((&line["specversion"], &line["id"]), (&json!("1.0"), &event["id"]));
        assert_eq!(line["type"], format!("belljar.usage.{}", text(&event["kind"])));
        assert_eq!(line["subject"], ada.tenant);
        let data = &line["data"];
        assert_eq!(decimal(&data["amount"]), decimal(&event["amount"]["amount"]));
        assert_eq!(decimal(&data["quantity"]), decimal(&event["quantity"]));
        assert!(data.as_object().unwrap().values().all(|value| !value.is_number()), "no reader makes floats: {line}");
    }
    app.stop().await;
}
