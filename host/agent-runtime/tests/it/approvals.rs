//! Calls that wait for a person's word.

use std::{sync::Arc, time::Duration};

use agent_runtime::{
    DirectCall, RunStatus, Settings, StartRun, StopReason, Turn,
    approvals::{self, ApprovalError, Decide, Decision},
};
use domain::{Amount, CallId, Clock, Problem, RunId, SystemClock};
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::Tenant;
use tool_api::Status;

use crate::house::{House, direct, say};

fn decision(decision: Decision) -> Decide {
    Decide { decision, arguments: None, reason: None, decided_by: Some("grace".into()), api_key: None }
}

async fn decide(tenant: &Tenant, run: RunId, call: CallId, decide: Decide) -> Result<RunStatus, ApprovalError> {
    let mut tx = tenant.begin().await?;
    let run = approvals::decide(&mut tx, run, call, decide, SystemClock.now()).await?;
    tx.commit().await?;
    Ok(run.status)
}

/// A run of an agent whose calls wait, and its calls.
async fn waiting(house: &House, tenant: &Tenant, binding: Value, says: &str) -> (Turn, Vec<CallId>) {
    let agent = house.bind(tenant, "careful", binding).await;
    let turn = house.talk(tenant, StartRun { agent, ..say(says) }).await;
    assert_eq!(turn.run.status, RunStatus::WaitingForApproval, "{:?}", turn.run.error);
    let calls = turn.run.pending_approvals.iter().map(|pending| pending.id).collect();
    (turn, calls)
}

async fn ended(house: &House, tenant: &Tenant, run: RunId) -> Turn {
    house.runtime.look_for_work().await.unwrap();
    house.runtime.wait(tenant, run, Duration::from_secs(30)).await.unwrap()
}

/// Changes rows as time or an operator would.
async fn sql(house: &House, statement: &'static str) {
    let mut superuser = house.db.superuser().await;
    sqlx::query(statement).execute(&mut superuser).await.unwrap();
}

#[tokio::test]
async fn a_run_waits_as_a_row_and_costs_nothing() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let (turn, calls) = waiting(&house, &ada, json!({"approval": "always"}), "/desk__run {\"n\": 1}").await;
    let [call] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((executor.calls().len(), house.owed(&ada).await), (0, Amount::ZERO));
    let pending = &turn.run.pending_approvals[0];
    assert_eq!((pending.tool.as_str(), pending.function.as_str()), ("desk", "run"));
    assert_eq!(pending.arguments, json!({"n": 1}));

    // Another process, after the first is gone.
    let second = house.process(Arc::new(executor.clone()), Settings::default());
    assert_eq!(decide(&ada, turn.run.id, *call, decision(Decision::Approve)).await.unwrap(), RunStatus::Queued);
    second.look_for_work().await.unwrap();
    let turn = second.wait(&ada, turn.run.id, Duration::from_secs(30)).await.unwrap();
    assert_eq!((turn.run.status, turn.run.steps), (RunStatus::Completed, 2), "{:?}", turn.run.error);
    assert!(turn.run.pending_approvals.is_empty());
    assert_eq!(executor.arguments(), [json!({"n": 1})]);
    let done = &turn.tool_calls[0];
    assert_eq!(done.id, *call);
    let approval = done.receipt.as_ref().unwrap().approval.as_ref().unwrap();
    assert_eq!((approval.decision, approval.decided_by.as_deref()), (Decision::Approve, Some("grace")));
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);

    let events = house.events(&ada, turn.run.id, "0").await;
    let kinds: Vec<&str> =
        events.iter().map(|event| event.kind.as_str()).filter(|kind| *kind != "message.delta").collect();
    assert_eq!(
        kinds,
        [
            "run.started",
            "approval.requested",
            "approval.decided",
            "tool_call.started",
            "tool_call.completed",
            "step.completed",
            "step.completed",
            "run.completed"
        ]
    );
    assert_eq!(events[1].data["id"], json!(call));
    assert!(events[1].data["expires_at"].is_string());
}

