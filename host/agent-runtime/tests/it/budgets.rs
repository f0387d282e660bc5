//! What a run may spend is held before it is spent, and no more than that is spent.

use std::{sync::Arc, time::Duration};

use agent_config::AgentRef;
use agent_runtime::{RunStatus, StartRun, StopReason, Turn};
use billing_meter::{Budget, BudgetSpec, budgets, prices};
use domain::{Amount, BudgetId, Clock, Kind, Problem, SystemClock, SystemIds, page::PageRequest};
use kit::FakeExecutor;
use model_providers::tokens;
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
pub(crate) async fn price_the_puppet(house: &House) {
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

/// Says it to the agent `led`.
pub(crate) fn led(text: &str) -> StartRun {
    StartRun { agent: AgentRef::Name("led".parse().unwrap()), ..say(text) }
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
    let id = budget(&ada, "tenant", "1").await;
    let turn = house.talk(&ada, led("hello")).await;
    assert_eq!(told(&turn), (RunStatus::Failed, Some(StopReason::Error), Some("budget.unpriced_model")));
    assert!(puppet.asked().is_empty());
    price_the_puppet(&house).await;
    puppet.then([Act::Say("well")]);
    let turn = house.talk(&ada, led("hello")).await;
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
    let turn = StartRun { agent: careful, ..say("/desk__run {}") };
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

/// Whatever a provider makes of its limit: the quota is not passed.
#[tokio::test]
async fn under_a_quota_a_model_is_asked_for_what_is_held_and_billed_no_more() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    house.agent(&ada, json!({"name": "led", "system_prompt": "", "model": "puppet/x"})).await;
    let (mut used, most) = (0, 4096);
    for (more, enough) in [(1_000_000, true), (100, false)] {
        let left = used + more;
        allow(&ada, json!({"tokens_per_month": left})).await;
        puppet.then([Act::Say("well"), Act::Report(10, 2_000_000)]);
        let turn = house.talk(&ada, led("hello")).await;
        assert_eq!(told(&turn), (RunStatus::Completed, Some(StopReason::Done), None), "without a price, as before");
        let asked = puppet.asked().pop().unwrap()["max_tokens"].as_u64().unwrap();
        assert!(if enough { asked == most } else { (16..100).contains(&asked) }, "{asked}");
        let usage = turn.run.usage;
        assert!(usage.output_tokens.abs_diff(asked) < 16, "{usage:?}");
        used += usage.input_tokens + usage.output_tokens;
        assert!(used <= left, "{used} of {left}");
    }
    let refused = house.runtime.start(&ada, led("hello")).await.unwrap_err();
    assert_eq!(refused.code(), "quota.tokens");
}

#[tokio::test]
async fn each_model_is_asked_for_what_it_may_say_and_for_no_more_than_is_held() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    price_the_puppet(&house).await;
    budget(&ada, "tenant", "1").await;
    let model = |name: &str, more: Value| {
        let mut model = json!({"provider": "puppet", "name": name});
        domain::json::merge(&mut model, more);
        model
    };
    let models = [
        model("a", json!({"max_output_tokens": 9000})),
        model("b", json!({})),
        model("c", json!({"max_output_tokens": 50, "options": {"max_tokens": 1_000_000_000}})),
        model("d", json!({"options": {"max_tokens": 70, "max_completion_tokens": 1_000_000}})),
        model("e", json!({"options": {"thinking": {"budget_tokens": 1000}}})),
    ];
    let spec = json!({"name": "led", "system_prompt": "", "model": models[0], "fallback_models": models[1..]});
    house.agent(&ada, spec).await;
    for _ in 0..4 {
        puppet.then([Act::Refuse(401)]);
    }
    puppet.then([Act::Say("well")]);
    assert_eq!(told(&house.talk(&ada, led("hello")).await), (RunStatus::Completed, Some(StopReason::Done), None));
    let asked: Vec<_> = puppet.asked().iter().map(|body| body["max_tokens"].as_u64().unwrap()).collect();
    assert_eq!(asked, [9000, 4096, 50, 70, 5096]);
    assert!(puppet.asked().iter().all(|body| body.get("max_completion_tokens").is_none()));
}

