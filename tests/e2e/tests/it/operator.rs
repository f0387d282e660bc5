//! What the operator does, and how fast tenants notice.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    app::{Answer, TestApp, component},
    outside::NOBODY,
};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn health_and_metrics_need_no_token() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.get("/v1/tenant").await.ok();
    let get = async |path: &str| Answer::of(app.http.get(format!("{}{path}", app.operator_url))).await;
    assert_eq!(get("/healthz").await.ok(), json!({"status": "ok"}));
    assert_eq!(get("/readyz").await.ok(), json!({"status": "ready"}));
    let metrics = get("/metrics").await;
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
    let counted = "belljar_http_requests_total{method=\"GET\",route=\"/v1/tenant\",status=\"200\"}";
    assert!(metrics.text.contains(counted), "{}", metrics.text);
    assert!(!metrics.text.contains(&ada.tenant), "no tenant makes a series of its own");
    get("/nothing").await.problem(404, "route.not_found");
    let wrong = app.http.request(Method::POST, format!("{}/healthz", app.operator_url));
    let answer = Answer::of(wrong).await;
    assert_eq!(answer.headers["allow"], "GET,HEAD");
    answer.problem(405, "route.method_not_allowed");
    app.stop().await;
}

#[tokio::test]
async fn a_tenant_is_made_changed_and_suspended() {
    let app = TestApp::start().await;
    let operator = app.operator();
    for (body, code, pointer) in [
        (json!({"name": ""}), "tenant.bad_name", None),
        (json!({"name": "x", "plan": "gold"}), "plan.not_found", None),
        (json!({"name": "x", "overrides": {"colour": 1}}), "tenant.bad_overrides", None),
        (json!({"name": "x", "colour": 1}), "request.invalid", Some("/colour")),
    ] {
        let problem = operator.post("/operator/v1/tenants", body).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{problem}");
    }
    let body = json!({"name": "ada", "overrides": {"concurrent_runs": 2}});
    let answer = operator.post("/operator/v1/tenants", body).await;
    let path = answer.headers["location"].to_str().unwrap().to_owned();
    let tenant = answer.created();
    assert_eq!(path, format!("/operator/v1/tenants/{}", text(&tenant["id"])));
    assert_eq!((&tenant["plan"]["name"], &tenant["plan"]["concurrent_runs"]), (&json!("free"), &json!(2)));
    assert_eq!(operator.get(&path).await.ok(), tenant);
    app.tenant("bob").await;
    let page = operator.get("/operator/v1/tenants?limit=1").await.ok();
    assert_eq!(page["data"][0]["name"], "bob");
    let next = format!("/operator/v1/tenants?limit=1&cursor={}", text(&page["next_cursor"]));
    let last = operator.get(&next).await.ok();
    assert_eq!((&last["data"][0], &last["next_cursor"]), (&tenant, &Value::Null));

    let minted = json!({"name": "first", "scopes": ["admin"]});
    let key = operator.post(&format!("{path}/api-keys"), minted).await.created();
    let ada = app.client(text(&key["key"]));
    ada.agent("clerk", &[]).await;
    assert_eq!(ada.get("/v1/tenant").await.ok()["plan"]["concurrent_runs"], 2);

    operator.patch(&path, json!({"plan": "gold"})).await.problem(422, "plan.not_found");
    operator.patch(&path, json!({"id": "ten_x"})).await.problem(422, "request.invalid");
    operator.patch(&path, json!({"suspended": null})).await.problem(422, "request.invalid");
    let changed = json!({"plan": "pro", "overrides": {"concurrent_runs": 7}, "name": "Ada", "metadata": {"a": 1}});
    let changed = operator.patch(&path, changed).await.ok();
    let seen = ada.get("/v1/tenant").await.ok();
    assert_eq!((&seen["name"], &seen["metadata"]), (&json!("Ada"), &json!({"a": 1})));
    assert_eq!((&seen["plan"], &seen["plan"]["concurrent_runs"]), (&changed["plan"], &json!(7)));
    // The tenant's own limits are not its own to change.
    ada.patch("/v1/tenant", json!({"plan": "free"})).await.problem(422, "request.invalid");

    operator.patch(&path, json!({"suspended": true})).await.ok();
    ada.get("/v1/tenant").await.problem(403, "tenant.suspended");
    ada.post("/v1/agents/clerk/chat", json!({"message": "hi"})).await.problem(403, "tenant.suspended");
    operator.patch(&path, json!({"suspended": false})).await.ok();
    assert_eq!(ada.chat("clerk", "hi").await["run"]["status"], "completed");
    for nobody in ["ten_01990000000070008000000000000000", "ada"] {
        let path = format!("/operator/v1/tenants/{nobody}");
        operator.get(&path).await.problem(404, "tenant.not_found");
        operator.patch(&path, json!({})).await.problem(404, "tenant.not_found");
        operator.delete(&path).await.problem(404, "tenant.not_found");
        operator
            .post(&format!("{path}/api-keys"), json!({"name": "x", "scopes": []}))
            .await
            .problem(404, "tenant.not_found");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_plan_holds_for_every_tenant_that_has_it() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let ada = app.tenant("ada").await;
    let free = operator.get("/operator/v1/plans/free").await.ok();
    let mut plan = free.clone();
    plan["name"] = json!("gold");
    plan["concurrent_runs"] = json!(0);
    operator.put("/operator/v1/plans/gold", plan.clone()).await.problem(422, "plan.not_positive");
    plan["concurrent_runs"] = json!(1);
    plan["tool_limits"]["fuel"] = json!(1_000_000_000_000_000_u64);
    operator.put("/operator/v1/plans/gold", plan.clone()).await.problem(422, "plan.above_engine");
    plan["tool_limits"]["fuel"] = json!(50_000_000);
    operator.put("/operator/v1/plans/silver", plan.clone()).await.problem(422, "request.invalid");
    operator.put("/operator/v1/plans/Gold", json!({})).await.problem(422, "request.invalid");
    operator.get("/operator/v1/plans/gold").await.problem(404, "plan.not_found");

    assert_eq!(operator.put("/operator/v1/plans/gold", plan.clone()).await.created(), plan);
    assert_eq!(operator.put("/operator/v1/plans/gold", plan.clone()).await.ok(), plan);
    assert_eq!(operator.get("/operator/v1/plans/gold").await.ok(), plan);
    let names: Vec<Value> = operator.get("/operator/v1/plans").await.ok()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plan| plan["name"].clone())
        .collect();
    assert_eq!(names, ["free", "gold", "pro"]);

    operator.patch(&format!("/operator/v1/tenants/{}", ada.tenant), json!({"plan": "gold"})).await.ok();
    let seen = ada.get("/v1/tenant").await.ok();
    assert_eq!(
        (&seen["limits"]["ceiling"]["fuel"], &seen["limits"]["default"]["fuel"]),
        (&json!(50_000_000), &json!(50_000_000))
    );
    ada.upload("calc", component("calc")).await.created();
    let call = |fuel: u64| json!({"function": "evaluate", "arguments": {"expression": "1"}, "limits": {"fuel": fuel}});
    let path = "/v1/tools/calc/versions/latest/calls";
    let problem = ada.post(path, call(50_000_001)).await.problem(422, "tool_call.limit_above_plan");
    assert_eq!(problem["errors"][0]["pointer"], "/limits/fuel");
    assert_eq!(ada.post(path, call(50_000_000)).await.ok()["outcome"]["status"], "ok");
    plan["tool_limits"]["fuel"] = json!(60_000_000);
    operator.put("/operator/v1/plans/gold", plan).await.ok();
    assert_eq!(ada.post(path, call(50_000_001)).await.ok()["outcome"]["status"], "ok");
    app.stop().await;
}