#[tokio::test]
async fn a_denied_call_is_not_made_and_the_model_hears_why() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let rule = json!({"approval": {"default": "never", "functions": {"run": "always"}}});
    let (turn, calls) = waiting(&house, &ada, rule, "/desk__run {\"n\": 1}\n/desk__run {\"n\": 2}").await;
    let deny = Decide { reason: Some("too expensive".into()), ..decision(Decision::Deny) };
    assert_eq!(decide(&ada, turn.run.id, calls[0], deny).await.unwrap(), RunStatus::WaitingForApproval);
    assert_eq!(decide(&ada, turn.run.id, calls[1], decision(Decision::Approve)).await.unwrap(), RunStatus::Queued);
    let turn = ended(&house, &ada, turn.run.id).await;
    assert_eq!(executor.arguments(), [json!({"n": 2})]);
    let denied = &turn.tool_calls[0];
    assert_eq!((denied.outcome.status, denied.outcome.code.as_deref()), (Status::Denied, Some("approval.denied")));
    assert!(denied.receipt.is_none());
    assert_eq!(denied.approval.as_ref().unwrap().reason.as_deref(), Some("too expensive"));
    let said = turn.message.unwrap().content;
    assert!(said.contains("too expensive") && said.contains("says: 2"), "{said}");
}

#[tokio::test]
async fn a_person_may_change_the_arguments() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let (turn, calls) = waiting(&house, &ada, json!({"approval": "always"}), "/desk__run {\"n\": 1000}").await;
    let edit = |arguments| Decide { arguments: Some(arguments), ..decision(Decision::Approve) };
    let refused = decide(&ada, turn.run.id, calls[0], edit(json!([1]))).await.unwrap_err();
    assert_eq!((refused.code(), refused.fields()[0].pointer.as_str()), ("approval.invalid", "/arguments"));
    let denied_with = Decide { decision: Decision::Deny, ..edit(json!({})) };
    assert_eq!(decide(&ada, turn.run.id, calls[0], denied_with).await.unwrap_err().code(), "approval.invalid");
    decide(&ada, turn.run.id, calls[0], edit(json!({"n": 10}))).await.unwrap();
    let turn = ended(&house, &ada, turn.run.id).await;
    assert_eq!(executor.arguments(), [json!({"n": 10})]);
    let call = &turn.tool_calls[0];
    assert_eq!(call.arguments, json!({"n": 10}), "the row tells what was run");
    assert_eq!(call.approval.as_ref().unwrap().arguments, Some(json!({"n": 10})));
    assert!(turn.message.unwrap().content.contains("changed the arguments"));
}

#[tokio::test]
async fn a_decision_is_for_one_call_and_is_not_taken_back() {
    let house = House::new(FakeExecutor::echo()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    let (turn, calls) =
        waiting(&house, &ada, json!({"approval": "always"}), "/desk__run {\"n\": 1}\n/desk__run {}").await;
    let run = turn.run.id;
    let (yes, no) = (|| decision(Decision::Approve), || decision(Decision::Deny));
    assert_eq!(decide(&bob, run, calls[0], yes()).await.unwrap_err().code(), "tool_call.not_found");
    let other = CallId::new(&domain::SystemIds);
    assert_eq!(decide(&ada, run, other, yes()).await.unwrap_err().code(), "tool_call.not_found");
    decide(&ada, run, calls[0], yes()).await.unwrap();
    decide(&ada, run, calls[0], yes()).await.unwrap();
    let changed = Decide { arguments: Some(json!({"n": 2})), ..yes() };
    for other in [no(), changed] {
        assert_eq!(decide(&ada, run, calls[0], other).await.unwrap_err().code(), "approval.decided");
    }
    decide(&ada, run, calls[1], no()).await.unwrap();
    let turn = ended(&house, &ada, run).await;
    assert_eq!(turn.run.status, RunStatus::Completed);
    assert_eq!(decide(&ada, run, calls[1], yes()).await.unwrap_err().code(), "approval.decided");
}

#[tokio::test]
async fn what_nobody_allows_in_time_is_not_made() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let rule = json!({"approval": "always", "approval_expires_seconds": 60});
    let (turn, calls) = waiting(&house, &ada, rule, "/desk__run {\"n\": 1}").await;
    house.runtime.look_for_work().await.unwrap();
    assert_eq!(house.runtime.turn(&ada, turn.run.id).await.unwrap().run.status, RunStatus::WaitingForApproval);
    sql(&house, "UPDATE belljar.approval SET expires_at = now() - interval '1 second'").await;
    let refused = decide(&ada, turn.run.id, calls[0], decision(Decision::Approve)).await.unwrap_err();
    assert_eq!(refused.code(), "approval.expired");
    sql(&house, "UPDATE belljar.run SET wake_at = now() - interval '1 second'").await;
    let turn = ended(&house, &ada, turn.run.id).await;
    assert_eq!((turn.run.status, executor.calls().len()), (RunStatus::Completed, 0));
    assert_eq!(turn.tool_calls[0].outcome.code.as_deref(), Some("approval.expired"));
}