/// Thoughts and half a call are paid for like text, whoever cuts them; nothing that came is asked for again.
#[tokio::test]
async fn an_answer_that_is_cut_before_its_first_word_is_billed() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    price_the_puppet(&house).await;
    let agent = async |name: &str, limits: Value| {
        let models = ["puppet/x", "puppet/y"];
        let spec = json!({"name": name, "system_prompt": "", "model": models[0], "fallback_models": models[1..], "limits": limits});
        house.agent(&ada, spec).await;
        StartRun { agent: AgentRef::Name(name.parse().unwrap()), ..say("hello") }
    };
    let (patient, hasty) = (agent("patient", json!({})).await, agent("hasty", json!({"deadline_seconds": 1})).await);
    let id = budget(&ada, "tenant", "1").await;
    let thought = "Let me think about it.";
    let arguments = "{\"n\": \"one two three";
    let thinks = || Act::Delta(json!({"reasoning_content": thought}));
    let calls = || {
        let function = json!({"name": "desk__run", "arguments": arguments});
        Act::Delta(json!({"tool_calls": [{"index": 0, "id": "a", "function": function}]}))
    };
    let hang = Arc::new(Notify::new());
    let mut times = 0;
    let cut = (RunStatus::Failed, Some(StopReason::Error), Some("provider.cut_short"));
    let late = (RunStatus::Failed, Some(StopReason::Deadline), Some("run.deadline"));
    let all = format!("{thought}desk__run{arguments}");
    for (agent, script, ended, said, unseen) in [
        (&patient, vec![thinks(), Act::Cut], cut, "", thought),
        (&patient, vec![calls(), Act::Cut], cut, "", &all[thought.len()..]),
        (&patient, vec![thinks(), Act::Say("It is one."), calls(), Act::Cut], cut, "It is one.", &all),
        (&hasty, vec![thinks(), Act::Hang(hang.clone())], late, "", thought),
    ] {
        let before = shown(&ada, id).await.spent.amount;
        puppet.then(script.clone());
        times += 1;
        let turn = house.talk(&ada, agent.clone()).await;
        assert_eq!(told(&turn), ended, "{script:?}");
        assert_eq!(turn.message.as_ref().unwrap().content, said, "{script:?}");
        assert_eq!(puppet.asked().len(), times, "{script:?}: no model is asked again");
        assert!(turn.run.usage.input_tokens > 0, "{script:?}");
        assert_eq!(turn.run.usage.output_tokens, tokens::count(said) + tokens::count(unseen), "{script:?}");
        let after = shown(&ada, id).await;
        assert_eq!((turn.run.steps, after.held.amount), (1, Amount::ZERO), "{script:?}");
        assert!(turn.run.cost.amount > Amount::ZERO, "{script:?}");
        assert_eq!(after.spent.amount, before + turn.run.cost.amount, "{script:?}");
    }
    // Nothing had come: it is asked again, and costs nothing.
    let before = shown(&ada, id).await;
    for _ in 0..2 {
        puppet.then([Act::Delta(json!({"role": "assistant", "content": ""})), Act::Cut]);
    }
    let turn = house.talk(&ada, patient).await;
    assert_eq!((told(&turn), turn.run.steps, puppet.asked().len()), (cut, 0, times + 2));
    assert_eq!(shown(&ada, id).await.remaining, before.remaining);
    hang.notify_one();
}

async fn allow(tenant: &Tenant, overrides: Value) {
    let mut tx = tenant.begin().await.unwrap();
    let overrides = serde_json::from_value(overrides).unwrap();
    tenants::update(&mut tx, tenants::TenantChange { overrides: Some(overrides), ..Default::default() }).await.unwrap();
    tx.commit().await.unwrap();
}
