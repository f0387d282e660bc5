//! What a run may spend is held before it is spent, and no more than that is spent.

use std::{sync::Arc, time::Duration};

use agent_runtime::{RunStatus, StopReason, Turn};
use billing_meter::{Budget, BudgetSpec, budgets, prices};
use domain::{Amount, BudgetId, Clock, Kind, Problem, SystemClock, SystemIds, page::PageRequest};
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::{Tenant, tenants};
use tokio::sync::Notify;

use crate::{
    house::{House, direct, say},
    puppet::{Act, Puppet},
};

fn amount(text: &str) -> Amount {
    Amount::rounded(text.parse().unwrap())
}

pub(crate) async fn budget(tenant: &Tenant, scope: &str, amount: &str) -> BudgetId {
    let spec = json!({"scope": scope, "subject": "*", "window": "total", "amount": amount, "alert_at": 0.5});
    let spec: BudgetSpec = serde_json::from_value(spec).unwrap();
    let mut tx = tenant.begin().await.unwrap();
    let id = budgets::create(&mut tx, spec, "USD", &SystemIds, SystemClock.now()).await.unwrap().id;
    tx.commit().await.unwrap();
    id
}

pub(crate) async fn shown(tenant: &Tenant, id: BudgetId) -> Budget {
    budgets::get(&mut tenant.begin().await.unwrap(), id, None, SystemClock.now()).await.unwrap()
}

/// A price for the model that a test leads: a millionth of a dollar a token.
async fn price_the_puppet(house: &House) {
    let mut tx = house.db.db.global().await.unwrap();
    let mut prices = prices::Prices::default_book().unwrap();
    prices.models.push(
        serde_json::from_value(json!({"provider": "puppet", "model": "*", "input_per_million": "1",
            "cached_input_per_million": "1", "output_per_million": "1"}))
        .unwrap(),
    );
    prices::publish(&mut tx, prices, SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
}

fn told(turn: &Turn) -> (RunStatus, Option<StopReason>, Option<&str>) {
    (turn.run.status, turn.run.stop_reason, turn.run.error.as_ref().map(|error| error.code.as_str()))
}

#[tokio::test]
async fn a_turn_that_is_not_paid_for_leaves_nothing() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    for scope in ["tenant", "agent", "conversation", "run"] {
        let id = budget(&ada, scope, "0.000000001").await;
        let refused = house.runtime.start(&ada, say("/desk__run {}")).await.unwrap_err();
        assert_eq!((refused.kind(), refused.code()), (Kind::PaymentRequired, "budget.exceeded"), "{scope}");
        assert!(refused.to_string().contains(&id.to_string()), "it says which: {refused}");
        let mut tx = ada.begin().await.unwrap();
        budgets::delete(&mut tx, id).await.unwrap();
        tx.commit().await.unwrap();
    }
    let id = budget(&ada, "tenant", "0").await;
    let refused = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::PaymentRequired, "budget.exceeded"));
    let mut tx = ada.begin().await.unwrap();
    let filter = agent_runtime::runs::RunFilter::default();
    let runs = agent_runtime::runs::list(&mut tx, &filter, PageRequest::default()).await.unwrap();
    assert!(runs.data.is_empty() && executor.calls().is_empty());
    assert_eq!(shown(&ada, id).await.held.amount, Amount::ZERO);
    // A neighbour's budget is a neighbour's.
    assert_eq!(house.chat(&bob, "/desk__run {}").await.run.status, RunStatus::Completed);
}

#[tokio::test]
async fn a_model_says_no_more_than_is_left() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let free = house.chat(&ada, "hello").await;
    let (input, output) = (free.run.usage.input_tokens, free.run.usage.output_tokens);
    assert!(output > 20, "{:?}", free.run.usage);
    // 0.10 a million tokens of input, 0.40 of output: the same question, and twenty tokens of answer.
    let most = Amount::rounded(rust_decimal::Decimal::new((input + 4 * 20).cast_signed(), 7));
    let id = budget(&ada, "tenant", &most.to_string()).await;
    let short = house.chat(&ada, "hello").await;
    assert_eq!(told(&short), (RunStatus::Completed, Some(StopReason::Done), None));
    assert!((16..=20).contains(&short.run.usage.output_tokens), "{:?}", short.run.usage);
    let shown = shown(&ada, id).await;
    assert_eq!((shown.spent.amount, shown.held.amount), (short.run.cost.amount, Amount::ZERO));
    let refused = house.runtime.start(&ada, say("hello")).await.unwrap_err();
    assert_eq!(refused.code(), "budget.exceeded");
}

