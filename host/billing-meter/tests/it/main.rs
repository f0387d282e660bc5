//! Usage and price books against a real Postgres, as the application role.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod books;
mod budgets;
mod totals;

use std::time::Duration;

use billing_meter::{Cause, NewEvent, PriceBook, UsageEvent, Used, prices, usage};
use domain::{CallId, Problem, RunId, SystemIds, Timestamp, page::PageRequest};
use kit::TestDb;
use serde_json::json;
use tenancy::{Tenant, TenantTx};

fn now() -> Timestamp {
    Timestamp::parse("2026-05-01T12:00:00Z").unwrap()
}

fn span() -> (Timestamp, Timestamp) {
    usage::range(None, None, now()).unwrap()
}

/// A database with the default price book.
async fn start() -> TestDb {
    let db = TestDb::start().await;
    let mut tx = db.db.global().await.unwrap();
    prices::install_default(&mut tx, now()).await.unwrap();
    tx.commit().await.unwrap();
    db
}

async fn book(tenant: &Tenant) -> PriceBook {
    prices::current(&mut tenant.begin().await.unwrap()).await.unwrap()
}

fn event(dedup: &str, used: Used) -> NewEvent {
    NewEvent { used, cause: Cause { dedup: dedup.into(), ..Default::default() } }
}

async fn record(tenant: &Tenant, new: &[NewEvent], at: Timestamp) -> Vec<UsageEvent> {
    let book = book(tenant).await;
    let mut tx = tenant.begin().await.unwrap();
    let events = usage::record(&mut tx, &book, new, &SystemIds, at).await.unwrap();
    tx.commit().await.unwrap();
    events
}

/// Every event of a time, in pages of `limit`, as listed.
async fn all(tx: &mut TenantTx, (from, to): (Timestamp, Timestamp), limit: u32) -> Vec<UsageEvent> {
    let (mut events, mut after) = (Vec::new(), None);
    loop {
        let page = usage::events(tx, from, to, PageRequest { limit, after }).await.unwrap();
        assert!(page.data.len() <= limit as usize);
        events.extend(page.data);
        after = page.next;
        if after.is_none() {
            return events;
        }
    }
}

#[tokio::test]
async fn a_strangers_usage_is_not_seen() {
    let db = start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    record(&ada, &[event("step:1", Used::ModelOutput { tokens: 7 })], now()).await;
    let mut tx = bob.begin().await.unwrap();
    assert!(all(&mut tx, span(), 10).await.is_empty());
    let report = usage::totals(&mut tx, span().0, span().1, &[usage::GroupBy::Kind]).await.unwrap();
    assert!(report.totals.is_empty());
    assert_eq!((report.total.events, report.total.cost.amount), (0, domain::Amount::ZERO));
    // Each tenant names its causes: the same name is no conflict, and no oracle.
    record(&bob, &[event("step:1", Used::ModelOutput { tokens: 7 })], now()).await;
}

