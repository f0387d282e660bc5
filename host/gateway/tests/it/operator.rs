//! What the operator does.

use axum::body::Body;
use http::Request;
use serde_json::json;

use crate::app::{App, answered};

#[tokio::test]
async fn an_operator_keeps_tenants() {
    let app = App::start().await;
    let operator = app.operator();
    let ada = app.tenant("ada").await;
    let id = ada.get("/v1/tenant").await.ok()["id"].as_str().unwrap().to_owned();
    app.tenant("bob").await;
    let page = operator.get("/operator/v1/tenants?limit=1").await.ok();
    assert_eq!(page["data"][0]["name"], "bob");
    let next = format!("/operator/v1/tenants?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    assert_eq!(operator.get(&next).await.ok()["data"][0]["name"], "ada");

    let path = format!("/operator/v1/tenants/{id}");
    let changed = operator.patch(&path, json!({"suspended": true, "overrides": {"concurrent_runs": 3}})).await.ok();
    assert_eq!((&changed["suspended"], &changed["plan"]["concurrent_runs"]), (&json!(true), &json!(3)));
    ada.get("/v1/tenant").await.problem(403, "tenant.suspended");
    operator.patch(&path, json!({"suspended": false})).await.ok();
    operator.patch(&path, json!({"plan": "gold"})).await.problem(422, "plan.not_found");
    operator.patch(&path, json!({"id": "x"})).await.problem(422, "request.invalid");
    assert_eq!(operator.get(&format!("/operator/v1/usage?tenant={id}")).await.ok()["total"]["events"], 0);
    operator.get("/operator/v1/usage").await.problem(422, "request.invalid");
    assert_eq!(operator.get("/operator/v1/queues").await.ok(), json!({"data": [], "next_cursor": null}));
    operator.delete(&path).await.done();
    operator.get(&path).await.problem(404, "tenant.not_found");
    operator.get("/operator/v1/tenants/ten_1").await.problem(404, "tenant.not_found");
    ada.get("/v1/tenant").await.problem(401, "api_key.unknown");
}

#[tokio::test]
async fn an_operator_keeps_plans_and_prices() {
    let app = App::start().await;
    let operator = app.operator();
    let mut plan = operator.get("/operator/v1/plans/free").await.ok();
    plan["name"] = "gold".into();
    operator.put("/operator/v1/plans/gold", plan.clone()).await.created();
    operator.put("/operator/v1/plans/gold", plan.clone()).await.ok();
    operator.put("/operator/v1/plans/silver", plan).await.problem(422, "request.invalid");
    operator.get("/operator/v1/plans/tin").await.problem(404, "plan.not_found");
    assert!(operator.get("/operator/v1/plans").await.ok()["data"].as_array().unwrap().len() > 1);

    let books = operator.get("/operator/v1/price-books").await.ok();
    let mut book = books["data"][0].clone();
    for known in ["version", "created_at"] {
        book.as_object_mut().unwrap().remove(known);
    }
    assert_eq!(operator.post("/operator/v1/price-books", book.clone()).await.created()["version"], 2);
    book["currency"] = "dollars".into();
    operator.post("/operator/v1/price-books", book).await.problem(422, "price_book.invalid");
}

#[tokio::test]
async fn health_and_metrics_need_no_token() {
    let app = App::start().await;
    let get = |path: &'static str| answered(&app.operator, Request::get(path).body(Body::empty()).unwrap());
    get("/healthz").await.ok();
    get("/readyz").await.ok();
    let metrics = get("/metrics").await.text;
    assert!(metrics.contains("belljar_http_requests_total{") && metrics.contains("route=\"/readyz\""), "{metrics}");
    app.shutdown.cancel();
    get("/readyz").await.problem(503, "server.draining");
    let wrong = Request::get("/operator/v1/plans").header("authorization", "Bearer operator").body(Body::empty());
    answered(&app.operator, wrong.unwrap()).await.problem(401, "operator.unauthenticated");
}
