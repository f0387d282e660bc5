use agent_config::{
    key_value::{self, Applied, ENTRIES_MAX, KeyValueError, VALUE_BYTES_MAX},
    page::TextPageRequest,
};
use bytes::Bytes;
use domain::{CallId, Clock, Kind, Problem, SystemClock, SystemIds};
use kit::TestDb;
use tenancy::Tenant;
use tool_api::{Change, Operation, Seen};

/// What a plan stores in most of these tests.
const STORAGE: i64 = 1 << 20;

async fn put(tenant: &Tenant, namespace: &str, key: &str, value: &str) -> Result<bool, KeyValueError> {
    let mut tx = tenant.begin().await.unwrap();
    let value = Bytes::from(value.to_owned());
    let (_, new) = key_value::put(&mut tx, STORAGE, namespace, key, value, SystemClock.now()).await?;
    tx.commit().await.unwrap();
    Ok(new)
}

async fn delete(tenant: &Tenant, namespace: &str, key: &str) -> Result<(), KeyValueError> {
    let mut tx = tenant.begin().await.unwrap();
    key_value::delete(&mut tx, namespace, key, SystemClock.now()).await?;
    tx.commit().await.unwrap();
    Ok(())
}

async fn read(tenant: &Tenant, key: &str) -> Option<String> {
    let mut tx = tenant.begin().await.unwrap();
    let value = key_value::read(&mut tx, "n", key).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn change(key: &str, operation: Operation) -> Change {
    Change { namespace: "n".into(), key: key.into(), operation, seen: None }
}

fn set(key: &str, value: &str) -> Change {
    change(key, Operation::Set(Bytes::from(value.to_owned())))
}

fn saw(change: Change, value: Option<&str>) -> Change {
    Change { seen: Some(Seen::of(value.map(str::as_bytes))), ..change }
}

/// One step with these calls.
async fn commit(tenant: &Tenant, storage: i64, calls: Vec<Vec<Change>>) -> Vec<Applied> {
    let calls: Vec<_> = calls.into_iter().map(|changes| (CallId::new(&SystemIds), changes)).collect();
    let mut tx = tenant.begin().await.unwrap();
    let applied = key_value::apply(&mut tx, storage, &calls, SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
    assert!(applied.iter().zip(&calls).all(|((id, _), (call, _))| id == call));
    applied.into_iter().map(|(_, applied)| applied).collect()
}

/// Sums as they are kept, after comparing them with what is there.
async fn sums(tenant: &Tenant) -> (i64, i64) {
    let mut tx = tenant.begin().await.unwrap();
    let kept: (i64, i64) = sqlx::query_as("SELECT coalesce(max(bytes), 0), coalesce(max(entries), 0) FROM kv_usage")
        .fetch_one(tx.conn())
        .await
        .unwrap();
    let counted: (i64, i64) = sqlx::query_as(
        "SELECT coalesce(sum(octet_length(namespace) + octet_length(key) + octet_length(value)), 0), count(*) FROM kv_entry",
    )
    .fetch_one(tx.conn())
    .await
    .unwrap();
    assert_eq!(kept, counted, "the sums are true");
    kept
}

#[tokio::test]
async fn a_stranger_has_no_entry() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    assert!(put(&ada, "n", "k", "ada's").await.unwrap());
    assert_eq!(read(&bob, "k").await, None);
    assert_eq!(delete(&bob, "n", "k").await.unwrap_err().code(), "kv.not_found");
    let mut tx = bob.begin().await.unwrap();
    assert_eq!(key_value::get(&mut tx, "n", "k").await.unwrap_err().code(), "kv.not_found");
    assert!(key_value::keys(&mut tx, "n", None, 10).await.unwrap().is_empty());
    assert!(key_value::list(&mut tx, "n", "", TextPageRequest::default()).await.unwrap().data.is_empty());
    assert!(key_value::namespaces(&mut tx, TextPageRequest::default()).await.unwrap().data.is_empty());
    drop(tx);
    let applied =
        commit(&bob, STORAGE, vec![vec![saw(set("k", "bob's"), Some("ada's"))], vec![set("k", "bob's")]]).await;
    assert_eq!(applied.iter().map(Applied::code).collect::<Vec<_>>(), [Some("kv.conflict"), None]);
    assert_eq!(read(&ada, "k").await.as_deref(), Some("ada's"));
    assert_eq!((sums(&ada).await, sums(&bob).await), ((7, 1), (7, 1)));
}

#[tokio::test]
async fn what_is_no_entry_is_refused() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let large = "v".repeat(VALUE_BYTES_MAX + 1);
    for (namespace, key, value, code, kind) in [
        ("", "k", "v", "kv.bad_namespace", Kind::Invalid),
        ("a b", "k", "v", "kv.bad_namespace", Kind::Invalid),
        ("notes/{external_user_id}", "k", "v", "kv.bad_namespace", Kind::Invalid),
        ("n", "", "v", "kv.bad_key", Kind::Invalid),
        ("n", "a\0b", "v", "kv.bad_key", Kind::Invalid),
        ("n", &"k".repeat(513), "v", "kv.bad_key", Kind::Invalid),
        ("n", "k", large.as_str(), "kv.value_too_large", Kind::TooLarge),
    ] {
        let error = put(&ada, namespace, key, value).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, kind), "{namespace} {key}");
    }
    // A call gets an answer, never a broken transaction.
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(key_value::read(&mut tx, "n", "a\0b").await.unwrap(), None);
    assert!(key_value::keys(&mut tx, "n\0", None, 10).await.unwrap().is_empty());
    assert!(key_value::keys(&mut tx, "n", Some("a\0"), 10).await.unwrap().is_empty());
    drop(tx);
    let applied = commit(&ada, STORAGE, vec![vec![set("a\0b", "v")], vec![set("k", "v")]]).await;
    assert_eq!(applied.iter().map(Applied::code).collect::<Vec<_>>(), [Some("kv.bad_entry"), None]);
    let whole = (format!("notes/{}", "%2F".repeat(300)), "ä/\n".repeat(100), "v".repeat(VALUE_BYTES_MAX));
    put(&ada, &whole.0, &whole.1, &whole.2).await.unwrap();
    sums(&ada).await;
}

