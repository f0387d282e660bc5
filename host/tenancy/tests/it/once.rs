//! What is asked twice is done once.

use std::time::Duration;

use domain::{CallId, Clock, Ids, Problem, RunId, SystemClock, SystemIds, Timestamp};
use kit::{TestDb, master_key};
use tenancy::{
    Tenant, TenantTx,
    idempotency::{self, Answer, IdempotencyError, KEPT, LEASE, Opened, Request, Reservation, Way, operator},
};

fn request(key: u8) -> Request {
    Request { holder: SystemIds.uuid(), key: [key; 32], fingerprint: [1; 32] }
}

fn answer(text: &str) -> Answer {
    Answer { status: 201, location: Some("/v1/things/1".into()), body: format!("{{\"secret\": \"{text}\"}}") }
}

async fn open(tx: &mut TenantTx, request: &Request, now: Timestamp) -> Result<Opened, IdempotencyError> {
    idempotency::open(tx, &master_key(), request, Way::Answer, now).await
}

/// Does the request in a transaction.
async fn done(tenant: &Tenant, request: &Request, text: &str, now: Timestamp) {
    let mut tx = tenant.begin().await.unwrap();
    assert!(matches!(open(&mut tx, request, now).await.unwrap(), Opened::First));
    idempotency::keep(&mut tx, &master_key(), request, None, &answer(text), now).await.unwrap();
    tx.commit().await.unwrap();
}

async fn reserve(tenant: &Tenant, request: &Request, call: CallId, now: Timestamp) -> Result<Opened, IdempotencyError> {
    let mut tx = tenant.begin().await.unwrap();
    let way = Way::Reserved { by: SystemIds.uuid(), call: Some(call) };
    let opened = idempotency::open(&mut tx, &master_key(), request, way, now).await?;
    tx.commit().await.unwrap();
    Ok(opened)
}

#[tokio::test]
async fn a_key_is_nothing_to_another_tenant_or_another_api_key() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let (asked, now) = (request(7), SystemClock.now());
    done(&ada, &asked, "adas", now).await;
    done(&bob, &asked, "bobs", now).await;
    done(&ada, &Request { holder: SystemIds.uuid(), ..asked }, "another key's", now).await;
    let mut tx = ada.begin().await.unwrap();
    let Opened::Answered(kept) = open(&mut tx, &asked, now).await.unwrap() else { panic!("it was answered") };
    assert_eq!(kept, answer("adas"));
}

#[tokio::test]
async fn another_payload_is_refused() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    done(&ada, &asked, "first", now).await;
    let other = Request { fingerprint: [2; 32], ..asked };
    let mut tx = ada.begin().await.unwrap();
    let refused = open(&mut tx, &other, now).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.other_payload");
    drop(tx);
    // Nor takes it over what has died.
    let reserved = request(8);
    reserve(&ada, &reserved, CallId::new(&SystemIds), now).await.unwrap();
    let other = Request { fingerprint: [2; 32], ..reserved };
    let refused = reserve(&ada, &other, CallId::new(&SystemIds), now.plus(LEASE * 2)).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.other_payload");
}

#[tokio::test]
async fn of_many_at_once_one_works_and_the_others_are_told_to_come_back() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    let mut first = ada.begin().await.unwrap();
    assert!(matches!(open(&mut first, &asked, now).await.unwrap(), Opened::First));
    for _ in 0..3 {
        let mut tx = ada.begin().await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(1), open(&mut tx, &asked, now)).await;
        let refused = waiting.expect("nobody waits for the first").unwrap_err();
        assert_eq!((refused.code(), refused.retry_after_seconds()), ("idempotency_key.in_progress", Some(1)));
    }
    idempotency::keep(&mut first, &master_key(), &asked, None, &answer("first"), now).await.unwrap();
    first.commit().await.unwrap();
    let mut tx = ada.begin().await.unwrap();
    assert!(matches!(open(&mut tx, &asked, now).await.unwrap(), Opened::Answered(_)));
}

