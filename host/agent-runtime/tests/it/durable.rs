//! Invariant 3: a run outlives the processes that drive it. Nothing is lost, nothing charged twice, and no effect is
//! repeated but under the same key.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_runtime::{AgentRuntime, RunStatus, Settings, StartRun, StopReason, Turn};
use async_trait::async_trait;
use domain::{Amount, RunId, message::text_of, page::PageRequest};
use futures::StreamExt;
use kit::FakeExecutor;
use serde_json::json;
use tenancy::Tenant;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tool_api::{CallError, CallHost, Finished, HostError, Intent, Recording, Replayed, Status, ToolCall, ToolExecutor};

use crate::house::{House, say};

/// Leases that are over at once, and are never renewed: as of processes that have died.
pub(crate) fn dying() -> Settings {
    let hour = Duration::from_secs(3600);
    Settings { lease: Duration::ZERO, heartbeat: hour, poll: hour, ..Settings::default() }
}

/// Sends, and then hangs until it is let go on; then it answers.
#[derive(Clone, Default)]
struct Hangs {
    /// Whether each request carries the call's key.
    requests: Vec<bool>,
    began: Arc<Notify>,
    go_on: Arc<Notify>,
    sent: Arc<Mutex<Vec<Result<(), HostError>>>>,
    calls: Arc<Mutex<Vec<ToolCall>>>,
}

impl Hangs {
    fn sending(requests: &[bool]) -> Hangs {
        Hangs { requests: requests.to_vec(), ..Hangs::default() }
    }

    fn calls(&self) -> Vec<ToolCall> {
        self.calls.lock().unwrap().clone()
    }
}

fn intent(keyed: bool) -> Intent {
    Intent { method: "POST".into(), target: "https://bank.example/pay".into(), idempotency_header: keyed }
}

#[async_trait]
impl ToolExecutor for Hangs {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        self.calls.lock().unwrap().push(call.clone());
        for keyed in &self.requests {
            let sent = host.sending(intent(*keyed)).await;
            self.sent.lock().unwrap().push(sent);
        }
        self.began.notify_one();
        self.go_on.notified().await;
        FakeExecutor::echo().call(call, host).await
    }

    async fn replay(&self, _: ToolCall, _: Arc<Recording>) -> Result<Replayed, CallError> {
        std::future::pending().await
    }
}

/// A run that another process was driving when it died.
struct Abandoned {
    house: House,
    ada: Tenant,
    run: RunId,
    first: Hangs,
}

async fn abandoned(first: Hangs) -> Abandoned {
    let house = House::with(first.clone(), dying()).await;
    let ada = house.tenant("ada").await;
    let run = house.start(&ada, "/desk__run {\"n\": 1}").await.run;
    first.began.notified().await;
    Abandoned { house, ada, run, first }
}

impl Abandoned {
    /// Another process goes on with it, to the end.
    async fn resumed(&self, executor: impl ToolExecutor + 'static) -> (AgentRuntime, Turn) {
        let second = self.house.process(Arc::new(executor), Settings::default());
        second.look_for_work().await.unwrap();
        let turn = second.wait(&self.ada, self.run, Duration::from_secs(30)).await.unwrap();
        (second, turn)
    }

    /// The first process comes back to life. What it still does is void.
    async fn the_first_is_fenced(&self, owed: Amount) {
        let before = self.house.runtime.turn(&self.ada, self.run).await.unwrap();
        self.first.go_on.notify_one();
        let after = self.house.runtime.wait(&self.ada, self.run, Duration::from_secs(30)).await.unwrap();
        assert_eq!(json!(after), json!(before));
        assert_eq!(self.house.owed(&self.ada).await, owed);
    }

    /// What is told by a process that has not died.
    async fn kinds(&self, by: &AgentRuntime) -> Vec<String> {
        let events = by.follow(&self.ada, self.run, Default::default()).await.unwrap();
        let kinds = events.map(|event| event.unwrap().kind).filter(|kind| std::future::ready(kind != "message.delta"));
        kinds.collect().await
    }
}

/// What the same turn costs when nobody dies.
async fn alone() -> Turn {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    house.chat(&ada, "/desk__run {\"n\": 1}").await
}

