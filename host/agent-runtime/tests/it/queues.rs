//! Invariant 4 for runs: a queue for every tenant, a line for every conversation.

use std::{sync::Arc, time::Duration};

use agent_runtime::{AgentRuntime, Class, RunStatus, Settings, StartError, StartRun, Started, StopReason};
use async_trait::async_trait;
use domain::{Clock, ConversationId, Ids, Kind, Problem, SystemClock, SystemIds, message::text_of, page::PageRequest};
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::{
    Tenant,
    tenants::{self, TenantChange},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tool_api::{CallError, CallHost, Finished, Recording, Replayed, ToolCall, ToolExecutor};

use crate::house::{House, say};

/// Each call waits until one is let through.
#[derive(Clone)]
struct Gate {
    behind: FakeExecutor,
    open: Arc<Semaphore>,
    arrived: Arc<Semaphore>,
}

impl Gate {
    fn closed() -> Gate {
        let (open, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        Gate { behind: FakeExecutor::echo(), open, arrived }
    }

    fn open(&self, calls: usize) {
        self.open.add_permits(calls);
    }

    /// Waits until so many more calls stand before it.
    async fn arrived(&self, calls: u32) {
        self.arrived.acquire_many(calls).await.unwrap().forget();
    }
}

#[async_trait]
impl ToolExecutor for Gate {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        self.arrived.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        self.behind.call(call, host).await
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.behind.replay(call, recording).await
    }
}

/// A process that looks for work by itself, until it is dropped.
struct Working(CancellationToken);

fn working(runtime: &AgentRuntime) -> Working {
    let (runtime, stop) = (runtime.clone(), CancellationToken::new());
    let until = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "ends when it is dropped")]
    tokio::spawn(async move { runtime.work(until).await });
    Working(stop)
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn change(tenant: &Tenant, change: Value) {
    let (overrides, suspended) = (change.get("overrides").cloned(), change["suspended"].as_bool());
    let overrides = overrides.map(|overrides| serde_json::from_value(overrides).unwrap());
    let mut tx = tenant.begin().await.unwrap();
    tenants::update(&mut tx, TenantChange { overrides, suspended, ..Default::default() }).await.unwrap();
    tx.commit().await.unwrap();
}

async fn ends(house: &House, tenant: &Tenant, run: Started) -> RunStatus {
    house.runtime.wait(tenant, run.run, Duration::from_secs(30)).await.unwrap().run.status
}

async fn status(house: &House, tenant: &Tenant, run: Started) -> RunStatus {
    house.runtime.turn(tenant, run.run).await.unwrap().run.status
}

/// Who said what, in order.
async fn messages(tenant: &Tenant, conversation: ConversationId) -> Vec<(&'static str, String)> {
    let mut tx = tenant.begin().await.unwrap();
    let page = PageRequest { limit: 100, after: None };
    let messages = conversation_store::messages::list(&mut tx, conversation, page).await.unwrap().data;
    messages.iter().map(|message| (message.role.as_str(), text_of(&message.parts))).collect()
}

const WAITS: &str = "/desk__run {}";