#[tokio::test]
async fn what_was_rolled_back_was_never_asked() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    let mut tx = ada.begin().await.unwrap();
    assert!(matches!(open(&mut tx, &asked, now).await.unwrap(), Opened::First));
    idempotency::keep(&mut tx, &master_key(), &asked, None, &answer("lost"), now).await.unwrap();
    drop(tx);
    done(&ada, &Request { fingerprint: [2; 32], ..asked }, "another", now).await;
}

#[tokio::test]
async fn an_answer_is_sealed() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    done(&ada, &asked, "canary", now).await;
    let mut all = db.superuser().await;
    let row: String = sqlx::query_scalar("SELECT i::text || encode(i.body, 'escape') FROM belljar.idempotency i")
        .fetch_one(&mut all)
        .await
        .unwrap();
    assert!(!row.contains("canary"), "{row}");
    // Nor does it open when it stands at another key.
    sqlx::query("UPDATE belljar.idempotency SET key = $1").bind(vec![8_u8; 32]).execute(&mut all).await.unwrap();
    let mut tx = ada.begin().await.unwrap();
    open(&mut tx, &Request { key: [8; 32], ..asked }, now).await.unwrap_err();
}

#[tokio::test]
async fn a_day_later_a_key_is_new() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    done(&ada, &asked, "first", now).await;
    let mut tx = ada.begin().await.unwrap();
    assert!(matches!(open(&mut tx, &asked, now.plus(KEPT)).await.unwrap(), Opened::Answered(_)));
    drop(tx);
    let later = now.plus(KEPT + Duration::from_secs(1));
    done(&ada, &Request { fingerprint: [2; 32], ..asked }, "second", later).await;
}

#[tokio::test]
async fn the_sweep_forgets_what_is_old_and_nothing_else() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let now = SystemClock.now();
    for tenant in [&ada, &bob] {
        for key in 0..3 {
            done(tenant, &request(key), "x", now).await;
        }
    }
    let mut all = db.superuser().await;
    sqlx::query("UPDATE belljar.idempotency SET created_at = now() - interval '25 hours' WHERE key = $1")
        .bind(vec![1_u8; 32])
        .execute(&mut all)
        .await
        .unwrap();
    db.db.sweep_idempotency(now).await.unwrap();
    let left: Vec<Vec<u8>> = sqlx::query_scalar("SELECT DISTINCT key FROM belljar.idempotency ORDER BY key")
        .fetch_all(&mut all)
        .await
        .unwrap();
    assert_eq!(left, [vec![0; 32], vec![2; 32]]);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM belljar.idempotency").fetch_one(&mut all).await.unwrap();
    assert_eq!(rows, 4);
}

#[tokio::test]
async fn a_reserved_request_is_done_again_when_whoever_did_it_has_died() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    let (call, another) = (CallId::new(&SystemIds), CallId::new(&SystemIds));
    assert!(matches!(reserve(&ada, &asked, call, now).await.unwrap(), Opened::First));
    let refused = reserve(&ada, &asked, another, now.plus(LEASE)).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.in_progress");
    let opened = reserve(&ada, &asked, another, now.plus(LEASE + Duration::from_millis(1))).await.unwrap();
    let Opened::Again(Some(again)) = opened else { panic!("{opened:?}") };
    assert_eq!(again, call, "under the id that it had");
}