#[tokio::test]
async fn what_a_kept_reply_has_used_stays_held_until_its_run_has_ended() {
    // With an intent the reply is kept, and will be billed; without one it is void, and so is what was held for it.
    for (requests, is_owed) in [(&[true][..], true), (&[][..], false)] {
        let first = Hangs::sending(requests);
        let house = House::with(first.clone(), dying()).await;
        let ada = house.tenant("ada").await;
        let budget = crate::budgets::budget(&ada, "tenant", "1").await;
        let run = house.start(&ada, "/desk__run {\"n\": 1}").await.run;
        first.began.notified().await;
        let abandoned = Abandoned { house, ada, run, first };
        let held = crate::budgets::shown(&abandoned.ada, budget).await.held.amount;
        assert_eq!(held > Amount::ZERO, is_owed, "the lease is over: {held:?} is held");
        if is_owed {
            // The next process pays for the calls with the same hold, and dies before they send anything.
            let second = Hangs::default();
            let process = abandoned.house.process(Arc::new(second.clone()), dying());
            process.look_for_work().await.unwrap();
            second.began.notified().await;
            let held = crate::budgets::shown(&abandoned.ada, budget).await.held.amount;
            assert!(held > Amount::ZERO, "the reply is still kept");
        }
        let (_, turn) = abandoned.resumed(FakeExecutor::echo()).await;
        let after = crate::budgets::shown(&abandoned.ada, budget).await;
        assert_eq!((after.held.amount, after.spent.amount), (Amount::ZERO, turn.run.cost.amount));
    }
}

#[tokio::test]
async fn a_run_goes_on_in_another_process_and_is_charged_once() {
    let abandoned = abandoned(Hangs::default()).await;
    let echo = FakeExecutor::echo();
    let (second, turn) = abandoned.resumed(echo.clone()).await;
    assert_eq!((turn.run.status, turn.run.stop_reason), (RunStatus::Completed, Some(StopReason::Done)));
    assert_eq!((turn.run.steps, turn.tool_calls.len(), echo.calls().len()), (2, 1, 1));
    assert_eq!(turn.tool_calls[0].receipt.as_ref().unwrap().receipt.attempt, 1, "nothing had left");
    let same = alone().await;
    assert_eq!((turn.run.usage, turn.run.cost.amount), (same.run.usage, same.run.cost.amount));
    assert_eq!(abandoned.house.owed(&abandoned.ada).await, turn.run.cost.amount);
    let steps = ["tool_call.started", "tool_call.completed", "step.completed", "step.completed", "run.completed"];
    assert_eq!(abandoned.kinds(&second).await, [&["run.started", "run.resumed"][..], &steps].concat());
    abandoned.the_first_is_fenced(turn.run.cost.amount).await;
}

#[tokio::test]
async fn a_call_that_sent_under_its_key_is_made_again_under_the_same() {
    let abandoned = abandoned(Hangs::sending(&[true])).await;
    let echo = FakeExecutor::echo();
    let (_second, turn) = abandoned.resumed(echo.clone()).await;
    assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
    let (first, second) = (&abandoned.first.calls()[0], &echo.calls()[0]);
    assert_eq!(first.context.idempotency_key, second.context.idempotency_key);
    assert_eq!((first.context.attempt, second.context.attempt, first.id), (1, 2, second.id));
    assert_eq!(first.arguments, second.arguments);
    assert_eq!(turn.run.cost.amount, alone().await.run.cost.amount, "the model was asked once");
    abandoned.the_first_is_fenced(turn.run.cost.amount).await;
}

#[tokio::test]
async fn a_call_that_sent_without_its_key_is_not_made_again() {
    for requests in [&[false][..], &[true, false]] {
        let abandoned = abandoned(Hangs::sending(requests)).await;
        let echo = FakeExecutor::echo();
        let (_second, turn) = abandoned.resumed(echo.clone()).await;
        assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
        assert!(echo.calls().is_empty(), "{requests:?}");
        let [call] = turn.tool_calls.as_slice() else { panic!("{:?}", turn.tool_calls) };
        assert_eq!((call.outcome.status, call.id), (Status::OutcomeUnknown, abandoned.first.calls()[0].id));
        let evidence = call.outcome.structured.as_ref().unwrap();
        assert_eq!((&evidence["method"], &evidence["target"]), (&json!("POST"), &json!("https://bank.example/pay")));
        assert_eq!(evidence["idempotency_key"], json!(call.id));
        assert!(call.receipt.is_none(), "what it consumed is not known");
        let said = turn.message.as_ref().unwrap();
        assert!(said.content.contains("outcome_unknown"), "the model was told: {}", said.content);
        assert_eq!(abandoned.house.owed(&abandoned.ada).await, turn.run.cost.amount);
        abandoned.the_first_is_fenced(turn.run.cost.amount).await;
    }
}

