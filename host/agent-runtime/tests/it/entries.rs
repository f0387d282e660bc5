//! Key-value changes land with their step or not at all, and no write of another is lost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_runtime::{RunStatus, Settings, StopReason, tool_calls};
use async_trait::async_trait;
use domain::{Amount, message::Part};
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::Tenant;
use tokio::sync::Notify;
use tool_api::{
    CallError, CallHost, Change, Finished, Operation, Outcome, Recording, Replayed, Seen, Status, ToolCall,
    ToolExecutor,
};

use crate::house::{House, direct, say, set};

/// Every call reads the entry `notes/n` and writes the number after it.
#[derive(Clone)]
struct Counter {
    fake: FakeExecutor,
    /// Each call has sent a request.
    sends: bool,
    /// Between a call's read and its end, somebody else changes the entry this many times in all.
    disturbed: Arc<AtomicU32>,
    disturber: Arc<std::sync::OnceLock<Tenant>>,
}

impl Counter {
    fn new() -> Counter {
        Counter { fake: FakeExecutor::echo(), sends: false, disturbed: Arc::default(), disturber: Arc::default() }
    }

    fn disturb(&self, tenant: &Tenant, times: u32) {
        self.disturber.set(tenant.clone()).unwrap();
        self.disturbed.store(times, Ordering::SeqCst);
    }

    fn attempts(&self) -> Vec<u32> {
        let mut attempts: Vec<u32> = self.fake.calls().iter().map(|call| call.context.attempt).collect();
        attempts.sort_unstable();
        attempts
    }
}

#[async_trait]
impl ToolExecutor for Counter {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        let stored = host.get("notes", "n").await.unwrap();
        let number = stored.as_deref().map_or(0, |text| std::str::from_utf8(text).unwrap().parse::<u64>().unwrap());
        let seen = Some(Seen::of(stored.as_deref()));
        if self.disturbed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            House::put_entry(self.disturber.get().unwrap(), "notes", "n", &(number + 100).to_string()).await;
        }
        let mut finished = self.fake.call(call, host).await?;
        finished.outcome.content = vec![Part::text((number + 1).to_string())];
        finished.outcome.structured = None;
        finished.changes = vec![set("notes", "n", &(number + 1).to_string(), seen)];
        if self.sends {
            finished.receipt.host_call_counts.insert("wasi:http.handle".into(), 1);
        }
        Ok(finished)
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.fake.replay(call, recording).await
    }
}

fn texts(calls: &[agent_runtime::ToolCallRow]) -> Vec<String> {
    calls.iter().map(|call| call.outcome.for_model()).collect()
}

#[tokio::test]
async fn calls_of_one_step_that_change_one_key_all_count() {
    let counter = Counter::new();
    let house = House::new(counter.clone()).await;
    let ada = house.tenant("ada").await;
    let turn = house.chat(&ada, "/desk__run {}\n/desk__run {}\n/desk__run {}").await;
    assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
    assert_eq!(house.entry(&ada, "notes", "n").await.as_deref(), Some("3"));
    assert_eq!(texts(&turn.tool_calls), ["1", "2", "3"]);
    assert_eq!(counter.attempts(), [1, 1, 1, 2, 2]);

    // Only the try that counts is on the receipt and on the bill.
    let attempts: Vec<u32> =
        turn.tool_calls.iter().map(|call| call.receipt.as_ref().unwrap().receipt.attempt).collect();
    assert_eq!(attempts, [1, 2, 2]);
    assert_eq!(turn.run.usage.fuel, 3000);
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);

    // Each call has one end, and the model and the followers hear the same.
    let events = house.events(&ada, turn.run.id, "0").await;
    let ended: Vec<&Value> =
        events.iter().filter(|event| event.kind == "tool_call.completed").map(|event| &event.data).collect();
    let told: HashMap<String, &Value> =
        ended.iter().map(|data| (data["id"].as_str().unwrap().to_owned(), &data["outcome"])).collect();
    assert_eq!((ended.len(), told.len()), (3, 3));
    for call in &turn.tool_calls {
        assert_eq!(*told[&call.id.to_string()], json!(call.outcome));
    }
    let said = turn.message.unwrap().content;
    assert!(said.contains('3'), "the model was told the third number: {said}");
}

