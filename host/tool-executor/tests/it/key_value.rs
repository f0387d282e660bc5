//! The tenant's key-value store as a tool meets it: what is denied, what a call sees of its own writes, what it leaves,
//! and how far it can push.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use domain::{
    CallGrants, Limits,
    grants::{Access, OpenNamespace},
};
use serde_json::{Value, json};
use tool_api::{Change, Finished, Operation, Seen, Status, ToolCall, ToolExecutor};

use crate::{
    host::Host,
    jar::{Jar, call, resident_bytes},
};

fn open(granted: &str, namespace: &str, access: Access) -> OpenNamespace {
    OpenNamespace { granted: granted.into(), namespace: namespace.into(), access }
}

/// A call that may write `notes`, and read `shared`.
fn granted(call: ToolCall) -> ToolCall {
    let key_value = vec![open("notes", "notes", Access::Write), open("shared", "shared", Access::Read)];
    ToolCall { grants: Arc::new(CallGrants { key_value, ..CallGrants::default() }), ..call }
}

fn act(act: &str, key: &str, value: &str) -> Value {
    json!({"act": act, "key": key, "value": value})
}

fn add(key: &str, delta: u64) -> Value {
    json!({"act": "increment", "key": key, "delta": delta})
}

struct Notes {
    jar: Jar,
    acts: tool_api::ArtifactHash,
}

impl Notes {
    async fn new() -> Notes {
        let jar = Jar::new();
        let acts = jar.load("kv_acts").await;
        Notes { jar, acts }
    }

    fn call(&self, function: &str, namespace: &str, acts: &[Value]) -> ToolCall {
        granted(call(self.acts, function, json!({"namespace": namespace, "acts": acts})))
    }

    async fn run(&self, host: Host, namespace: &str, acts: &[Value]) -> Finished {
        self.jar.executor.call(self.call("run", namespace, acts), Arc::new(host)).await.unwrap()
    }
}

/// What each act gave.
fn gave(finished: &Finished) -> Vec<String> {
    let structured = finished.outcome.structured.clone().unwrap_or_else(|| panic!("{finished:?}"));
    let list = structured.get("result").cloned().unwrap_or(structured);
    serde_json::from_value(list).unwrap()
}

fn change(key: &str, operation: Operation, seen: Option<Seen>) -> Change {
    Change { namespace: "notes".into(), key: key.into(), operation, seen }
}

fn set(value: &str) -> Operation {
    Operation::Set(value.to_owned().into())
}

#[tokio::test]
async fn a_namespace_that_is_not_granted_is_denied() {
    let notes = Notes::new().await;
    for namespace in ["other", "note", "notes/x", "", "default", "NOTES"] {
        let finished = notes.run(Host::default(), namespace, &[act("get", "a", "")]).await;
        assert_eq!(gave(&finished), ["denied"], "{namespace}");
        assert_eq!(finished.receipt.denied, ["key_value"]);
        let [told] = finished.receipt.host_calls.as_slice() else { panic!("{:?}", finished.receipt) };
        assert_eq!((told.interface.as_str(), told.function.as_str()), ("wasi:keyvalue", "open"));
        assert_eq!((told.target.as_deref(), &told.grant), (Some(namespace), &None));
        assert_eq!(told.error.as_deref(), Some("not granted"));
    }
    // Without any grant, and a failure after it.
    let ungranted = ToolCall { grants: Arc::default(), ..notes.call("run_and_fail", "notes", &[act("get", "a", "")]) };
    let finished = notes.jar.call(ungranted).await;
    assert_eq!(finished.outcome.status, Status::Denied);
    assert_eq!(finished.outcome.code.as_deref(), Some("denied.key_value"));
}

#[tokio::test]
async fn a_grant_for_reading_does_not_write() {
    let notes = Notes::new().await;
    let writes = [
        act("set", "a", "x"),
        act("delete", "a", ""),
        add("a", 1),
        json!({"act": "set_many", "keys": ["a", "b"], "value": "x"}),
        json!({"act": "delete_many", "keys": ["a"]}),
    ];
    let host = Host::with(&[("shared", "a", "1")]);
    let finished = notes.run(host, "shared", &[&writes[..], &[act("get", "a", "")]].concat()).await;
    assert_eq!(gave(&finished), ["denied", "denied", "denied", "denied", "denied", "`1`"]);
    assert_eq!((finished.changes.len(), finished.receipt.denied), (0, vec!["key_value".to_owned()]));
    let read = finished.receipt.host_calls.last().unwrap();
    assert_eq!((read.target.as_deref(), read.grant.as_deref()), (Some("shared/a"), Some("key_value shared")));
    assert_eq!((read.bytes_in, read.bytes_out, &read.error), (1, 1, &None));
    assert_eq!(finished.receipt.host_call_counts["wasi:keyvalue.set_many"], 1);
}