#[tokio::test]
async fn a_full_queue_refuses_and_a_neighbour_is_not_refused() {
    let gate = Gate::closed();
    let house = House::new(gate.clone()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    change(&ada, json!({"overrides": {"concurrent_runs": 1}})).await;
    // One runs; thirty-two may wait.
    let first = house.start(&ada, WAITS).await;
    gate.arrived(1).await;
    for _ in 0..32 {
        house.start(&ada, "hello").await;
    }
    let refused = house.runtime.start(&ada, say("one more")).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("run.queue_full", Kind::TooMany));
    let again = refused.retry_after_seconds();
    assert!(again.is_some_and(|seconds| (1..=4).contains(&seconds)), "{again:?}");
    assert_eq!(house.chat(&bob, "hello").await.run.status, RunStatus::Completed);

    let _working = working(&house.runtime);
    gate.open(1);
    assert_eq!(ends(&house, &ada, first).await, RunStatus::Completed);
    let last = loop {
        match house.runtime.start(&ada, say("now there is room")).await {
            Ok(started) => break started,
            Err(error) => assert_eq!(error.code(), "run.queue_full"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(ends(&house, &ada, last).await, RunStatus::Completed, "behind all the others");
}

#[tokio::test]
async fn a_full_server_refuses_everybody() {
    let house =
        House::with(FakeExecutor::echo(), Settings { concurrent_runs: 0, queued_runs: 2, ..Settings::default() }).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    house.start(&ada, "one").await;
    house.start(&ada, "two").await;
    let refused = house.runtime.start(&bob, say("three")).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("runs.queue_full", Kind::Unavailable));
}

#[tokio::test]
async fn a_tenant_runs_what_its_plan_says_and_the_rest_waits_its_turn() {
    let gate = Gate::closed();
    let house = House::new(gate.clone()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    change(&ada, json!({"overrides": {"concurrent_runs": 2}})).await;
    let mut started = Vec::new();
    for _ in 0..5 {
        started.push(house.start(&ada, WAITS).await);
    }
    gate.arrived(2).await;
    house.runtime.look_for_work().await.unwrap();
    let mut statuses = Vec::new();
    for run in &started {
        statuses.push(status(&house, &ada, *run).await);
    }
    let (running, queued) = (RunStatus::Running, RunStatus::Queued);
    assert_eq!(statuses, [running, running, queued, queued, queued]);
    let queues = house.runtime.queues().await.unwrap();
    let [queue] = queues.as_slice() else { panic!("{queues:?}") };
    assert_eq!(
        (queue.tenant, queue.waiting, queue.running, queue.concurrent_runs, queue.class),
        (ada.id(), 3, 2, 2, Class::OverPlan)
    );

    // Neither of them may begin in another process.
    house.second().look_for_work().await.unwrap();
    assert_eq!(status(&house, &ada, started[2]).await, queued);
    assert_eq!(house.chat(&bob, "hello").await.run.status, RunStatus::Completed, "a neighbour does not wait");

    let _working = working(&house.runtime);
    gate.open(5);
    for run in started {
        assert_eq!(ends(&house, &ada, run).await, RunStatus::Completed);
    }
    assert_eq!(house.runtime.queues().await.unwrap(), []);
}

#[tokio::test]
async fn one_tenant_does_not_hold_all_places() {
    let gate = Gate::closed();
    let house = House::with(gate.clone(), Settings { concurrent_runs: 4, ..Settings::default() }).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    for _ in 0..10 {
        house.start(&ada, WAITS).await;
    }
    gate.arrived(3).await;
    house.runtime.look_for_work().await.unwrap();
    assert_eq!(house.runtime.queues().await.unwrap()[0].running, 3, "of four places");
    assert_eq!(house.chat(&bob, "at once").await.run.status, RunStatus::Completed);
}

#[tokio::test]
async fn the_runs_of_a_suspended_tenant_wait() {
    let house = House::with(FakeExecutor::echo(), Settings { concurrent_runs: 0, ..Settings::default() }).await;
    let ada = house.tenant("ada").await;
    let started = house.start(&ada, "hello").await;
    change(&ada, json!({"suspended": true})).await;
    let second = house.second();
    second.look_for_work().await.unwrap();
    assert_eq!(status(&house, &ada, started).await, RunStatus::Queued);
    assert!(second.queues().await.unwrap()[0].suspended);
    change(&ada, json!({"suspended": false})).await;
    second.look_for_work().await.unwrap();
    assert_eq!(ends(&house, &ada, started).await, RunStatus::Completed);
}

#[tokio::test]
async fn turns_in_line_are_said_one_after_the_other() {
    let gate = Gate::closed();
    let house = House::new(gate.clone()).await;
    let ada = house.tenant("ada").await;
    let first = house.start(&ada, WAITS).await;
    gate.arrived(1).await;
    let next = |text: &str| StartRun { conversation: Some(first.conversation), ..say(text) };
    let in_line = |text: &str| StartRun { queue: true, ..next(text) };
    let mut line = vec![first];
    for text in ["two", "three", "four"] {
        line.push(house.runtime.start(&ada, in_line(text)).await.unwrap());
    }
    assert!(matches!(house.runtime.start(&ada, next("not in line")).await, Err(StartError::Busy)));

    // Who leaves the line has said nothing.
    let left = house.runtime.cancel(&ada, line[2].run).await.unwrap();
    assert_eq!((left.status, left.stop_reason), (RunStatus::Cancelled, Some(StopReason::Cancelled)));
    assert_eq!(house.events(&ada, left.id, "0").await.last().unwrap().kind, "run.cancelled");

    // Another process does not begin the second before the first has ended.
    let second = house.second();
    second.look_for_work().await.unwrap();
    assert_eq!(status(&house, &ada, line[1]).await, RunStatus::Queued);
    let _working = working(&house.runtime);
    gate.open(1);
    for run in [line[0], line[1], line[3]] {
        assert_eq!(ends(&house, &ada, run).await, RunStatus::Completed);
    }
    let messages = messages(&ada, first.conversation).await;
    let said: Vec<&str> = messages.iter().filter(|(role, _)| *role == "user").map(|(_, text)| text.as_str()).collect();
    assert_eq!(said, [WAITS, "two", "four"]);
    let roles: Vec<&str> = messages.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant", "user", "assistant", "user", "assistant"]);
}

#[tokio::test]
async fn a_line_is_bounded_and_goes_with_its_conversation() {
    let gate = Gate::closed();
    let house = House::new(gate.clone()).await;
    let ada = house.tenant("ada").await;
    let first = house.start(&ada, WAITS).await;
    gate.arrived(1).await;
    let in_line = || StartRun { conversation: Some(first.conversation), queue: true, ..say("next") };
    for _ in 1..16 {
        house.runtime.start(&ada, in_line()).await.unwrap();
    }
    let refused = house.runtime.start(&ada, in_line()).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("conversation.queue_full", Kind::TooMany));
    house.runtime.delete_conversation(&ada, first.conversation).await.unwrap();
    assert_eq!(house.runtime.queues().await.unwrap(), []);
}

/// What was accepted is not lost: the process that took the run out of the line dies before it has said anything.
#[tokio::test]
async fn a_turn_in_line_survives_the_process_that_took_it() {
    let gate = Gate::closed();
    let house = House::new(gate.clone()).await;
    let ada = house.tenant("ada").await;
    let first = house.start(&ada, WAITS).await;
    gate.arrived(1).await;
    let in_line = StartRun { conversation: Some(first.conversation), queue: true, ..say("two") };
    let next = house.runtime.start(&ada, in_line).await.unwrap();
    gate.open(1);
    assert_eq!(ends(&house, &ada, first).await, RunStatus::Completed);

    let (dead, now) = (SystemIds.uuid(), SystemClock.now());
    let taken = house.db.db.take_run_of(ada.id(), dead, now, now).await.unwrap().unwrap();
    assert_eq!(taken.run, next.run);
    house.second().look_for_work().await.unwrap();
    assert_eq!(ends(&house, &ada, next).await, RunStatus::Completed);
    let said: Vec<String> = messages(&ada, first.conversation).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(said.iter().filter(|text| *text == "two").count(), 1, "{said:?}");
}