#[tokio::test]
async fn a_plan_is_not_passed() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    // Names count: 1 + 1 + 8.
    assert_eq!(commit(&ada, 10, vec![vec![set("k", "12345678")]]).await, [Applied::Applied]);
    let (over, under) = (vec![set("l", ""), set("k", "1234567")], vec![set("k", "x"), set("l", "12345")]);
    assert_eq!(commit(&ada, 10, vec![over, under]).await, [Applied::Quota { bytes: 11, max: 10 }, Applied::Applied]);
    assert_eq!((read(&ada, "k").await.as_deref(), sums(&ada).await), (Some("x"), (10, 2)));

    // Components count against the same number.
    let mut tx = ada.begin().await.unwrap();
    sqlx::query("INSERT INTO artifact SELECT tenant_id, sha256('x'), 'x', now() FROM tenant")
        .execute(tx.conn())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(commit(&ada, 10, vec![vec![set("k", "xy")]]).await, [Applied::Quota { bytes: 12, max: 10 }]);
    let mut tx = ada.begin().await.unwrap();
    let error = key_value::put(&mut tx, 10, "n", "m", Bytes::new(), SystemClock.now()).await.unwrap_err();
    assert!(matches!(error, KeyValueError::Quota { bytes: 13, max: 10 }), "{error}");
    assert_eq!((error.code(), error.kind()), ("kv.quota", Kind::TooLarge));
    drop(tx);
    assert_eq!(commit(&ada, 1, vec![vec![change("l", Operation::Delete)]]).await, [Applied::Applied]);
    assert_eq!(sums(&ada).await, (3, 1));

    let mut tx = ada.begin().await.unwrap();
    sqlx::query("UPDATE kv_usage SET entries = $1").bind(ENTRIES_MAX).execute(tx.conn()).await.unwrap();
    let error = key_value::put(&mut tx, STORAGE, "n", "m", Bytes::new(), SystemClock.now()).await.unwrap_err();
    assert!(matches!(error, KeyValueError::TooManyEntries), "{error}");
    key_value::put(&mut tx, STORAGE, "n", "k", Bytes::from_static(b"more"), SystemClock.now()).await.unwrap();
}

#[tokio::test]
async fn a_step_applies_its_calls_in_order_and_each_wholly() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    put(&ada, "n", "count", "7").await.unwrap();
    put(&ada, "n", "word", "seven").await.unwrap();
    let add = |delta| change("count", Operation::Add(delta));
    let applied = commit(
        &ada,
        STORAGE,
        vec![
            vec![add(3), set("a", "1")],
            vec![],
            vec![set("b", "1"), saw(set("count", "0"), Some("7"))],
            vec![saw(set("word", "ten"), Some("seven")), saw(change("none", Operation::Delete), None)],
            vec![set("c", "1"), change("word", Operation::Add(1))],
            vec![saw(change("word", Operation::Delete), Some("ten")), saw(add(1), Some("10"))],
            vec![change("fresh", Operation::Add(5)), change("a", Operation::Delete)],
        ],
    )
    .await;
    let codes: Vec<_> = applied.iter().map(Applied::code).collect();
    assert_eq!(codes, [None, None, Some("kv.conflict"), None, Some("kv.not_a_number"), None, None]);
    assert_eq!(applied[2], Applied::Conflict { namespace: "n".into(), key: "count".into() });
    assert!(applied[2].to_string().contains("`count` of `n`"), "{}", applied[2]);
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(key_value::keys(&mut tx, "n", None, 10).await.unwrap(), ["count", "fresh"]);
    drop(tx);
    assert_eq!((read(&ada, "count").await.as_deref(), read(&ada, "fresh").await.as_deref()), (Some("11"), Some("5")));
    sums(&ada).await;
    // Nothing to write is nothing to wait for.
    let bob = db.tenant("bob").await;
    assert_eq!(commit(&bob, 0, vec![vec![], vec![]]).await, [Applied::Applied, Applied::Applied]);
    assert_eq!(sums(&bob).await, (0, 0));
}