#[tokio::test]
async fn a_call_that_sent_a_request_is_not_run_again() {
    let counter = Counter { sends: true, ..Counter::new() };
    let house = House::new(counter.clone()).await;
    let ada = house.tenant("ada").await;
    let turn = house.chat(&ada, "/desk__run {}\n/desk__run {}").await;
    assert_eq!(counter.attempts(), [1, 1]);
    assert_eq!(house.entry(&ada, "notes", "n").await.as_deref(), Some("1"));
    let codes: Vec<_> =
        turn.tool_calls.iter().map(|call| (call.outcome.status, call.outcome.code.as_deref())).collect();
    assert_eq!(codes, [(Status::Ok, None), (Status::ToolError, Some("kv.conflict"))]);
    assert!(turn.tool_calls[1].receipt.is_some(), "it ran, and is billed");
    assert_eq!(turn.run.usage.fuel, 2000);
    let said = turn.message.unwrap().content;
    assert!(said.contains("kv.conflict"), "the model was told: {said}");
}

#[tokio::test]
async fn a_conflict_that_does_not_end_is_told() {
    let counter = Counter::new();
    let house = House::new(counter.clone()).await;
    let ada = house.tenant("ada").await;
    counter.disturb(&ada, 2);
    let turn = house.chat(&ada, "/desk__run {}").await;
    assert_eq!(counter.attempts(), [1, 2, 3]);
    assert_eq!(texts(&turn.tool_calls), ["201"], "two others came between");
    let keys: Vec<String> = counter.fake.calls().into_iter().map(|call| call.context.idempotency_key).collect();
    assert_eq!(keys, vec![turn.tool_calls[0].id.to_string(); 3]);

    counter.disturbed.store(u32::MAX, Ordering::SeqCst);
    let turn = house.chat(&ada, "/desk__run {}").await;
    assert_eq!(turn.tool_calls[0].outcome.code.as_deref(), Some("kv.conflict"));
    assert_eq!(counter.attempts(), [1, 1, 2, 2, 3, 3]);
    assert_eq!(house.entry(&ada, "notes", "n").await.as_deref(), Some("501"), "what the others wrote stands");
    assert_eq!(turn.run.usage.fuel, 1000);
}

#[tokio::test]
async fn a_direct_call_in_conflict_runs_again() {
    let counter = Counter::new();
    let house = House::new(counter.clone()).await;
    let ada = house.tenant("ada").await;
    counter.disturb(&ada, 1);
    let row = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    assert_eq!((row.outcome.for_model().as_str(), row.receipt.unwrap().receipt.attempt), ("101", 2));
    assert_eq!(house.entry(&ada, "notes", "n").await.as_deref(), Some("101"));

    counter.disturbed.store(u32::MAX, Ordering::SeqCst);
    let row = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    assert_eq!((row.outcome.code.as_deref(), row.receipt.unwrap().receipt.attempt), (Some("kv.conflict"), 3));
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(tool_calls::list(&mut tx, &Default::default(), Default::default()).await.unwrap().data.len(), 2);
}

#[tokio::test]
async fn what_cannot_be_stored_is_dropped_whole_and_told() {
    let executor = FakeExecutor::echo().writing(|call| match call.arguments["do"].as_str() {
        Some("fill") => vec![set("notes", "a", "x", None), set("notes", "b", &"x".repeat(1 << 16), None)],
        Some("add") => vec![
            set("notes", "c", "x", None),
            Change { namespace: "notes".into(), key: "text".into(), operation: Operation::Add(1), seen: None },
        ],
        _ => vec![set("notes", "small", "x", None)],
    });
    let house = House::new(executor).await;
    let ada = house.tenant("ada").await;
    House::put_entry(&ada, "notes", "text", "no number").await;
    let mut tx = ada.begin().await.unwrap();
    let overrides = serde_json::from_value(json!({"storage_bytes": 10_000})).unwrap();
    let change = tenancy::tenants::TenantChange { overrides: Some(overrides), ..Default::default() };
    tenancy::tenants::update(&mut tx, change).await.unwrap();
    tx.commit().await.unwrap();
    let lines = "/desk__run {\"do\": \"fill\"}\n/desk__run {\"do\": \"add\"}\n/desk__run {}";
    let turn = house.chat(&ada, lines).await;
    let codes: Vec<_> = turn.tool_calls.iter().map(|call| call.outcome.code.as_deref()).collect();
    assert_eq!(codes, [Some("kv.quota"), Some("kv.not_a_number"), None]);
    for (key, there) in [("a", false), ("b", false), ("c", false), ("small", true)] {
        assert_eq!(house.entry(&ada, "notes", key).await.is_some(), there, "{key}");
    }
}