#[tokio::test]
async fn a_call_sees_its_own_writes_and_leaves_them_with_its_answer() {
    let notes = Notes::new().await;
    let acts = [
        act("get", "a", ""),
        act("set", "a", "new"),
        act("get", "a", ""),
        act("set", "b", "blind"),
        act("delete", "c", ""),
        act("exists", "c", ""),
        act("exists", "d", ""),
        add("count", 2),
        add("count", 3),
        act("get", "count", ""),
        act("list", "", ""),
        json!({"act": "get_many", "keys": ["a", "c", "d"]}),
    ];
    let host = Host::with(&[("notes", "a", "old"), ("notes", "c", "x"), ("notes", "count", "40"), ("other", "z", "x")]);
    let finished = notes.run(host, "notes", &acts).await;
    let gave = gave(&finished);
    let expected = ["`old`", "done", "`new`", "done", "done", "false", "false", "42", "45", "`45`"];
    assert_eq!(gave[..10], expected);
    assert_eq!(gave[10..], ["1: a b count", "a=new none none"]);
    let expected = [
        change("a", set("new"), Some(Seen::of(Some(b"old")))),
        change("b", set("blind"), None),
        change("c", Operation::Delete, None),
        change("count", Operation::Add(5), None),
    ];
    assert_eq!(finished.changes, expected);
}

#[tokio::test]
async fn only_a_call_that_answered_leaves_something() {
    let notes = Notes::new().await;
    let acts = [act("set", "a", "x")];
    for (function, status, changes) in [
        ("run", Status::Ok, 1),
        ("run_and_fail", Status::ToolError, 1),
        ("run_and_panic", Status::Trap, 0),
        ("run_and_spin", Status::Limit, 0),
    ] {
        let finished = notes.jar.call(notes.call(function, "notes", &acts)).await;
        assert_eq!((finished.outcome.status, finished.changes.len()), (status, changes), "{function}");
    }
    let denied = [act("set", "a", "x")];
    let finished = notes.jar.call(notes.call("run_and_fail", "shared", &denied)).await;
    assert_eq!((finished.outcome.status, finished.changes.len()), (Status::Denied, 0));
}

#[tokio::test]
async fn a_listing_goes_page_by_page() {
    let notes = Notes::new().await;
    let keys: Vec<_> = (0..250).map(|n| format!("k{n:03}")).collect();
    let host = || {
        let entries: Vec<_> = keys.iter().map(|key| ("notes", key.as_str(), "x")).collect();
        Host::with(&entries)
    };
    let acts = [
        act("list", "", ""),
        act("set", "k0005", "x"),
        json!({"act": "delete_many", "keys": &keys[100..200]}),
        act("list", "", ""),
    ];
    let finished = notes.run(host(), "notes", &acts).await;
    let gave = gave(&finished);
    assert_eq!(gave[0], format!("3: {}", keys.join(" ")));
    let mut left = [&keys[..100], &keys[200..]].concat();
    left.insert(1, "k0005".into());
    left.sort();
    let (_, listed) = gave[3].split_once(": ").unwrap();
    assert_eq!(listed, left.join(" "));
}

#[tokio::test]
async fn a_store_that_cannot_be_read_says_so_and_no_more() {
    let notes = Notes::new().await;
    let acts = [act("get", "a", ""), act("exists", "a", ""), add("a", 1), act("list", "", ""), act("set", "a", "x")];
    let finished = notes.run(Host { is_broken: true, ..Host::default() }, "notes", &acts).await;
    let unread = "error: the key-value store cannot be read now; try again";
    assert_eq!(gave(&finished), [unread, unread, unread, unread, "done"]);
    let words = serde_json::to_string(&finished.receipt.host_calls).unwrap();
    assert!(words.contains("cannot be read now") && !words.contains("database"), "{words}");
}

#[tokio::test]
async fn a_number_is_a_number() {
    let notes = Notes::new().await;
    let host = Host::with(&[("notes", "text", "abc"), ("notes", "max", "18446744073709551615")]);
    let finished =
        notes.run(host, "notes", &[add("text", 1), add("max", 1), add("new", 7), add("new", u64::MAX)]).await;
    let gave = gave(&finished);
    assert!(gave[0].contains("not a decimal number") && gave[1].contains("larger than"), "{gave:?}");
    assert!(gave[2] == "7" && gave[3].contains("larger than"), "{gave:?}");
    assert_eq!(finished.changes, [change("new", Operation::Add(7), None)]);
}