#[tokio::test]
async fn a_rolled_back_step_leaves_nothing() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let mut tx = ada.begin().await.unwrap();
    let calls = [(CallId::new(&SystemIds), vec![set("k", "v")])];
    key_value::apply(&mut tx, STORAGE, &calls, SystemClock.now()).await.unwrap();
    drop(tx);
    assert_eq!((read(&ada, "k").await, sums(&ada).await), (None, (0, 0)));
}

#[tokio::test]
async fn increments_at_once_are_all_counted_and_of_two_writers_one_has_a_conflict() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let steps = (0..24).map(|_| commit(&ada, STORAGE, vec![vec![change("count", Operation::Add(2))]]));
    let applied: Vec<_> = futures::future::join_all(steps).await.concat();
    assert!(applied.iter().all(|applied| *applied == Applied::Applied));
    assert_eq!(read(&ada, "count").await.as_deref(), Some("48"));

    let write = |value| commit(&ada, STORAGE, vec![vec![saw(set("k", value), None)]]);
    let (one, two) = tokio::join!(write("one"), write("two"));
    let codes = [one[0].code(), two[0].code()];
    assert!(codes == [None, Some("kv.conflict")] || codes == [Some("kv.conflict"), None], "{codes:?}");
    sums(&ada).await;
}

#[tokio::test]
async fn pages_are_in_the_order_of_bytes() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    // A locale would sort these in another way.
    let keys = ["B", "a", "a b", "a-b", "a/1", "a/2", "a/\u{10ffff}", "aB", "ab", "z", "ä", "\u{10ffff}"];
    let mut calls: Vec<Change> = keys.iter().rev().map(|key| set(key, "v")).collect();
    calls.push(Change { namespace: "N".into(), ..set("k", "four") });
    calls.push(Change { namespace: "n/ada%2F".into(), ..set("k", "") });
    assert_eq!(commit(&ada, STORAGE, vec![calls]).await, [Applied::Applied]);

    let mut tx = ada.begin().await.unwrap();
    let (mut walked, mut after) = (Vec::new(), None);
    loop {
        let page = key_value::keys(&mut tx, "n", after.as_deref(), 5).await.unwrap();
        after = page.last().cloned();
        if page.is_empty() {
            break;
        }
        walked.extend(page);
    }
    assert_eq!(walked, keys);

    let (mut walked, mut after) = (Vec::new(), None);
    loop {
        let page = key_value::list(&mut tx, "n", "a/", TextPageRequest { limit: 2, after }).await.unwrap();
        walked.extend(page.data.into_iter().map(|entry| (entry.key, entry.size_bytes)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(walked, [("a/1".into(), 1), ("a/2".into(), 1), ("a/\u{10ffff}".into(), 1)]);
    let all = key_value::list(&mut tx, "n", "", TextPageRequest { limit: 100, after: None }).await.unwrap();
    assert_eq!((all.data.len(), all.next), (keys.len(), None));
    let error = key_value::list(&mut tx, "a b", "", TextPageRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), "kv.bad_namespace");

    let page = key_value::namespaces(&mut tx, TextPageRequest { limit: 2, after: None }).await.unwrap();
    let counts: Vec<_> = page.data.iter().map(|n| (n.namespace.as_str(), n.entries, n.bytes)).collect();
    let bytes = keys.iter().map(|key| key.len() as u64 + 2).sum();
    assert_eq!(counts, [("N", 1, 6), ("n", 12, bytes)]);
    let rest = key_value::namespaces(&mut tx, TextPageRequest { limit: 2, after: page.next }).await.unwrap();
    assert_eq!((rest.data[0].namespace.as_str(), rest.data[0].bytes, rest.next), ("n/ada%2F", 9, None));
}

#[tokio::test]
async fn a_tenant_writes_reads_and_deletes_its_entries() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    assert!(put(&ada, "n", "k", "one").await.unwrap());
    assert!(!put(&ada, "n", "k", "second").await.unwrap());
    let mut tx = ada.begin().await.unwrap();
    let stored = key_value::get(&mut tx, "n", "k").await.unwrap();
    assert_eq!(stored.value, "second");
    drop(tx);
    assert_eq!(sums(&ada).await, (8, 1));
    delete(&ada, "n", "k").await.unwrap();
    assert_eq!(delete(&ada, "n", "k").await.unwrap_err().code(), "kv.not_found");
    assert_eq!(sums(&ada).await, (0, 0));
}