#[tokio::test]
async fn a_run_that_waits_is_cancelled_and_pays_for_what_the_model_said() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let (turn, calls) = waiting(&house, &ada, json!({"approval": "always"}), "/desk__run {\"n\": 1}").await;
    let run = house.runtime.cancel(&ada, turn.run.id).await.unwrap();
    assert_eq!((run.status, run.stop_reason, run.steps), (RunStatus::Cancelled, Some(StopReason::Cancelled), 1));
    assert!(run.cost.amount > Amount::ZERO);
    assert_eq!((house.owed(&ada).await, executor.calls().len()), (run.cost.amount, 0));
    let refused = decide(&ada, run.id, calls[0], decision(Decision::Approve)).await.unwrap_err();
    assert_eq!(refused.code(), "approval.expired");
    let again = StartRun { conversation: Some(turn.conversation_id), ..say("/desk__run {}") };
    let agent = agent_config::agents::AgentRef::Name("careful".parse().unwrap());
    house.runtime.start(&ada, StartRun { agent, ..again }).await.unwrap();
}

#[tokio::test]
async fn the_deadline_of_a_run_counts_while_it_waits() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let (turn, _) = waiting(&house, &ada, json!({"approval": "always"}), "/desk__run {\"n\": 1}").await;
    let over = "UPDATE belljar.run SET deadline = now() - interval '1 second', wake_at = now() - interval '1 second'";
    sql(&house, over).await;
    let turn = ended(&house, &ada, turn.run.id).await;
    assert_eq!((turn.run.status, turn.run.stop_reason), (RunStatus::Failed, Some(StopReason::Deadline)));
    assert_eq!(house.owed(&ada).await, turn.run.cost.amount);
}

#[tokio::test]
async fn arguments_that_do_not_fit_bother_nobody() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let agent = house.bind(&ada, "careful", json!({"approval": "always"})).await;
    let turn = house.talk(&ada, StartRun { agent, ..say("/desk__run [1]") }).await;
    assert_eq!(turn.run.status, RunStatus::Completed);
    assert_eq!(turn.tool_calls[0].outcome.code.as_deref(), Some("tool.bad_arguments"));
}

#[tokio::test]
async fn nobody_calls_around_an_agent_that_has_to_ask() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    house.bind(&ada, "careful", json!({"approval": {"default": "always", "functions": {"run": "never"}}})).await;
    house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    house.bind(&ada, "more-careful", json!({"approval": "always"})).await;
    let refused = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap_err();
    assert_eq!(refused.code(), "tool_call.needs_approval");
    assert!(refused.to_string().contains("more-careful"), "{refused}");
    let unknown = DirectCall { function: "walk".parse().unwrap(), ..direct(json!({})) };
    assert_eq!(house.runtime.call_tool(&ada, unknown).await.unwrap_err().code(), "tool_call.function_not_found");
    house.runtime.call_tool(&bob, direct(json!({}))).await.unwrap();
    assert_eq!(executor.calls().len(), 2);
}