#[tokio::test]
async fn a_model_without_a_price_is_not_asked_under_a_budget() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    house.agent(&ada, json!({"name": "led", "system_prompt": "", "model": "puppet/x"})).await;
    let agent = || agent_config::agents::AgentRef::Name("led".parse().unwrap());
    let id = budget(&ada, "tenant", "1").await;
    let turn = house.talk(&ada, agent_runtime::StartRun { agent: agent(), ..say("hello") }).await;
    assert_eq!(told(&turn), (RunStatus::Failed, Some(StopReason::Error), Some("budget.unpriced_model")));
    assert!(puppet.asked().is_empty());
    price_the_puppet(&house).await;
    puppet.then([Act::Say("well")]);
    let turn = house.talk(&ada, agent_runtime::StartRun { agent: agent(), ..say("hello") }).await;
    assert_eq!(told(&turn), (RunStatus::Completed, Some(StopReason::Done), None));
    assert_eq!(shown(&ada, id).await.spent.amount, amount("0.000015"), "as the provider reports");
    // Nothing was said about a limit, and a budget has one.
    let asked = puppet.asked().pop().unwrap();
    assert!(asked.to_string().contains("4096"), "{asked}");
}

#[tokio::test]
async fn a_calls_fuel_is_what_is_left() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let free = house.chat(&ada, "/desk__run {}").await;
    let whole = executor.calls()[0].limits.fuel;
    // What the turn costs, and a bit for fuel, which the two steps of the model leave.
    let id = budget(&ada, "run", "0.00004").await;
    assert!(free.run.cost.amount < amount("0.00004"), "{:?}", free.run.cost);
    let turn = house.chat(&ada, "/desk__run {}").await;
    assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
    let cut = executor.calls()[1].limits.fuel;
    assert!(cut > 0 && cut < whole, "{cut} of {whole}");
    assert_eq!(shown(&ada, id).await.spent.amount, turn.run.cost.amount);
    assert!(turn.run.cost.amount <= amount("0.00004"));
    // A direct call is of no run. It is bounded by the tenant's.
    let id = budget(&ada, "tenant", "0.00001").await;
    let call = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    assert!(executor.calls()[2].limits.fuel < whole);
    let shown = shown(&ada, id).await;
    assert_eq!((shown.spent.amount, shown.held.amount), (price(&call), Amount::ZERO));
}

fn price(call: &agent_runtime::ToolCallRow) -> Amount {
    let call = json!(call);
    amount(call["receipt"]["price"]["amount"].as_str().unwrap())
}

#[tokio::test]
async fn what_is_held_comes_back_however_a_run_ends() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    price_the_puppet(&house).await;
    house.agent(&ada, json!({"name": "led", "system_prompt": "", "model": "puppet/x"})).await;
    let led = |text: &str| agent_runtime::StartRun {
        agent: agent_config::agents::AgentRef::Name("led".parse().unwrap()),
        ..say(text)
    };
    let id = budget(&ada, "tenant", "1").await;
    // Refused by its provider: nothing was spent.
    puppet.then([Act::Refuse(401)]);
    assert_eq!(house.talk(&ada, led("hello")).await.run.status, RunStatus::Failed);
    assert_eq!(shown(&ada, id).await.remaining.amount, amount("1"));
    // Cancelled in the middle: what was said is counted.
    let hang = Arc::new(Notify::new());
    puppet.then([Act::Say("well, "), Act::Hang(hang.clone())]);
    let started = house.runtime.start(&ada, led("hello")).await.unwrap();
    let events = house.runtime.follow(&ada, started.run, Default::default()).await.unwrap();
    let mut events = std::pin::pin!(events);
    while futures::StreamExt::next(&mut events).await.unwrap().unwrap().kind != "message.delta" {}
    let held = shown(&ada, id).await.held.amount;
    assert!(held > amount("0.004"), "a whole answer is held: {held}");
    let run = house.runtime.cancel(&ada, started.run).await.unwrap();
    let after = shown(&ada, id).await;
    assert_eq!((after.spent.amount, after.held.amount), (run.cost.amount, Amount::ZERO));
    assert!(run.cost.amount > Amount::ZERO);
    hang.notify_one();
}

