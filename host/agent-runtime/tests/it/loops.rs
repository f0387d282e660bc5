//! Invariants 3 and 6 for runs: what is committed, what is billed, what is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_runtime::{RunStatus, Settings, StartError, StartRun, StopReason, timeline};
use async_trait::async_trait;
use domain::{Problem, message::Part};
use kit::FakeExecutor;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tool_api::{CallError, CallHost, Finished, Outcome, Recording, Replayed, Status, ToolCall, ToolExecutor};

use crate::house::{House, say};

/// Calls that begin and never end.
#[derive(Clone, Default)]
struct Stuck {
    began: Arc<Notify>,
    running: Arc<AtomicUsize>,
}

#[async_trait]
impl ToolExecutor for Stuck {
    async fn call(&self, _: ToolCall, _: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        struct Running(Arc<AtomicUsize>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(self.running.clone());
        self.began.notify_one();
        std::future::pending().await
    }

    async fn replay(&self, _: ToolCall, _: Arc<Recording>) -> Result<Replayed, CallError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn two_functions_run_side_by_side_and_every_cent_adds_up() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let turn = house.chat(&ada, "/desk__run {\"n\": 1}\n/desk__run {\"n\": 2}").await;

    assert_eq!(
        (turn.run.status, turn.run.stop_reason),
        (RunStatus::Completed, Some(StopReason::Done)),
        "{:?}",
        turn.run
    );
    assert_eq!(turn.run.steps, 2);
    let mut arguments = executor.arguments();
    arguments.sort_by_key(Value::to_string);
    assert_eq!(arguments, [json!({"n": 1}), json!({"n": 2})]);
    let said = turn.message.unwrap().content;
    assert!(said.contains("says: 1") && said.contains("says: 2"), "{said}");
    assert_eq!(
        turn.tool_calls.iter().map(|call| call.arguments.clone()).collect::<Vec<_>>(),
        [json!({"n": 1}), json!({"n": 2})]
    );
    assert_eq!(turn.run.usage.fuel, 2000);
    assert!(
        turn.tool_calls
            .iter()
            .all(|call| call.receipt.as_ref().is_some_and(|receipt| receipt.price.amount > domain::Amount::ZERO))
    );
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);
    let mut tx = ada.begin().await.unwrap();
    let detail = timeline::detail(&mut tx, turn.run.id).await.unwrap();
    let steps: domain::Amount = detail.timeline.iter().map(|step| step.cost.amount).sum();
    assert_eq!(steps, turn.run.cost.amount);
}