/// What a host function waited for is not the tool's work: a replay, which waits for nothing, must burn the same.
#[tokio::test]
async fn fuel_does_not_depend_on_how_long_the_store_takes() {
    let notes = Notes::new().await;
    let acts: Vec<_> = (0..400).map(|n| act("get", &format!("key-{n}"), "")).collect();
    let mut fuel = Vec::new();
    for waits in [0, 1, 3] {
        let finished = notes.run(Host { waits, ..Host::default() }, "notes", &acts).await;
        assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
        fuel.push((finished.receipt.fuel_used, finished.receipt.host_call_count));
    }
    assert!(fuel.iter().all(|used| *used == fuel[0]), "{fuel:?}");
    assert!(fuel[0].0 >= 1_000 * fuel[0].1, "{fuel:?}");
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_left_at_the_deadline() {
    let notes = Notes::new().await;
    let limits = Limits { deadline_ms: 100, ..Limits::DEFAULT };
    let asking = ToolCall { limits, ..notes.call("run", "notes", &[act("set", "a", "x"), act("get", "b", "")]) };
    let host = Host { waits: usize::MAX, ..Host::default() };
    let ended = tokio::time::timeout(Duration::from_secs(5), notes.jar.executor.call(asking, Arc::new(host)));
    let finished = ended.await.unwrap().unwrap();
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.deadline"));
    assert_eq!(finished.changes, []);
}

#[tokio::test]
async fn no_tool_gets_more_of_the_store_than_a_call_may_have() {
    let jar = Jar::new();
    let flood = jar.load("kv_flood").await;
    let run = async |function: &str, arguments: Value| {
        let key_value = vec![open("notes", "notes", Access::Write)];
        let grants = Arc::new(CallGrants { key_value, ..CallGrants::default() });
        let before = resident_bytes();
        let host = Arc::new(Host::default());
        let flooding = ToolCall { grants, ..call(flood, function, arguments) };
        let finished = jar.executor.call(flooding, Arc::clone(&host) as _).await.unwrap();
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{function}: the host grew by {} MiB", grown >> 20);
        assert!(finished.receipt.host_calls.len() <= 100, "{function}");
        (finished, host.reads.load(Ordering::Relaxed))
    };
    for (function, words) in [
        ("keys", "1000: a call writes at most 1000 keys"),
        ("deletes", "1000: a call writes at most 1000 keys"),
        ("values", "15: a call writes at most 4194304 bytes"),
        ("reads", "10000: a call reads at most 10000 keys"),
        ("counts", "8: the number would be larger"),
    ] {
        let (finished, _) = run(function, json!({})).await;
        assert!(finished.outcome.for_model().starts_with(words), "{function}: {finished:?}");
        assert!(finished.changes.len() <= 1_000, "{function}");
    }
    for (function, code) in [("same_key", "limit.fuel"), ("buckets", "limit.handles"), ("cursors", "limit.host_calls")]
    {
        let (finished, _) = run(function, json!({})).await;
        assert_eq!(finished.outcome.code.as_deref(), Some(code), "{function}: {finished:?}");
        assert_eq!(finished.changes, []);
    }
    for (bytes, answer) in [(256 << 10, "written"), ((256 << 10) + 1, "a value has at most"), (300_000, "limit.abi")] {
        let (finished, _) = run("one_value", json!({"bytes": bytes})).await;
        assert!(finished.outcome.for_model().contains(answer), "{bytes}: {finished:?}");
    }
    for (bytes, refused) in [(0, 8), (1, 0), (512, 0), (513, 8), (100_000, 8)] {
        let (finished, reads) = run("one_key", json!({"bytes": bytes})).await;
        let count = gave(&finished).iter().filter(|answer| answer.contains("1 to 512 bytes")).count();
        assert_eq!(count, refused, "{bytes}: {finished:?}");
        assert!(refused == 0 || reads == 0, "a bad key is not looked for");
    }
    let (finished, _) = run("one_batch", json!({"keys": 100})).await;
    assert_eq!(finished.outcome.for_model(), "100 keys");
    let (finished, reads) = run("one_batch", json!({"keys": 101})).await;
    assert!(finished.outcome.for_model().contains("at most 100 keys") && reads == 0, "{finished:?}");
}