#[tokio::test]
async fn a_run_that_waits_for_an_approval_holds_what_it_has_used() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let careful = house.bind(&ada, "careful", json!({"approval": "always"})).await;
    let id = budget(&ada, "tenant", "0.01").await;
    let turn = agent_runtime::StartRun { agent: careful, ..say("/desk__run {}") };
    let started = house.runtime.start(&ada, turn).await.unwrap();
    let waiting = async {
        loop {
            let turn = house.runtime.turn(&ada, started.run).await.unwrap();
            if turn.run.status == RunStatus::WaitingForApproval {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
    let held = shown(&ada, id).await;
    assert!(held.held.amount > Amount::ZERO && held.held.amount < amount("0.0001"), "{held:?}");
    assert_eq!(held.spent.amount, Amount::ZERO);
    let run = house.runtime.cancel(&ada, started.run).await.unwrap();
    let after = shown(&ada, id).await;
    assert_eq!((after.spent.amount, after.held.amount), (held.held.amount, Amount::ZERO));
    assert_eq!(run.cost.amount, held.held.amount, "the model's answer is paid, whatever came of it");
    assert!(executor.calls().is_empty());
}

/// Many at once: each waits for what the others hold, and the last one that is paid for is as good as the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_finds_the_budget_held_waits_for_it() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let one = house.chat(&ada, "hello").await;
    let ten = Amount::rounded(one.run.cost.amount.decimal() * rust_decimal::Decimal::from(10));
    let id = budget(&ada, "tenant", &ten.to_string()).await;
    let turns = (0..16).map(|_| async { house.runtime.start(&ada, say("hello")).await });
    let mut done = 0;
    for started in futures::future::join_all(turns).await {
        let Ok(started) = started else { continue };
        let turn = house.runtime.wait(&ada, started.run, Duration::from_secs(60)).await.unwrap();
        match told(&turn) {
            (RunStatus::Completed, Some(StopReason::Done), None) => {
                assert_eq!(turn.run.usage, one.run.usage);
                done += 1;
            }
            (RunStatus::Failed, Some(StopReason::Budget), Some("budget.exceeded")) => {
                assert_eq!(turn.run.cost.amount, Amount::ZERO);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(done, 10);
    let shown = shown(&ada, id).await;
    assert_eq!((shown.spent.amount, shown.held.amount, shown.remaining.amount), (ten, Amount::ZERO, Amount::ZERO));
}

#[tokio::test]
async fn the_plans_tokens_are_a_budget() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let one = house.chat(&ada, "hello").await.run.usage;
    let tokens = one.input_tokens + one.output_tokens;
    allow(&ada, json!({"tokens_per_month": 2 * tokens})).await;
    for _ in 0..2 {
        assert_eq!(told(&house.chat(&ada, "hello").await), (RunStatus::Completed, Some(StopReason::Done), None));
    }
    let refused = house.runtime.start(&ada, say("hello")).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::PaymentRequired, "quota.tokens"));
    // Tools are not counted in tokens.
    house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    allow(&ada, json!({"tokens_per_month": 3 * tokens})).await;
    assert_eq!(house.chat(&ada, "hello").await.run.status, RunStatus::Completed);
}

#[tokio::test]
async fn a_quota_of_which_enough_is_left_asks_nothing_of_the_model() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    house.agent(&ada, json!({"name": "led", "system_prompt": "", "model": "puppet/x"})).await;
    let agent = || agent_config::agents::AgentRef::Name("led".parse().unwrap());
    for (tokens, asked) in [(1_000_000, false), (1_000, true)] {
        allow(&ada, json!({"tokens_per_month": tokens})).await;
        puppet.then([Act::Say("well")]);
        let turn = house.talk(&ada, agent_runtime::StartRun { agent: agent(), ..say("hello") }).await;
        assert_eq!(told(&turn), (RunStatus::Completed, Some(StopReason::Done), None), "without a price, as before");
        let request = puppet.asked().pop().unwrap().to_string();
        assert_eq!(request.contains("max_tokens") || request.contains("max_completion_tokens"), asked, "{request}");
    }
}

async fn allow(tenant: &Tenant, overrides: Value) {
    let mut tx = tenant.begin().await.unwrap();
    let overrides = serde_json::from_value(overrides).unwrap();
    tenants::update(&mut tx, tenants::TenantChange { overrides: Some(overrides), ..Default::default() }).await.unwrap();
    tx.commit().await.unwrap();
}
