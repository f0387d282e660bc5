//! The loop: load, window, model, tools, commit, again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use agent_config::agents::Agent;
use domain::{CallId, RunId, message::Role};
use futures::{StreamExt, stream};
use model_providers::{Message, tokens};
use serde_json::{Value, json};
use tenancy::Tenant;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    AgentRuntime, Live,
    calls::{self, CALLS_AT_ONCE, CallResult, NamedCall, Try},
    commit::{self, StepDone},
    feed::Feed,
    finish::{completed, finish, writer},
    host::TenantHost,
    load::{Loaded, input_tokens, load},
    model::ask,
    runs::{End, RunError, StopReason},
    step::{self, Next},
    teller::Teller,
};

/// What a run's model and tools may say in all, in bytes: it is held in memory until the run ends. Looked at after each
/// step, so one step may pass it by what its own calls may answer.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// A call of a run ends this long before the run's deadline does, so that what it consumed is on its receipt.
const CALL_BEFORE_DEADLINE: Duration = Duration::from_millis(250);

/// Who drives a run, for whom, and until when.
pub(crate) struct Driver<'d> {
    pub(crate) runtime: &'d AgentRuntime,
    pub(crate) tenant: &'d Tenant,
    pub(crate) teller: Arc<Teller>,
    deadline: Instant,
}

impl Driver<'_> {
    /// How long a call that begins now may take.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).saturating_sub(CALL_BEFORE_DEADLINE)
    }
}

/// Whatever happens to the task that drives it, a run leaves the process's books and its followers are told.
struct Leaving {
    runtime: AgentRuntime,
    run: RunId,
    feed: Arc<Feed>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.runtime.live().remove(&self.run);
        self.feed.close();
    }
}

impl AgentRuntime {
    /// Drives a run whose lease this process holds. `started` is the data of its first event, when known.
    pub(crate) fn drive_in_background(
        &self,
        tenant: Tenant,
        run: RunId,
        started: Option<Value>,
        permit: OwnedSemaphorePermit,
    ) {
        let live = Live { feed: Arc::new(Feed::new()), cancel: Default::default() };
        self.live().insert(run, live.clone());
        let leaving = Leaving { runtime: self.clone(), run, feed: live.feed.clone(), _permit: permit };
        self.0.tracker.spawn(async move {
            let runtime = &leaving.runtime;
            let driven = tokio::select! {
                driven = drive(runtime, &tenant, run, started, &live) => driven,
                lost = runtime.keep_lease(&tenant, run, &live.cancel) => lost,
            };
            if let Err(error) = driven {
                tracing::error!(tenant.id = %tenant.id(), run.id = %run, error = %error, cause = ?error, "a run was left");
                if !matches!(error, RunError::Fenced) {
                    // If this fails too, another process will find the lease expired.
                    let words = "the platform failed to finish the run; every finished step is kept: send the message again";
                    let end = End::failed(StopReason::Error, "run.internal_error", words);
                    if let Err(error) = runtime.end_unled(&tenant, run, &end).await {
                        tracing::error!(run.id = %run, error = %error, "a run could not be ended");
                    }
                }
            }
        });
    }
}