#[tokio::test]
async fn a_call_that_did_not_answer_leaves_nothing() {
    let failing = |status| {
        let answer = move |_: &ToolCall| Outcome::failed(status, "some.code", "words");
        FakeExecutor::new(answer).writing(|_| vec![set("notes", "n", "1", None)])
    };
    for (status, kept) in
        [(Status::Trap, false), (Status::Limit, false), (Status::Denied, false), (Status::ToolError, true)]
    {
        let house = House::new(failing(status)).await;
        let ada = house.tenant("ada").await;
        house.chat(&ada, "/desk__run {}").await;
        assert_eq!(house.entry(&ada, "notes", "n").await.is_some(), kept, "{status:?}");
    }
}

/// Answers when it is let.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) fake: FakeExecutor,
    pub(crate) began: Arc<Notify>,
    pub(crate) go: Arc<Notify>,
}

#[async_trait]
impl ToolExecutor for Held {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        self.began.notify_one();
        self.go.notified().await;
        self.fake.call(call, host).await
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.fake.replay(call, recording).await
    }
}

#[tokio::test]
async fn a_process_that_lost_the_run_writes_no_entry() {
    let fake = FakeExecutor::echo().writing(|_| vec![set("notes", "n", "1", None)]);
    let held = Held { fake, began: Arc::default(), go: Arc::default() };
    let abandoned = Settings { lease: Duration::ZERO, heartbeat: Duration::from_secs(3600), ..Settings::default() };
    let house = House::with(held.clone(), abandoned).await;
    let ada = house.tenant("ada").await;
    let started = house.start(&ada, "/desk__run {}").await;
    held.began.notified().await;
    let second = house.second();
    second.look_for_work().await.unwrap();
    held.began.notified().await;
    // The first process comes back.
    held.go.notify_one();
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    house.runtime.work(stop).await;
    assert_eq!(held.fake.calls().len(), 1, "the call ended");
    assert_eq!(house.entry(&ada, "notes", "n").await, None);
    assert_eq!(house.owed(&ada).await, Amount::ZERO);
    // The second one ends it.
    held.go.notify_one();
    let turn = second.wait(&ada, started.run, Duration::from_secs(60)).await.unwrap();
    assert_eq!(turn.run.stop_reason, Some(StopReason::Done));
    assert_eq!(house.entry(&ada, "notes", "n").await.as_deref(), Some("1"));
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);
}

#[tokio::test]
async fn a_run_that_is_cancelled_does_not_run_calls_again() {
    let counter = Counter::new();
    let held = HeldCounter { counter: counter.clone(), began: Arc::default() };
    let house = House::new(held.clone()).await;
    let ada = house.tenant("ada").await;
    counter.disturb(&ada, 1);
    let started = house.runtime.start(&ada, say("/desk__run {}")).await.unwrap();
    held.began.notified().await;
    let run = house.runtime.cancel(&ada, started.run).await.unwrap();
    assert_eq!(run.status, RunStatus::Cancelled);
    let turn = house.runtime.turn(&ada, started.run).await.unwrap();
    assert_eq!(turn.tool_calls[0].outcome.code.as_deref(), Some("call.cancelled"));
    assert_eq!(house.entry(&ada, "notes", "n").await.as_deref(), Some("100"));
    let events = house.events(&ada, started.run, "0").await;
    let ends = events.iter().filter(|event| event.kind == "tool_call.completed").count();
    assert_eq!((ends, events.last().unwrap().kind.as_str()), (1, "run.cancelled"));
}

/// A counter whose second try never ends.
#[derive(Clone)]
struct HeldCounter {
    counter: Counter,
    began: Arc<Notify>,
}

#[async_trait]
impl ToolExecutor for HeldCounter {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        if call.context.attempt > 1 {
            self.began.notify_one();
            std::future::pending::<()>().await;
        }
        self.counter.call(call, host).await
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.counter.replay(call, recording).await
    }
}
