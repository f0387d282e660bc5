//! Budgets over HTTP: made, shown, changed; and never overshot.

use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::{
    app::{Client, TestApp, component},
    outside::NOBODY,
};

fn decimal(money: &Value) -> Decimal {
    money["amount"].as_str().unwrap_or_else(|| panic!("{money} is no money")).parse().unwrap()
}

async fn budget(client: &Client, spec: Value) -> String {
    let made = client.post("/v1/budgets", spec).await.created();
    format!("/v1/budgets/{}", made["id"].as_str().unwrap())
}

/// One turn, whatever its status; for one of the end users.
async fn said(client: &Client, agent: &str, message: &str, user: &str) -> crate::app::Answer {
    let body = json!({"message": message, "external_user_id": user});
    client.post(&format!("/v1/agents/{agent}/chat"), body).await
}

#[tokio::test]
async fn a_budget_that_makes_no_sense_is_refused_with_the_place() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let good = json!({"scope": "tenant", "window": "day", "amount": "1"});
    for (field, value, code, pointer) in [
        ("scope", json!("planet"), "request.invalid", "/scope"),
        ("window", json!("week"), "request.invalid", "/window"),
        ("amount", json!(1.5), "request.invalid", "/amount"),
        ("amount", json!("much"), "request.invalid", "/amount"),
        ("amount", json!("-1"), "budget.invalid", "/amount"),
        ("amount", json!({"amount": "1", "currency": "EUR"}), "budget.invalid", "/amount/currency"),
        ("alert_at", json!(80), "request.invalid", "/alert_at"),
        ("subject", json!("somebody"), "budget.invalid", "/subject"),
        ("colour", json!("red"), "request.invalid", "/colour"),
    ] {
        let mut spec = good.clone();
        spec[field] = value;
        let problem = ada.post("/v1/budgets", spec.clone()).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{spec}");
    }
    let agent = json!({"scope": "agent", "subject": "nobody", "window": "day", "amount": "1"});
    ada.post("/v1/budgets", agent).await.problem(404, "agent.not_found");
    app.stop().await;
}

#[tokio::test]
async fn a_budget_is_made_shown_changed_and_deleted() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let id = ada.get("/v1/agents/clerk").await.ok()["id"].clone();
    let spec = json!({"scope": "agent", "subject": "clerk", "window": "month", "alert_at": [0.5, "0.8"],
                      "amount": {"amount": "2.50", "currency": "USD"}});
    let made = ada.post("/v1/budgets", spec).await.created();
    assert_eq!((&made["subject"], &made["alert_at"]), (&id, &json!(["0.5", "0.8"])));
    assert_eq!(made["remaining"], json!({"amount": "2.5", "currency": "USD"}));
    assert!(made["resets_at"].as_str().unwrap().ends_with("-01T00:00:00Z"), "{made}");
    let path = format!("/v1/budgets/{}", made["id"].as_str().unwrap());
    let turn = ada.chat("clerk", "hello").await;
    let shown = ada.get(&path).await.ok();
    assert_eq!(decimal(&shown["spent"]), decimal(&turn["run"]["cost"]));
    assert_eq!(decimal(&shown["remaining"]), Decimal::new(25, 1) - decimal(&turn["run"]["cost"]));
    assert_eq!(decimal(&shown["held"]), Decimal::ZERO);
    assert_eq!(ada.get("/v1/budgets").await.ok()["data"], json!([shown]));
    let changed = ada.patch(&path, json!({"amount": "0"})).await.ok();
    assert_eq!((&changed["spent"], &changed["alert_at"]), (&shown["spent"], &shown["alert_at"]));
    let refused = ada.post("/v1/agents/clerk/chat", json!({"message": "hello"})).await;
    let problem = refused.problem(402, "budget.exceeded");
    assert!(problem["detail"].as_str().unwrap().contains(made["id"].as_str().unwrap()), "{problem}");
    ada.patch(&path, json!({"window": "day"})).await.problem(422, "request.invalid");
    assert_eq!(ada.delete(&path).await.status, 204);
    ada.get(&path).await.problem(404, "budget.not_found");
    ada.chat("clerk", "hello").await;
    app.stop().await;
}

