//! A process that was stopped for longer than its lease, and wakes when others have spent what was held for its runs.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_config::agents::AgentRef;
use agent_runtime::{AgentRuntime, RunStatus, Settings, StartRun, Turn};
use async_trait::async_trait;
use domain::{Amount, BudgetId, RunId};
use futures::StreamExt;
use kit::FakeExecutor;
use serde_json::json;
use tenancy::Tenant;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tool_api::{CallError, CallHost, Finished, HostError, Intent, Recording, Replayed, ToolCall, ToolExecutor};

use crate::{
    budgets::{budget, price_the_puppet, shown},
    durable::dying,
    house::{House, say},
    puppet::{Act, Puppet},
};

/// Pays for a few turns.
const BUDGET: &str = "0.0001";

/// Stops in the middle of a call; when it wakes, it may send something, and answers.
#[derive(Clone, Default)]
struct Stops {
    sends: bool,
    stopped: Arc<Notify>,
    wakes: Arc<Notify>,
    sent: Arc<Mutex<Vec<Result<(), HostError>>>>,
}

#[async_trait]
impl ToolExecutor for Stops {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        self.stopped.notify_one();
        self.wakes.notified().await;
        if self.sends {
            let (method, target) = ("POST".into(), "https://bank.example/pay".into());
            let sent = host.sending(Intent { method, target, idempotency_header: false }).await;
            self.sent.lock().unwrap().push(sent);
        }
        FakeExecutor::echo().call(call, host).await
    }

    async fn replay(&self, _: ToolCall, _: Arc<Recording>) -> Result<Replayed, CallError> {
        std::future::pending().await
    }
}

/// Another process, whose tools answer.
fn another(house: &House) -> AgentRuntime {
    house.process(Arc::new(FakeExecutor::echo()), Settings::default())
}

/// Spends what can be spent, in another process.
async fn spend_the_rest(house: &House, ada: &Tenant) {
    let other = another(house);
    let mut turns = 0;
    while let Ok(started) = other.start(ada, say("/desk__run {\"n\": 1}")).await {
        let turn = other.wait(ada, started.run, Duration::from_secs(30)).await.unwrap();
        if turn.run.status != RunStatus::Completed {
            break;
        }
        turns += 1;
    }
    assert!(turns > 0, "what the first held was left to it");
}

/// The first drives on for as long as it can. What it leaves, another process goes on with.
async fn ended(house: &House, ada: &Tenant, run: RunId) -> Turn {
    let leaves = CancellationToken::new();
    leaves.cancel();
    house.runtime.work(leaves).await;
    let other = another(house);
    other.look_for_work().await.unwrap();
    other.wait(ada, run, Duration::from_secs(30)).await.unwrap()
}

/// Nothing of the late run's was billed, and it has ended.
async fn nothing_is_overspent(house: &House, ada: &Tenant, id: BudgetId, turn: Turn) {
    let shown = shown(ada, id).await;
    assert!(shown.spent.amount <= shown.amount.amount, "{:?} of {BUDGET}", shown.spent);
    assert_eq!((shown.spent.amount, shown.held.amount), (house.owed(ada).await, Amount::ZERO));
    assert_eq!((turn.run.status, turn.run.cost.amount), (RunStatus::Failed, Amount::ZERO));
    assert_eq!(turn.run.error.map(|error| error.code).as_deref(), Some("budget.exceeded"));
}

#[tokio::test]
async fn a_step_is_void_when_others_have_taken_what_was_held_for_it() {
    for sends in [false, true] {
        let stops = Stops { sends, ..Stops::default() };
        let house = House::with(stops.clone(), dying()).await;
        let ada = house.tenant("ada").await;
        let id = budget(&ada, "tenant", BUDGET).await;
        let run = house.start(&ada, "/desk__run {\"n\": 1}").await.run;
        stops.stopped.notified().await;
        spend_the_rest(&house, &ada).await;
        stops.wakes.notify_one();
        let turn = ended(&house, &ada, run).await;
        assert!(stops.sent.lock().unwrap().iter().all(Result::is_err), "it may not connect");
        nothing_is_overspent(&house, &ada, id, turn).await;
    }
}

#[tokio::test]
async fn a_reply_that_nothing_is_held_for_does_not_wait_for_an_approval() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), dying(), &puppet).await;
    let ada = house.tenant("ada").await;
    price_the_puppet(&house).await;
    house
        .agent(
            &ada,
            json!({"name": "led", "system_prompt": "", "model": "puppet/x",
            "tools": [{"tool": "desk", "version": "latest", "approval": "always"}]}),
        )
        .await;
    let id = budget(&ada, "tenant", BUDGET).await;
    let wakes = Arc::new(Notify::new());
    puppet.then([Act::Say("well, "), Act::Hang(wakes.clone()), Act::Call("desk__run", json!({}))]);
    let led = StartRun { agent: AgentRef::Name("led".parse().unwrap()), ..say("hello") };
    let run = house.runtime.start(&ada, led).await.unwrap().run;
    let mut events = std::pin::pin!(house.runtime.follow(&ada, run, Default::default()).await.unwrap());
    while events.next().await.unwrap().unwrap().kind != "message.delta" {}
    spend_the_rest(&house, &ada).await;
    wakes.notify_one();
    let turn = ended(&house, &ada, run).await;
    assert!(turn.run.pending_approvals.is_empty());
    nothing_is_overspent(&house, &ada, id, turn).await;
}