/// Drives a run to its end.
async fn drive(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    run: RunId,
    started: Option<Value>,
    live: &Live,
) -> Result<(), RunError> {
    tokens::load().await;
    let (mut turn, started) = load(runtime, tenant, run, started).await?;
    let teller = Teller::begin(&live.feed, started);
    let parts = &runtime.0.parts;
    let left = turn.run.private.deadline.unwrap_or(turn.run.created_at).since(parts.clock.now());
    let driver = Driver { runtime, tenant, teller, deadline: Instant::now() + left };
    let halt = halt(live, driver.deadline);
    tokio::pin!(halt);
    if turn.run.private.cancel_requested {
        live.cancel.cancel();
    }
    let max_cost = match &turn.agent.spec.limits.max_cost {
        Some(max) if max.currency != turn.book.currency => {
            let words = format!("`limits.max_cost` is in {}, and prices are in {}", max.currency, turn.book.currency);
            let end = End::failed(StopReason::Error, "run.max_cost_currency", words);
            return finish(&driver, &turn, None, Some(end), &mut halt).await.map(drop);
        }
        max_cost => max_cost.as_ref().map(|max| max.amount),
    };
    let mut spent = turn.run.cost.amount;

    for number in turn.run.steps + 1.. {
        let began = parts.clock.now();
        let reply = match ask(&driver, &mut turn, &mut halt).await {
            Ok(reply) => reply,
            Err(end) => return finish(&driver, &turn, None, Some(end), &mut halt).await.map(drop),
        };
        let named: Vec<NamedCall> = reply
            .calls
            .iter()
            .map(|asked| turn.functions.name(CallId::new(parts.ids.as_ref()), asked.clone()))
            .collect();
        let mut done = StepDone {
            number,
            model: reply.model,
            billed_provider: reply.billed,
            usage: reply.usage,
            message: reply.message,
            text: reply.text,
            calls: Vec::new(),
            result_bytes: result_bytes(&turn.agent, named.len()),
            started_at: began,
        };
        let mut end = reply.cut;
        let refuse = |code: &str, words: &str| -> Vec<CallResult> {
            named.iter().map(|call| calls::not_finished(call.clone(), code, words)).collect()
        };
        if end.is_some() {
            done.calls = refuse("run.ended", "the run ended before the call began");
        } else {
            let spent = spent + commit::bill(&writer(&driver, &turn), &done).cost;
            match step::next(named.len(), number, turn.agent.spec.limits.steps(), spent, max_cost) {
                Next::Answer => end = Some(End::completed(StopReason::Done)),
                Next::OutOfSteps => {
                    done.calls = refuse("run.max_steps", "the run has no step left; the call was not made");
                    end = Some(End::completed(StopReason::MaxSteps));
                }
                Next::OutOfMoney => {
                    done.calls = refuse("run.budget", "the run has spent what it may; the call was not made");
                    end = Some(End::completed(StopReason::Budget));
                }
                Next::TooManyCalls => {
                    let words = format!("more than {} calls in one step; none was made", step::CALLS_PER_STEP_MAX);
                    done.calls = refuse("run.too_many_calls", &words);
                    // Nobody needs hundreds of rows of what did not happen.
                    done.calls.truncate(step::CALLS_PER_STEP_MAX);
                }
                Next::Call => (done.calls, end) = call_all(&driver, &turn, named, &mut halt).await,
            }
        }
        if end.is_none() && live.feed.bytes() > OUTPUT_BYTES_MAX {
            let words = format!("the run's model and tools have said more than {OUTPUT_BYTES_MAX} bytes; ask for less");
            end = Some(End::failed(StopReason::Error, "run.too_much_output", words));
        }
        let (cost, ended) = finish(&driver, &turn, Some(&mut done), end, &mut halt).await?;
        if ended {
            return Ok(());
        }
        spent = spent + cost;
        turn.messages.push(said(&done));
        turn.messages.push(Message { role: Role::Tool, parts: commit::results_for_model(&done) });
    }
    Ok(())
}

/// What the model is reminded of having said.
fn said(step: &StepDone) -> Message {
    let text = (!step.text.is_empty()).then(|| domain::message::Part::text(step.text.clone()));
    let calls = step.calls.iter().map(|result| domain::message::Part::ToolCall {
        id: result.call.id,
        provider_id: result.call.asked.provider_id.clone(),
        name: result.call.asked.name.clone(),
        arguments: result.call.asked.arguments.clone(),
    });
    Message { role: Role::Assistant, parts: text.into_iter().chain(calls).collect() }
}

/// Ready when the run must stop where it is.
async fn halt(live: &Live, deadline: Instant) -> End {
    tokio::select! {
        biased;
        () = live.cancel.cancelled() => End::cancelled(),
        () = tokio::time::sleep_until(deadline) => {
            let words = "the run's deadline has passed; raise `limits.deadline_seconds` of the agent";
            End::failed(StopReason::Deadline, "run.deadline", words)
        }
    }
}

/// Runs a step's calls side by side. When the run must stop, the calls that run are dropped, which ends them.
async fn call_all(
    driver: &Driver<'_>,
    turn: &Loaded,
    named: Vec<NamedCall>,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> (Vec<CallResult>, Option<End>) {
    let run_one = |call: NamedCall| async move {
        let NamedCall { id, tool, function, asked, .. } = &call;
        let data = json!({"id": id, "tool": tool, "function": function, "arguments": asked.arguments});
        driver.teller.event("tool_call.started", data);
        let host = TenantHost::new(driver.tenant, &driver.runtime.0.store_reads).telling(call.id, &driver.teller);
        let first = Try { attempt: 1, host, left: driver.left() };
        driver.runtime.run_call(driver.tenant, turn, call, first).await
    };
    let mut results: HashMap<CallId, CallResult> = HashMap::new();
    let mut end = None;
    {
        let mut running = stream::iter(named.iter().cloned().map(run_one)).buffer_unordered(CALLS_AT_ONCE);
        loop {
            let result = tokio::select! {
                biased;
                stop = &mut *halt => { end = Some(stop); break }
                result = running.next() => result,
            };
            let Some(mut result) = result else { break };
            // With changes its outcome is settled only when they are committed.
            result.untold = !result.changes.is_empty();
            if !result.untold {
                driver.teller.event("tool_call.completed", completed(turn, &result));
            }
            results.insert(result.call.id, result);
        }
    }
    let results = named
        .into_iter()
        .map(|call| match results.remove(&call.id) {
            Some(result) => result,
            None => calls::not_finished(call, "call.cancelled", "the run ended while the call ran"),
        })
        .collect();
    (results, end)
}

/// Bytes of each of a step's results that the model reads: together they fill half of its window, at about four bytes a
/// token. The whole answer stays with the call.
fn result_bytes(agent: &Agent, calls: usize) -> usize {
    const LEAST: usize = 1024;
    let half = usize::try_from(input_tokens(agent).saturating_mul(2)).unwrap_or(usize::MAX);
    (half / calls.max(1)).max(LEAST)
}