#[tokio::test]
async fn events_come_in_order_and_read_the_same_later() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let run = house.start(&ada, "/desk__run {\"n\": 1}").await.run;
    let live = house.events(&ada, run, "0").await;
    let kinds: Vec<&str> =
        live.iter().map(|event| event.kind.as_str()).filter(|kind| *kind != "message.delta").collect();
    assert_eq!(
        kinds,
        [
            "run.started",
            "tool_call.started",
            "tool_call.completed",
            "step.completed",
            "step.completed",
            "run.completed"
        ]
    );
    assert!(live.is_sorted_by_key(|event| (event.seq, event.offset)), "{live:#?}");
    let text = |events: &[agent_runtime::RunEvent]| -> String {
        events
            .iter()
            .filter(|event| event.kind == "message.delta")
            .filter_map(|event| event.data["text"].as_str())
            .collect()
    };
    let turn = house.runtime.turn(&ada, run).await.unwrap();
    assert_eq!(text(&live), turn.message.unwrap().content);
    let last = live.last().unwrap();
    assert_eq!(last.data["run"]["status"], "completed");
    assert_eq!(last.data["message"]["content"], json!(text(&live)));

    // Now from the database, and from every place at which a client may have lost the connection.
    for cut in 0..=live.len() {
        let after = cut.checked_sub(1).map_or("0".to_owned(), |last| live[last].id().to_string());
        let rest = house.events(&ada, run, &after).await;
        assert_eq!(format!("{}{}", text(&live[..cut]), text(&rest)), text(&live), "after {after}");
        let whole = |events: &[agent_runtime::RunEvent]| {
            events
                .iter()
                .filter(|event| event.kind != "message.delta")
                .map(|event| event.data.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!([whole(&live[..cut]), whole(&rest)].concat(), whole(&live), "after {after}");
    }
}

#[tokio::test]
async fn the_model_hears_of_errors_and_goes_on() {
    let executor = FakeExecutor::new(|_| Outcome::failed(Status::Limit, "limit.fuel", "the call used all its fuel"));
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    for (line, code, calls) in [
        ("/desk__run [1]", "tool.bad_arguments", 0),
        ("/desk__run {oops", "tool.bad_arguments", 0),
        ("/desk__fly {}", "tool.unknown_function", 0),
        ("/desk__run {}", "limit.fuel", 1),
    ] {
        let turn = house.chat(&ada, line).await;
        assert_eq!(turn.run.status, RunStatus::Completed, "{line}: {:?}", turn.run.error);
        assert_eq!(turn.tool_calls[0].outcome.code.as_deref(), Some(code), "{line}");
        let said = turn.message.unwrap().content;
        assert!(said.contains(code), "{line}: the model was told: {said}");
        assert_eq!(executor.calls().len(), calls, "{line}");
    }
}

#[tokio::test]
async fn a_tool_may_say_any_character() {
    let executor = FakeExecutor::new(|_| Outcome {
        status: Status::Ok,
        code: None,
        content: vec![Part::text("a\0b")],
        structured: Some(json!({"k\0": "\0"})),
        trap: None,
    });
    let house = House::new(executor).await;
    let ada = house.tenant("ada").await;
    let turn = house.chat(&ada, "say \0 and /desk__run\n/desk__run {\"n\": \"\\u0000\"}").await;
    assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
    assert_eq!(turn.tool_calls[0].outcome.content, [Part::text("a\u{fffd}b")]);
}

#[tokio::test]
async fn a_busy_conversation_refuses_and_cancel_ends_the_running_call() {
    let stuck = Stuck::default();
    let house = House::new(stuck.clone()).await;
    let ada = house.tenant("ada").await;
    let started = house.start(&ada, "/desk__run {}").await;
    stuck.began.notified().await;
    let again = StartRun { conversation: Some(started.conversation), ..say("hello?") };
    assert!(matches!(house.runtime.start(&ada, again.clone()).await, Err(StartError::Busy)));

    let run = house.runtime.cancel(&ada, started.run).await.unwrap();
    assert_eq!((run.status, run.stop_reason), (RunStatus::Cancelled, Some(StopReason::Cancelled)));
    assert_eq!(stuck.running.load(Ordering::SeqCst), 0, "the call was dropped");
    let events = house.events(&ada, started.run, "0").await;
    assert_eq!(events.last().unwrap().kind, "run.cancelled");
    assert_eq!(house.owed(&ada).await, run.cost.amount, "the model call is billed");
    assert_eq!(house.runtime.cancel(&ada, started.run).await.unwrap().status, RunStatus::Cancelled, "again");
    house.runtime.start(&ada, again).await.unwrap();
}

#[tokio::test]
async fn a_full_process_queues_and_another_takes_over() {
    let full = Settings { concurrent_runs: 0, ..Settings::default() };
    let house = House::with(FakeExecutor::echo(), full).await;
    let ada = house.tenant("ada").await;
    let started = house.start(&ada, "/desk__run {\"n\": 7}").await;
    assert_eq!(house.runtime.turn(&ada, started.run).await.unwrap().run.status, RunStatus::Queued);
    let second = house.second();
    second.look_for_work().await.unwrap();
    let turn = house.runtime.wait(&ada, started.run, Duration::from_secs(30)).await.unwrap();
    assert_eq!(turn.run.status, RunStatus::Completed);
    let kinds: Vec<String> = house.events(&ada, started.run, "0").await.into_iter().map(|event| event.kind).collect();
    assert_eq!((kinds.first().unwrap().as_str(), kinds.last().unwrap().as_str()), ("run.started", "run.completed"));
}

#[tokio::test]
async fn the_agents_last_step_makes_no_calls() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    house
        .agent(
            &ada,
            json!({"name": "short", "system_prompt": "", "model": "demo", "limits": {"max_steps": 1},
            "tools": [{"tool": "desk", "version": "latest"}]}),
        )
        .await;
    let agent = agent_config::agents::AgentRef::Name("short".parse().unwrap());
    let started = house.runtime.start(&ada, StartRun { agent, ..say("/desk__run {}") }).await.unwrap();
    let turn = house.runtime.wait(&ada, started.run, Duration::from_secs(30)).await.unwrap();
    assert_eq!((turn.run.status, turn.run.stop_reason), (RunStatus::Completed, Some(StopReason::MaxSteps)));
    assert_eq!(turn.tool_calls[0].outcome.code.as_deref(), Some("run.max_steps"));
    assert!(turn.tool_calls[0].receipt.is_none());
}

#[tokio::test]
async fn a_run_calls_no_tool_once_its_cost_is_reached() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    for (name, max_cost, reason, code) in [
        ("poor", json!({"amount": "0.000000000001", "currency": "USD"}), StopReason::Budget, None),
        ("abroad", json!({"amount": "1", "currency": "EUR"}), StopReason::Error, Some("run.max_cost_currency")),
    ] {
        let spec = json!({"name": name, "system_prompt": "", "model": "demo", "limits": {"max_cost": max_cost},
            "tools": [{"tool": "desk", "version": "latest"}]});
        house.agent(&ada, spec).await;
        let agent = agent_config::agents::AgentRef::Name(name.parse().unwrap());
        let started = house.runtime.start(&ada, StartRun { agent, ..say("/desk__run {}") }).await.unwrap();
        let turn = house.runtime.wait(&ada, started.run, Duration::from_secs(30)).await.unwrap();
        assert_eq!((turn.run.stop_reason, turn.run.error.map(|error| error.code).as_deref()), (Some(reason), code));
    }
    assert!(executor.calls().is_empty());
}

#[tokio::test]
async fn a_provider_that_nobody_knows_is_a_clear_failure() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    house.agent(&ada, json!({"name": "lost", "system_prompt": "", "model": "nowhere/gpt"})).await;
    let agent = agent_config::agents::AgentRef::Name("lost".parse().unwrap());
    let started = house.runtime.start(&ada, StartRun { agent, ..say("hello") }).await.unwrap();
    let turn = house.runtime.wait(&ada, started.run, Duration::from_secs(30)).await.unwrap();
    let error = turn.run.error.unwrap();
    assert!(error.detail.contains("provider key named `nowhere`"), "{error:?}");
    assert_eq!(house.owed(&ada).await, domain::Amount::ZERO);
}

#[tokio::test]
async fn a_turn_that_says_nothing_is_refused() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let refused = house.runtime.start(&ada, StartRun { messages: vec![vec![]], ..say("") }).await.unwrap_err();
    assert_eq!((refused.code(), refused.fields()[0].pointer.as_str()), ("chat.invalid", "/message"));
}

#[tokio::test]
async fn erasing_a_conversation_keeps_the_bill() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let turn = house.chat(&ada, "/desk__run {\"n\": 1}").await;
    house.runtime.delete_conversation(&ada, turn.conversation_id).await.unwrap();
    assert!(house.runtime.turn(&ada, turn.run.id).await.is_err());
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);
}
