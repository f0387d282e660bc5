//! A step and what it ends are committed, then told. A call whose key-value changes are in conflict runs again first.

use std::time::Duration;

use conversation_store::messages;
use domain::{Amount, Kind, Money, Problem, Timestamp};
use serde_json::{Value, json};
use tenancy::TenantTx;

use crate::{
    calls::{self, CallResult, Try},
    changes::{self, AfterApply, Tried},
    commit::{self, Bill, Committed, StepDone, Writer},
    drive::Driver,
    fault,
    host::Overlay,
    load::Loaded,
    runs::{self, End, Run, RunError, RunUsage, Turn},
    teller::Truth,
    tool_calls::{self, BilledReceipt},
    webhooks,
};

/// Tries to commit a step while the database is away for a moment.
const COMMIT_TRIES: u32 = 5;
/// Between two of them.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

enum Written {
    Committed(Vec<Truth>, Amount),
    /// An earlier try has not committed.
    Nothing,
    /// Nothing is written: these calls run again first.
    Conflict {
        rerun: Vec<usize>,
        tried: Vec<Tried>,
    },
}

/// Commits a step, the run's end, or both, then tells of them. The step is left as it was committed: a call's outcome is
/// settled only here. Returns what the step cost, and whether the run has ended.
pub(crate) async fn finish(
    driver: &Driver<'_>,
    turn: &Loaded,
    mut step: Option<&mut StepDone>,
    mut end: Option<End>,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<(Amount, bool), RunError> {
    driver.durable().await;
    let (mut tries, mut looks) = (1, false);
    loop {
        let written = match looks {
            true => landed(driver, turn, step.as_deref(), end.as_ref()).await,
            false => write(driver, turn, step.as_deref_mut(), end.as_ref()).await,
        };
        match written {
            Ok(Written::Committed(truths, cost)) => {
                driver.teller.stored(truths);
                return Ok((cost, end.is_some()));
            }
            Ok(Written::Nothing) => looks = false,
            Ok(Written::Conflict { rerun, tried }) => {
                if let Some(step) = step.as_deref_mut() {
                    end = run_again(driver, turn, step, &rerun, &tried, halt).await;
                }
            }
            Err(error) if error.kind() == Kind::Unavailable && tries < COMMIT_TRIES => {
                tracing::warn!(run.id = %turn.run.id, error = %error, tries, "a step could not be committed yet");
                tries += 1;
                tokio::time::sleep(COMMIT_PAUSE).await;
                // The answer may have been lost after the commit. Then it is not written again, and no call runs again
                // because of what it wrote itself.
                looks = true;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What an earlier try has committed, if it did. A commit that is still under way holds the row: it is waited for.
async fn landed(
    driver: &Driver<'_>,
    turn: &Loaded,
    step: Option<&StepDone>,
    end: Option<&End>,
) -> Result<Written, RunError> {
    let writer = writer(driver, turn);
    let mut tx = driver.tenant.begin().await?;
    let row = sqlx::query!(
        r#"
        SELECT steps, status FROM run WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4
        FOR UPDATE
        "#,
        tx.tenant().uuid(),
        writer.run.uuid(),
        writer.lease.worker,
        writer.lease.fence(),
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(RunError::Fenced)?;
    let is_there = step.is_none_or(|step| row.steps.cast_unsigned() >= step.number)
        && end.is_none_or(|end| row.status == end.status.as_str());
    if !is_there {
        return Ok(Written::Nothing);
    }
    let step = step.map(|step| (step, commit::bill(&writer, step)));
    let mut truths: Vec<Truth> = step.iter().flat_map(|(step, bill)| told_of(turn, step, bill)).collect();
    if let Some(end) = end {
        truths.push(Truth::end(end.status.event(), runs::turn(&mut tx, turn.run.id).await?));
    }
    Ok(Written::Committed(truths, step.map_or(Amount::ZERO, |(_, bill)| bill.cost)))
}

/// One transaction.
async fn write(
    driver: &Driver<'_>,
    turn: &Loaded,
    step: Option<&mut StepDone>,
    end: Option<&End>,
) -> Result<Written, RunError> {
    let writer = writer(driver, turn);
    let mut tx = driver.tenant.begin().await?;
    let step = match step {
        None => None,
        Some(step) => {
            let tried = apply(&mut tx, turn, step, &writer).await?;
            match changes::after_apply(&tried, end.is_none()) {
                AfterApply::Rerun(rerun) => return Ok(Written::Conflict { rerun, tried }),
                AfterApply::Commit(settled) => {
                    for (at, outcome) in settled {
                        step.calls[at].outcome = outcome;
                        step.calls[at].changes.clear();
                    }
                }
            }
            let bill = commit::bill(&writer, step);
            Some((&*step, bill))
        }
    };
    let mut truths: Vec<Truth> = step.iter().flat_map(|(step, bill)| told_of(turn, step, bill)).collect();
    truths.extend(end.map(|end| Truth::new(end.status.event(), json!({}))));
    let told = driver.teller.to_store(&truths);
    let done = step.as_ref().map(|(step, bill)| (*step, bill));
    let committed = commit::commit(&mut tx, &writer, done, end, &told).await?;
    if let Some(end) = end {
        // The last event is told with the body that the run now has.
        let ended = Truth::end(end.status.event(), ended(&mut tx, turn, end, committed, writer.now).await?);
        webhooks::run_ended(&mut tx, turn.run.id, end.status, Some(&ended.told), writer.ids, writer.now).await?;
        truths.pop();
        truths.push(ended);
    }
    fault::point(if end.is_some() { "end.committing" } else { "step.committing" });
    tx.commit().await?;
    fault::point(if end.is_some() { "end.committed" } else { "step.committed" });
    Ok(Written::Committed(truths, step.map_or(Amount::ZERO, |(_, bill)| bill.cost)))
}

/// The run as this transaction ends it.
async fn ended(
    tx: &mut TenantTx,
    turn: &Loaded,
    end: &End,
    committed: Committed,
    now: Timestamp,
) -> Result<Turn, RunError> {
    let Committed { agent, steps, usage, cost, message } = committed;
    let message = match message {
        None => messages::last_of_run(tx, turn.run.id).await?,
        message => message,
    };
    let run = Run {
        agent,
        status: end.status,
        stop_reason: Some(end.reason),
        steps,
        usage,
        cost: Money { amount: cost, currency: turn.run.cost.currency.clone() },
        error: end.error.clone(),
        pending_approvals: Vec::new(),
        ended_at: Some(now),
        ..turn.run.clone()
    };
    let tool_calls = tool_calls::of_run(tx, run.id).await?;
    Ok(Turn { conversation_id: run.conversation_id, run, message, output: end.output.clone(), tool_calls })
}

/// Before the fence: whoever writes entries locks their sum first, and nobody locks a run before that.
async fn apply(tx: &mut TenantTx, turn: &Loaded, step: &StepDone, writer: &Writer<'_>) -> Result<Vec<Tried>, RunError> {
    let changes = step.calls.iter().map(|result| {
        let CallResult { call, changes, receipt, .. } = result;
        (call.id, changes.clone(), receipt.as_ref())
    });
    changes::apply(tx, turn.storage_bytes_max, &changes.collect::<Vec<_>>(), writer.now).await
}

/// Calls in conflict run one after the other, each over what the calls before it have written: so a step whose calls all
/// change one key is done after one more round. `Some`: the run must stop.
async fn run_again(
    driver: &Driver<'_>,
    turn: &Loaded,
    step: &mut StepDone,
    rerun: &[usize],
    tried: &[Tried],
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Option<End> {
    let mut stopped = None;
    for &at in rerun {
        let call = step.calls[at].call.clone();
        if stopped.is_some() {
            step.calls[at] = ended_around(call);
            continue;
        }
        let counts = |before: &usize| rerun.contains(before) || tried.get(*before).is_some_and(Tried::is_applied);
        let earlier = Overlay::of((0..at).filter(counts).flat_map(|before| &step.calls[before].changes));
        let attempt = step.calls[at].receipt.as_ref().map_or(1, |receipt| receipt.attempt) + 1;
        tracing::info!(tool_call.id = %call.id, attempt, "a call in conflict runs again");
        let host = driver.host(call.id, attempt, &step.sends).over(earlier);
        let again = Try { attempt, host, left: driver.left() };
        let running = driver.runtime.run_call(driver.tenant, turn, call.clone(), again);
        let result = tokio::select! {
            biased;
            end = &mut *halt => { stopped = Some(end); ended_around(call) }
            result = running => CallResult { untold: true, ..result },
        };
        step.calls[at] = result;
    }
    stopped
}

/// Its earlier try is void, and this one is none.
fn ended_around(call: calls::NamedCall) -> CallResult {
    CallResult { untold: true, ..calls::not_finished(call, "call.cancelled", "the run ended while the call ran again") }
}

/// What a step's commit makes true.
fn told_of(turn: &Loaded, step: &StepDone, bill: &Bill) -> Vec<Truth> {
    let settled = step.calls.iter().filter(|result| result.untold);
    let mut truths: Vec<Truth> =
        settled.map(|result| Truth::new("tool_call.completed", completed(turn, result))).collect();
    let usage = RunUsage {
        input_tokens: step.usage.input_tokens,
        cached_input_tokens: step.usage.cached_input_tokens,
        output_tokens: step.usage.output_tokens,
        fuel: step.fuel(),
    };
    let cost = Money { amount: bill.cost, currency: turn.book.currency.clone() };
    let mut told = json!({"step": step.number, "usage": usage, "cost": cost});
    if let Some(messages) = step.trace.summarized_messages {
        told["summarized_messages"] = messages.into();
    }
    truths.push(Truth::new("step.completed", told));
    truths
}

/// The data of `tool_call.completed`.
pub(crate) fn completed(turn: &Loaded, result: &CallResult) -> Value {
    let billed = result.receipt.as_ref().map(|receipt| BilledReceipt {
        receipt: receipt.clone(),
        price: Money {
            amount: billing_meter::usage::price_call(
                &turn.book,
                receipt.fuel_used,
                receipt.memory_peak_bytes,
                receipt.total_us,
            ),
            currency: turn.book.currency.clone(),
        },
        price_book: turn.book.version,
        approval: result.call.approval.clone(),
    });
    json!({"id": result.call.id, "outcome": result.outcome, "receipt": billed})
}

pub(crate) fn writer<'w>(driver: &Driver<'w>, turn: &'w Loaded) -> Writer<'w> {
    let parts = &driver.runtime.0.parts;
    let now = parts.clock.now();
    Writer {
        run: turn.run.id,
        lease: driver.lease.clone(),
        agent: turn.agent.id,
        conversation: turn.run.conversation_id,
        api_key: turn.run.private.api_key,
        external_user_id: turn.run.external_user_id.as_deref(),
        book: &turn.book,
        is_bounded: turn.purse.is_bounded,
        ids: parts.ids.as_ref(),
        now,
    }
}