#[tokio::test]
async fn a_new_price_book_prices_what_is_used_from_now_on() {
    let app = TestApp::start().await;
    let operator = app.operator();
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let first = ada.chat("clerk", "hi").await;

    let one = ada.get("/v1/price-books/1").await.ok();
    let mut prices = one.clone();
    for known in ["version", "created_at"] {
        prices.as_object_mut().unwrap().remove(known);
    }
    for (field, value, code, pointer) in [
        ("currency", json!("dollars"), "price_book.invalid", "/currency"),
        ("default_model", json!({"input_per_million": "-1"}), "request.invalid", "/default_model/input_per_million"),
        ("tool", json!({"fuel_per_billion": 0.5}), "request.invalid", "/tool/fuel_per_billion"),
        ("version", json!(7), "request.invalid", "/version"),
    ] {
        let mut wrong = prices.clone();
        wrong[field] = value;
        let problem = operator.post("/operator/v1/price-books", wrong).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let demo = prices["models"].as_array_mut().unwrap().iter_mut().find(|entry| entry["provider"] == "demo").unwrap();
    demo["output_per_million"] = json!("40.5");
    let answer = operator.post("/operator/v1/price-books", prices).await;
    assert_eq!(answer.headers["location"], "/v1/price-books/2");
    assert_eq!(answer.created()["version"], 2);
    assert_eq!(ada.get("/v1/price-books/1").await.ok(), one, "a version never changes");
    let books = operator.get("/operator/v1/price-books").await.ok();
    let versions: Vec<&Value> = books["data"].as_array().unwrap().iter().map(|book| &book["version"]).collect();
    assert_eq!(versions, [2, 1]);

    let second = ada.chat("clerk", "hi").await;
    let events = ada.get("/v1/usage/events").await.ok();
    let of = |turn: &Value, field: &str| -> Value {
        let events = events["data"].as_array().unwrap().iter();
        let mut mine = events.filter(|event| event["run_id"] == turn["run"]["id"]);
        mine.find(|event| event["kind"] == "model_output_tokens").unwrap()[field].clone()
    };
    assert_eq!((of(&first, "price_book"), of(&first, "unit_price")), (json!(1), json!("0.4")));
    assert_eq!((of(&second, "price_book"), of(&second, "unit_price")), (json!(2), json!("40.5")));
    assert_eq!(of(&first, "quantity"), of(&second, "quantity"), "the demo model says the same again");
    assert_ne!(of(&first, "amount"), of(&second, "amount"));
    app.stop().await;
}

#[tokio::test]
async fn an_erased_tenant_leaves_no_row() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let (ada, bob) = (app.tenant("ada").await, app.tenant("bob").await);
    for tenant in [&ada, &bob] {
        tenant.upload("calc", component("calc")).await.created();
        tenant.agent("clerk", &["calc"]).await;
        tenant.chat("clerk", "/calc__evaluate {\"expression\": \"1 + 1\"}").await;
        tenant.put("/v1/provider-keys/mine", json!({"kind": "openai", "api_key": "sk-1"})).await.created();
        tenant.secret("mine", "hunter2").await;
        tenant.put("/v1/key-value/notes/today", json!("tea")).await.created();
        let recorded = json!({"function": "evaluate", "arguments": {"expression": "1"}, "record": true});
        tenant.post("/v1/tools/calc/versions/latest/calls", recorded).await.ok();
        let webhook = json!({"url": format!("http://{NOBODY}/"), "events": ["run.completed"]});
        tenant.post("/v1/webhooks", webhook).await.created();
        let budget = json!({"scope": "tenant", "window": "total", "amount": {"amount": "1", "currency": "USD"}});
        let once = tenant.request(Method::POST, "/v1/budgets").header("Idempotency-Key", "one").json(&budget);
        Answer::of(once).await.created();
        tenant.chat("clerk", "/calc__evaluate {\"expression\": \"2 + 2\"}").await;
        let asks = json!([{"tool": "calc", "version": "latest", "approval": "always"}]);
        let asking = json!({"name": "asking", "system_prompt": "", "model": "demo", "tools": asks});
        tenant.post("/v1/agents", asking).await.created();
        let waits = json!({"message": "/calc__evaluate {\"expression\": \"3 + 3\"}"});
        let turn = tenant.post("/v1/agents/asking/chat", waits).await.json();
        assert_eq!(turn["run"]["status"], "waiting_for_approval", "{turn}");
    }
    let mut superuser = app.db.superuser().await;
    let ada_uuid = ada.tenant.trim_start_matches("ten_");
    for rare in RARE_ROWS {
        let sql = rare.replace("$tenant", &format!("'{ada_uuid}'"));
        assert_eq!(sqlx::query(AssertSqlSafe(sql)).execute(&mut superuser).await.unwrap().rows_affected(), 1, "{rare}");
    }
    let before = rows_of(&mut superuser, &ada.tenant).await;
    assert!(before.iter().all(|(_, rows)| *rows > 0), "{before:?}");
    let erased = app.operator().delete(&format!("/operator/v1/tenants/{}", ada.tenant)).await;
    assert_eq!(erased.status, 204, "{}", erased.text);
    let after = rows_of(&mut superuser, &ada.tenant).await;
    assert!(after.iter().all(|(_, rows)| *rows == 0), "{after:?}");
    ada.get("/v1/tenant").await.problem(401, "api_key.unknown");
    // The neighbour, who has the same tool, goes on.
    let turn = bob.chat("clerk", "/calc__evaluate {\"expression\": \"1 + 1\"}").await;
    assert_eq!(turn["tool_calls"][0]["outcome"]["status"], "ok", "{turn}");
    app.stop().await;
}