#[tokio::test]
async fn nothing_leaves_a_process_that_has_lost_its_run() {
    let late = Hangs::default();
    let abandoned = abandoned(late.clone()).await;
    let (_second, turn) = abandoned.resumed(FakeExecutor::echo()).await;
    assert_eq!(turn.run.status, RunStatus::Completed);

    // A call of a process that is fenced asks to send.
    let sends = Hangs::sending(&[true]);
    let house = House::with(sends.clone(), dying()).await;
    let ada = house.tenant("ada").await;
    let gate = Arc::new(Notify::new());
    let waits = Waits { gate: gate.clone(), sends: sends.clone() };
    let runtime = house.process(Arc::new(waits), dying());
    let run = runtime.start(&ada, say("/desk__run {}")).await.unwrap().run;
    let second = house.process(Arc::new(FakeExecutor::echo()), Settings::default());
    while second.turn(&ada, run).await.unwrap().run.status != RunStatus::Completed {
        second.look_for_work().await.unwrap();
        second.wait(&ada, run, Duration::from_secs(1)).await.unwrap();
    }
    gate.notify_one();
    sends.began.notified().await;
    assert!(sends.sent.lock().unwrap()[0].is_err(), "it may not connect");
}

/// Waits before it does what the other does.
struct Waits {
    gate: Arc<Notify>,
    sends: Hangs,
}

#[async_trait]
impl ToolExecutor for Waits {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        self.gate.notified().await;
        self.sends.call(call, host).await
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.sends.replay(call, recording).await
    }
}

#[tokio::test]
async fn a_run_that_ends_every_process_is_given_up() {
    let abandoned = abandoned(Hangs::sending(&[true])).await;
    let mut processes = Vec::new();
    for _ in 2..=5 {
        let hangs = Hangs::sending(&[true]);
        let process = abandoned.house.process(Arc::new(hangs.clone()), dying());
        process.look_for_work().await.unwrap();
        hangs.began.notified().await;
        processes.push(process);
    }
    let echo = FakeExecutor::echo();
    let (last, turn) = abandoned.resumed(echo.clone()).await;
    assert_eq!((turn.run.status, turn.run.stop_reason), (RunStatus::Failed, Some(StopReason::Interrupted)));
    assert_eq!(turn.run.error.as_ref().unwrap().code, "run.interrupted");
    assert!(echo.calls().is_empty());
    assert_eq!(turn.tool_calls[0].outcome.status, Status::OutcomeUnknown);
    assert_eq!(abandoned.house.owed(&abandoned.ada).await, turn.run.cost.amount, "the model's reply is billed, once");
    assert!(turn.run.cost.amount > Amount::ZERO);
    let resumed = abandoned.kinds(&last).await.into_iter().filter(|kind| kind == "run.resumed").count();
    assert_eq!(resumed, 5);
}

#[tokio::test]
async fn a_process_takes_no_more_abandoned_runs_than_it_can_drive() {
    let first = Hangs::default();
    let house = House::with(first.clone(), dying()).await;
    let ada = house.tenant("ada").await;
    let mut runs = Vec::new();
    for _ in 0..4 {
        runs.push(house.start(&ada, "/desk__run {}").await.run);
        first.began.notified().await;
    }
    let attempts = async || -> i64 {
        let mut tx = ada.begin().await.unwrap();
        sqlx::query_scalar("SELECT sum(attempts) FROM run").fetch_one(tx.conn()).await.unwrap()
    };
    let before = attempts().await;
    let second = Hangs::default();
    let small = house.process(Arc::new(second.clone()), Settings { concurrent_runs: 1, ..Settings::default() });
    small.look_for_work().await.unwrap();
    small.look_for_work().await.unwrap();
    assert_eq!(attempts().await - before, 2, "its own place once more; the others lose no attempt");
    while second.calls().len() < 2 {
        second.began.notified().await;
    }
    let third = house.process(Arc::new(FakeExecutor::echo()), Settings::default());
    third.look_for_work().await.unwrap();
    second.go_on.notify_one();
    second.go_on.notify_one();
    for run in runs {
        assert_eq!(third.wait(&ada, run, Duration::from_secs(30)).await.unwrap().run.status, RunStatus::Completed);
    }
    assert_eq!(attempts().await - before, 4);
}

