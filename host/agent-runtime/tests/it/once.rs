//! A call or a turn that is asked for twice, and one that was cut off between.

use std::time::Duration;

use agent_runtime::{Called, DirectCall, StartOnce, StartRun, ToolCallRow};
use domain::{CallId, Clock, Ids, Problem, SystemClock, SystemIds, Timestamp};
use kit::{FakeExecutor, master_key};
use serde_json::json;
use tenancy::{
    Tenant,
    idempotency::{self, LEASE, Request, Way},
};
use tool_api::Status;

use crate::house::{House, direct, say};

fn request() -> Request {
    Request { holder: SystemIds.uuid(), key: [7; 32], fingerprint: [1; 32] }
}

fn asks() -> DirectCall {
    direct(json!({"n": 1}))
}

fn row(called: Called) -> ToolCallRow {
    match called {
        Called::Now(row) | Called::Before(row) => row,
    }
}

/// Another process has taken the call, and died long ago.
async fn cut_off(tenant: &Tenant, request: &Request) -> CallId {
    let call = CallId::new(&SystemIds);
    let way = Way::Reserved { by: SystemIds.uuid(), call: Some(call) };
    let then = Timestamp::from(SystemClock.now().offset() - LEASE * 2);
    let mut tx = tenant.begin().await.unwrap();
    idempotency::open(&mut tx, &master_key(), request, way, then).await.unwrap();
    tx.commit().await.unwrap();
    call
}

/// It had begun to send.
async fn sent(tenant: &Tenant, call: CallId, keyed: bool) {
    let mut tx = tenant.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO intent (tenant_id, call_id, attempt, keyed, method, target, sent_at)
         VALUES ($1, $2, 1, $3, 'POST', 'https://bank.example/pay', now())",
    )
    .bind(tenant.id().uuid())
    .bind(call.uuid())
    .bind(keyed)
    .execute(tx.conn())
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_call_that_may_have_taken_effect_is_told_and_not_made_again() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let asked = request();
    let call = cut_off(&ada, &asked).await;
    sent(&ada, call, false).await;
    for _ in 0..2 {
        let told = row(house.runtime.call_tool_once(&ada, asks(), asked).await.unwrap());
        assert_eq!((told.id, told.outcome.status), (call, Status::OutcomeUnknown));
        let evidence = told.outcome.structured.unwrap();
        assert_eq!(evidence["target"], "https://bank.example/pay");
        assert!(told.receipt.is_none());
    }
    assert!(executor.calls().is_empty());
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_made_again_under_its_own_key() {
    for (has_sent, attempt) in [(false, 1), (true, 2)] {
        let executor = FakeExecutor::echo();
        let house = House::new(executor.clone()).await;
        let ada = house.tenant("ada").await;
        let asked = request();
        let call = cut_off(&ada, &asked).await;
        if has_sent {
            sent(&ada, call, true).await;
        }
        let made = house.runtime.call_tool_once(&ada, asks(), asked).await.unwrap();
        let again = house.runtime.call_tool_once(&ada, asks(), asked).await.unwrap();
        assert!(matches!((&made, &again), (Called::Now(_), Called::Before(_))));
        let (made, again) = (row(made), row(again));
        assert_eq!((made.id, again.id), (call, call));
        assert_eq!(json!(made), json!(again));
        let calls = executor.calls();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].context.idempotency_key, call.to_string());
        assert_eq!(calls[0].context.attempt, attempt);
    }
}

#[tokio::test]
async fn a_call_that_was_never_made_leaves_its_key() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let asked = request();
    let unknown = DirectCall { function: "nothing".parse().unwrap(), ..asks() };
    for _ in 0..2 {
        house.runtime.call_tool_once(&ada, unknown.clone(), asked).await.unwrap_err();
    }
    // Even another payload may have it.
    let other = Request { fingerprint: [2; 32], ..asked };
    house.runtime.call_tool_once(&ada, asks(), other).await.unwrap();
    let refused = house.runtime.call_tool_once(&ada, asks(), asked).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.other_payload");
    assert_eq!(executor.calls().len(), 1);
}

#[tokio::test]
async fn a_turn_is_started_once() {
    let house = House::new(FakeExecutor::echo()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    let asked = request();
    let turn = || StartRun { once: Some(StartOnce { request: asked, waits: Duration::ZERO }), ..say("hello") };
    let first = house.runtime.start(&ada, turn()).await.unwrap();
    house.runtime.wait(&ada, first.run, Duration::from_secs(30)).await.unwrap();
    assert_eq!(first.before, None);
    let again = house.second().start(&ada, turn()).await.unwrap();
    assert_eq!((again.run, again.conversation), (first.run, first.conversation));
    assert!(again.before.is_some());
    let theirs = house.runtime.start(&bob, turn()).await.unwrap();
    assert!(theirs.run != first.run && theirs.before.is_none());
    let other = Request { fingerprint: [2; 32], ..asked };
    let other = StartRun { once: Some(StartOnce { request: other, waits: Duration::ZERO }), ..say("bye") };
    let refused = house.runtime.start(&ada, other).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.other_payload");
    // What it came to was erased: it is not done again.
    house.runtime.delete_conversation(&ada, first.conversation).await.unwrap();
    assert_eq!(house.runtime.start(&ada, turn()).await.unwrap_err().code(), "run.not_found");
}

#[tokio::test]
async fn a_turn_that_was_refused_may_be_asked_for_again() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let once = Some(StartOnce { request: request(), waits: Duration::ZERO });
    let nobody = StartRun { agent: "nobody".parse().unwrap(), once, ..say("hello") };
    house.runtime.start(&ada, nobody).await.unwrap_err();
    let started = house.runtime.start(&ada, StartRun { once, ..say("hello") }).await.unwrap();
    assert_eq!(started.before, None);
}