#[tokio::test]
async fn nothing_is_billed_twice() {
    let db = start().await;
    let tenant = db.tenant("ada").await;
    let book = book(&tenant).await;
    record(&tenant, &[event("step:1", Used::ModelOutput { tokens: 7 })], now()).await;
    for again in [
        vec![event("step:2", Used::ToolFuel { fuel: 1 }), event("step:1", Used::ModelOutput { tokens: 7 })],
        vec![event("step:3", Used::ToolFuel { fuel: 1 }), event("step:3", Used::ToolFuel { fuel: 1 })],
    ] {
        let mut tx = tenant.begin().await.unwrap();
        let error = usage::record(&mut tx, &book, &again, &SystemIds, now()).await.unwrap_err();
        assert_eq!(error.code(), "usage.already_recorded");
        // Even one who forgets the error commits nothing.
        let _ = tx.commit().await;
    }
    let events = all(&mut tenant.begin().await.unwrap(), span(), 10).await;
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn what_is_listed_is_what_was_recorded() {
    let db = start().await;
    let tenant = db.tenant("ada").await;
    let cause = |dedup: &str| Cause {
        dedup: dedup.into(),
        run_id: Some(RunId::new(&SystemIds)),
        provider: Some("openai".into()),
        model: Some("gpt-4o-mini".into()),
        external_user_id: Some("u1".into()),
        ..Default::default()
    };
    let mut recorded = Vec::new();
    for (minute, dedup) in ["a", "b", "c"].into_iter().enumerate() {
        let used = Used::model(1200, 200, 35);
        let new: Vec<_> = used
            .into_iter()
            .map(|used| NewEvent { used, cause: cause(&format!("{dedup}:{}", used.kind().as_str())) })
            .collect();
        recorded.extend(record(&tenant, &new, now().plus(Duration::from_secs(60 * minute as u64))).await);
    }
    recorded.reverse();
    let mut tx = tenant.begin().await.unwrap();
    for limit in [1, 2, 100] {
        assert_eq!(all(&mut tx, span(), limit).await, recorded);
    }
    // `from` is within, `to` is not.
    let minute = |n: u64| now().plus(Duration::from_secs(60 * n));
    assert_eq!(all(&mut tx, (minute(1), minute(2)), 2).await, recorded[3..6]);
    assert!(record(&tenant, &[], now()).await.is_empty());
}

#[tokio::test]
async fn an_event_is_shown_with_what_it_takes_to_check_it() {
    let db = start().await;
    let tenant = db.tenant("ada").await;
    let call = CallId::new(&SystemIds);
    let new: Vec<_> = Used::tool_call(123_456, 2 << 20, 1_500)
        .into_iter()
        .map(|used| NewEvent {
            used,
            cause: Cause {
                dedup: format!("{call}:{}", used.kind().as_str()),
                call_id: Some(call),
                tool: Some("calc".into()),
                function: Some("evaluate".into()),
                ..Default::default()
            },
        })
        .collect();
    let events = record(&tenant, &new, now()).await;
    assert_eq!(
        serde_json::to_value(&events).unwrap(),
        json!([
            {"id": events[0].id, "occurred_at": "2026-05-01T12:00:00Z", "kind": "tool_fuel", "quantity": "123456",
             "unit_price": "0.00005", "per": 1_000_000_000, "amount": {"amount": "0.000000006173", "currency": "USD"},
             "price_book": 1, "tool": "calc", "function": "evaluate", "call_id": call},
            {"id": events[1].id, "occurred_at": "2026-05-01T12:00:00Z", "kind": "tool_memory_byte_seconds",
             "quantity": "3145.728", "unit_price": "0.000005", "per": 1_073_741_824,
             "amount": {"amount": "0.000000000015", "currency": "USD"}, "price_book": 1, "tool": "calc",
             "function": "evaluate", "call_id": call},
        ])
    );
    let sum: domain::Amount = events.iter().map(|event| event.amount.amount).sum();
    assert_eq!(usage::price_call(&book(&tenant).await, 123_456, 2 << 20, 1_500), sum);
    assert_eq!(
        usage::cloud_event(&events[1], tenant.id()),
        json!({
            "specversion": "1.0", "id": events[1].id, "source": "belljar",
            "type": "belljar.usage.tool_memory_byte_seconds", "subject": tenant.id(), "time": "2026-05-01T12:00:00Z",
            "datacontenttype": "application/json",
            "data": {"kind": "tool_memory_byte_seconds", "quantity": "3145.728", "unit_price": "0.000005",
                     "per": "1073741824", "amount": "0.000000000015", "currency": "USD", "price_book": "1",
                     "provider": null, "model": null, "tool": "calc", "function": "evaluate", "agent_id": null,
                     "run_id": null, "call_id": call, "api_key_id": null, "external_user_id": null},
        })
    );
}