/// As an older release would leave it, or a newer one.
async fn an_unreadable_reply(tenant: &Tenant, run: RunId) {
    let mut tx = tenant.begin().await.unwrap();
    let broken = "UPDATE run SET pending = '{}' WHERE run_id = $1";
    sqlx::query(broken).bind(run.uuid()).execute(tx.conn()).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn what_was_said_in_line_stays_said_when_its_run_cannot_be_driven() {
    let first = Hangs::default();
    let house = House::new(first.clone()).await;
    let ada = house.tenant("ada").await;
    let started = house.start(&ada, "/desk__run {}").await;
    first.began.notified().await;
    let in_line = StartRun { conversation: Some(started.conversation), queue: true, ..say("and one more") };
    let in_line = house.runtime.start(&ada, in_line).await.unwrap().run;
    an_unreadable_reply(&ada, in_line).await;
    first.go_on.notify_one();
    house.runtime.wait(&ada, started.run, Duration::from_secs(30)).await.unwrap();
    house.runtime.look_for_work().await.unwrap();
    let turn = house.runtime.wait(&ada, in_line, Duration::from_secs(30)).await.unwrap();
    let code = turn.run.error.map(|error| error.code);
    assert_eq!((turn.run.status, code.as_deref()), (RunStatus::Failed, Some("run.internal_error")));
    let page = PageRequest { limit: 100, after: None };
    let mut tx = ada.begin().await.unwrap();
    let said = conversation_store::messages::list(&mut tx, started.conversation, page).await.unwrap().data;
    assert_eq!(text_of(&said.last().unwrap().parts), "and one more");
}

#[tokio::test]
async fn nothing_is_held_for_a_reply_that_is_lost() {
    let first = Hangs::sending(&[true]);
    let house = House::with(first.clone(), dying()).await;
    let ada = house.tenant("ada").await;
    let budget = crate::budgets::budget(&ada, "tenant", "1").await;
    let run = house.start(&ada, "/desk__run {\"n\": 1}").await.run;
    first.began.notified().await;
    an_unreadable_reply(&ada, run).await;
    let abandoned = Abandoned { house, ada, run, first };
    let (_, turn) = abandoned.resumed(FakeExecutor::echo()).await;
    assert_eq!((turn.run.status, turn.run.cost.amount), (RunStatus::Failed, Amount::ZERO));
    let shown = crate::budgets::shown(&abandoned.ada, budget).await;
    assert_eq!((shown.held.amount, shown.spent.amount), (Amount::ZERO, Amount::ZERO));
}

#[tokio::test]
async fn a_late_process_that_is_alone_takes_its_own_run_again() {
    let first = Hangs::default();
    let abandoned = abandoned(first.clone()).await;
    abandoned.house.runtime.look_for_work().await.unwrap();
    first.go_on.notify_one();
    let turn = abandoned.house.runtime.wait(&abandoned.ada, abandoned.run, Duration::from_secs(30)).await.unwrap();
    assert_eq!((turn.run.status, first.calls().len()), (RunStatus::Completed, 1));
    assert_eq!(abandoned.house.owed(&abandoned.ada).await, turn.run.cost.amount);
}

#[tokio::test]
async fn a_cancellation_is_heard_in_the_process_that_drives() {
    let hour = Duration::from_secs(3600);
    let first = Hangs::sending(&[false]);
    let slow = Settings { heartbeat: hour, lease: hour, ..Settings::default() };
    let house = House::with(first.clone(), slow).await;
    let ada = house.tenant("ada").await;
    let shutdown = CancellationToken::new();
    let mut working = tokio::task::JoinSet::new();
    working.spawn({
        let (runtime, shutdown) = (house.runtime.clone(), shutdown.clone());
        async move { runtime.work(shutdown).await }
    });
    let run = house.start(&ada, "/desk__run {}").await.run;
    first.began.notified().await;
    let second = house.process(Arc::new(FakeExecutor::echo()), Settings::default());
    // The first may have begun to listen only after the first hint.
    let mut cancelled = second.cancel(&ada, run).await.unwrap();
    while cancelled.status != RunStatus::Cancelled {
        cancelled = second.cancel(&ada, run).await.unwrap();
    }
    let turn = second.turn(&ada, run).await.unwrap();
    assert_eq!(turn.tool_calls[0].outcome.status, Status::OutcomeUnknown, "a request may have left");
    shutdown.cancel();
    working.join_all().await;
}

#[tokio::test]
async fn a_process_that_exits_gives_its_runs_back() {
    let first = Hangs::sending(&[true]);
    let house = House::new(first.clone()).await;
    let ada = house.tenant("ada").await;
    let run = house.start(&ada, "/desk__run {\"n\": 1}").await.run;
    first.began.notified().await;
    let second = house.process(Arc::new(FakeExecutor::echo()), Settings::default());
    second.look_for_work().await.unwrap();
    assert_eq!(second.turn(&ada, run).await.unwrap().run.steps, 0, "it is the first's");
    house.runtime.let_go().await;
    second.look_for_work().await.unwrap();
    let turn = second.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    assert_eq!((turn.run.status, turn.tool_calls.len()), (RunStatus::Completed, 1));
    first.go_on.notify_one();
    house.runtime.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);
}