#[tokio::test]
async fn who_has_lost_a_request_keeps_nothing() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    let lost = Reservation { request: asked, by: SystemIds.uuid() };
    let mut tx = ada.begin().await.unwrap();
    let way = Way::Reserved { by: lost.by, call: None };
    idempotency::open(&mut tx, &master_key(), &asked, way, now).await.unwrap();
    assert!(lost.holds(&mut tx).await.unwrap());
    tx.commit().await.unwrap();
    reserve(&ada, &asked, CallId::new(&SystemIds), now.plus(LEASE * 2)).await.unwrap();

    let mut tx = ada.begin().await.unwrap();
    assert!(!lost.holds(&mut tx).await.unwrap());
    let refused = lost.keep(&mut tx, &master_key(), &answer("late"), now).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.taken_over");
    assert_eq!(lost.end(&mut tx).await.unwrap_err().code(), "idempotency_key.taken_over");
    lost.release(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let refused = reserve(&ada, &asked, CallId::new(&SystemIds), now.plus(LEASE * 2)).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.in_progress", "it is the other's still");
}

#[tokio::test]
async fn what_was_released_is_new_and_what_was_given_up_is_done_again() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let now = SystemClock.now();
    for (given_up, key) in [(false, 7), (true, 8)] {
        let asked = request(key);
        let mine = Reservation { request: asked, by: SystemIds.uuid() };
        let way = Way::Reserved { by: mine.by, call: None };
        let mut tx = ada.begin().await.unwrap();
        idempotency::open(&mut tx, &master_key(), &asked, way, now).await.unwrap();
        match given_up {
            true => mine.give_up(&mut tx, now).await.unwrap(),
            false => mine.release(&mut tx).await.unwrap(),
        }
        tx.commit().await.unwrap();
        let opened = reserve(&ada, &asked, CallId::new(&SystemIds), now.plus(Duration::from_millis(1))).await.unwrap();
        assert_eq!(matches!(opened, Opened::Again(_)), given_up, "{opened:?}");
    }
}

#[tokio::test]
async fn a_run_is_known_again() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let (asked, now) = (request(7), SystemClock.now());
    let (run, another) = (RunId::new(&SystemIds), RunId::new(&SystemIds));
    let way = |run| Way::Run { run, waits_until: now.plus(LEASE) };
    let mut tx = ada.begin().await.unwrap();
    let opened = idempotency::open(&mut tx, &master_key(), &asked, way(run), now).await.unwrap();
    assert!(matches!(opened, Opened::First));
    tx.commit().await.unwrap();
    let mut tx = ada.begin().await.unwrap();
    let opened = idempotency::open(&mut tx, &master_key(), &asked, way(another), now).await.unwrap();
    let Opened::Run { run: known, waits_until } = opened else { panic!("{opened:?}") };
    assert_eq!((known, waits_until), (run, now.plus(LEASE)));
}

#[tokio::test]
async fn the_operator_has_keys_of_its_own() {
    let db = TestDb::start().await;
    let (master, now) = (master_key(), SystemClock.now());
    let asked = request(7);
    let mut first = db.db.global().await.unwrap();
    assert!(operator::open(&mut first, &master, &asked, now).await.unwrap().is_none());
    let mut second = db.db.global().await.unwrap();
    let refused = operator::open(&mut second, &master, &asked, now).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.in_progress");
    drop(second);
    operator::keep(&mut first, &master, &asked, &answer("canary")).await.unwrap();
    first.commit().await.unwrap();

    let mut again = db.db.global().await.unwrap();
    assert_eq!(operator::open(&mut again, &master, &asked, now).await.unwrap(), Some(answer("canary")));
    let other = Request { fingerprint: [2; 32], ..asked };
    let refused = operator::open(&mut again, &master, &other, now).await.unwrap_err();
    assert_eq!(refused.code(), "idempotency_key.other_payload");
    drop(again);
    let mut all = db.superuser().await;
    let row: String =
        sqlx::query_scalar("SELECT o::text || encode(o.answer, 'escape') FROM belljar.operator_idempotency o")
            .fetch_one(&mut all)
            .await
            .unwrap();
    assert!(!row.contains("canary"), "{row}");
    db.db.sweep_idempotency(now.plus(KEPT * 2)).await.unwrap();
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM belljar.operator_idempotency").fetch_one(&mut all).await.unwrap();
    assert_eq!(left, 0);
}