#[tokio::test]
async fn each_end_user_has_a_budget_of_its_own() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let cost = decimal(&said(&ada, "clerk", "hello", "u0").await.ok()["run"]["cost"]);
    let each = json!({"scope": "external_user", "subject": "*", "window": "day", "amount": cost.to_string()});
    let path = budget(&ada, each).await;
    let done = said(&ada, "clerk", "hello", "u1").await.ok();
    assert_eq!((&done["run"]["stop_reason"], decimal(&done["run"]["cost"])), (&json!("done"), cost));
    said(&ada, "clerk", "hello", "u1").await.problem(402, "budget.exceeded");
    said(&ada, "clerk", "hello", "u2").await.ok();
    ada.chat("clerk", "hello").await;
    for (query, spent) in [("?subject=u1", cost), ("?subject=u3", Decimal::ZERO), ("", cost)] {
        assert_eq!(decimal(&ada.get(&format!("{path}{query}")).await.ok()["spent"]), spent, "{query}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_tools_fuel_is_what_money_is_left_for() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("spin", component("spin")).await.created();
    ada.agent("clerk", &["spin"]).await;
    // A hundredth of a call's usual fuel, and the memory it might hold.
    let path = budget(&ada, json!({"scope": "tenant", "window": "total", "amount": "0.000005"})).await;
    let call = json!({"function": "run", "arguments": {}});
    let call = ada.post("/v1/tools/spin/versions/latest/calls", call).await.ok();
    assert_eq!(call["outcome"]["code"], "limit.fuel", "{call}");
    let fuel = call["receipt"]["fuel_used"].as_u64().unwrap();
    assert!(fuel > 1_000_000 && fuel < 100_000_000, "{fuel}");
    let shown = ada.get(&path).await.ok();
    assert_eq!((&shown["spent"], decimal(&shown["held"])), (&call["receipt"]["price"], Decimal::ZERO));
    assert!(decimal(&shown["spent"]) <= Decimal::new(5, 6));
    let call = json!({"function": "run", "arguments": {}});
    ada.post("/v1/tools/spin/versions/latest/calls", call).await.problem(402, "budget.exceeded");
    app.stop().await;
}

#[tokio::test]
async fn the_plans_tokens_end_and_a_larger_plan_goes_on() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let usage = ada.chat("clerk", "hello").await["run"]["usage"].clone();
    let tokens = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
    let tenant = format!("/operator/v1/tenants/{}", ada.tenant);
    app.operator().patch(&tenant, json!({"overrides": {"tokens_per_month": tokens}})).await.ok();
    assert_eq!(ada.chat("clerk", "hello").await["run"]["stop_reason"], "done");
    let refused = ada.post("/v1/agents/clerk/chat", json!({"message": "hello"})).await;
    refused.problem(402, "quota.tokens");
    app.operator().patch(&tenant, json!({"overrides": {"tokens_per_month": 1_000_000}})).await.ok();
    assert_eq!(ada.chat("clerk", "hello").await["run"]["stop_reason"], "done");
    app.stop().await;
}

#[tokio::test]
async fn a_webhook_hears_that_a_threshold_is_passed() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let cost = decimal(&ada.chat("clerk", "hello").await["run"]["cost"]);
    let hook = json!({"url": format!("http://{NOBODY}/"), "events": ["budget.threshold"]});
    let hook = ada.post("/v1/webhooks", hook).await.created();
    let amount = (cost * Decimal::from(4)).to_string();
    let path = budget(&ada, json!({"scope": "tenant", "window": "day", "amount": amount, "alert_at": 0.5})).await;
    let deliveries = format!("/v1/webhooks/{}/deliveries", hook["id"].as_str().unwrap());
    ada.chat("clerk", "hello").await;
    assert_eq!(ada.get(&deliveries).await.ok()["data"], json!([]));
    ada.chat("clerk", "hello").await;
    ada.chat("clerk", "hello").await;
    let told = ada.get(&deliveries).await.ok()["data"].clone();
    assert_eq!(told.as_array().unwrap().len(), 1, "once: {told}");
    assert_eq!(told[0]["event"], "budget.threshold");
    assert_eq!(decimal(&ada.get(&path).await.ok()["spent"]), cost * Decimal::from(3));
    app.stop().await;
}

/// The promise: whoever races whom, not a cent more is spent, and what was held comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_chats_race_for_a_budget_that_allows_ten() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let cost = decimal(&ada.chat("clerk", "hello").await["run"]["cost"]);
    let before = decimal(&ada.get("/v1/usage").await.ok()["total"]["cost"]);
    let allowed = cost * Decimal::from(10);
    let path = budget(&ada, json!({"scope": "tenant", "window": "total", "amount": allowed.to_string()})).await;
    let racers = (0..64).map(|_| {
        let chat = ada.request(reqwest::Method::POST, "/v1/agents/clerk/chat").header("prefer", "wait=60");
        crate::app::Answer::of(chat.json(&json!({"message": "hello"})))
    });
    let (mut done, mut refused, mut runs) = (0, 0, Vec::new());
    for answer in futures::future::join_all(racers).await {
        match answer.status {
            402 => {
                answer.problem(402, "budget.exceeded");
                refused += 1;
            }
            200 => {
                let turn = answer.json();
                match turn["run"]["stop_reason"].as_str() {
                    Some("done") => done += 1,
                    Some("budget") => {
                        assert_eq!(turn["run"]["error"]["code"], "budget.exceeded", "{turn}");
                        refused += 1;
                    }
                    _ => panic!("{turn}"),
                }
                runs.push(turn);
            }
            _ => panic!("{} {}", answer.status, answer.text),
        }
    }
    assert_eq!((done, refused), (10, 54));
    let shown = ada.get(&path).await.ok();
    assert_eq!(decimal(&shown["held"]), Decimal::ZERO, "{shown}");
    assert_eq!(decimal(&shown["spent"]), allowed, "{shown}");
    let spent: Decimal = runs.iter().map(|turn| decimal(&turn["run"]["cost"])).sum();
    let billed = decimal(&ada.get("/v1/usage").await.ok()["total"]["cost"]) - before;
    assert_eq!((spent, billed), (allowed, allowed));
    tokio::time::timeout(Duration::from_secs(10), app.stop()).await.unwrap();
}