/// What is there for a moment only, or after much talk.
const RARE_ROWS: [&str; 3] = [
    "INSERT INTO belljar.hold SELECT tenant_id, gen_random_uuid(), budget_id, subject, starts_at, 0, now()
     FROM belljar.budget_window WHERE tenant_id = $tenant LIMIT 1",
    "INSERT INTO belljar.intent SELECT tenant_id, gen_random_uuid(), 1, false, run_id, 'GET', 'https://example.com', now()
     FROM belljar.run WHERE tenant_id = $tenant LIMIT 1",
    "INSERT INTO belljar.summary SELECT tenant_id, conversation_id, 1, run_id, 1, 'They greeted.', now()
     FROM belljar.run WHERE tenant_id = $tenant AND steps > 0 LIMIT 1",
];

/// How many rows of each tenant table are this tenant's.
async fn rows_of(superuser: &mut PgConnection, tenant: &str) -> Vec<(String, i64)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
         WHERE c.relnamespace = 'belljar'::regnamespace AND c.relkind IN ('r', 'p')
         ORDER BY 1",
    )
    .fetch_all(&mut *superuser)
    .await
    .unwrap();
    let uuid = tenant.trim_start_matches("ten_");
    let mut rows = Vec::new();
    for table in tables {
        let sql = format!("SELECT count(*) FROM belljar.{table} WHERE tenant_id = '{uuid}'");
        let count = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *superuser).await.unwrap();
        rows.push((table, count));
    }
    rows
}
