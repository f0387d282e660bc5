//! The loop: load, window, model, tools, commit, again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use agent_config::agents::Agent;
use billing_meter::Spend;
use domain::{CallId, Kind, Problem, RunId, message::Role};
use futures::{FutureExt, StreamExt, stream};
use model_providers::{Message, tokens};
use serde_json::{Value, json};
use tenancy::{TakenRun, Tenant};
use tokio::{sync::watch, time::Instant};

use crate::{
    AgentRuntime, Lease, Live, approvals,
    calls::{self, CALLS_AT_ONCE, CallResult, NamedCall, Try},
    commit::{self, Makes, StepDone},
    feed::Feed,
    finish::{completed, finish, writer},
    host::TenantHost,
    intents::{self, AfterCut, Intents, Sending, StepSends},
    load::{Loaded, Read, input_tokens, load},
    model::{Reply, ask},
    output,
    pending::Pending,
    runs::{End, RunError, StopReason},
    spending,
    step::{self, AskedCall, Next},
    summary::{self, Made},
    teller::Teller,
};

/// What a run's model and tools may say in all, in bytes: it is held in memory until the run ends. Looked at after each
/// step, so one step may pass it by what its own calls may answer.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// A call of a run ends this long before the run's deadline does, so that what it consumed is on its receipt.
const CALL_BEFORE_DEADLINE: Duration = Duration::from_millis(250);
/// Processes that may try a run, one after the other: one that ends them all must end too.
const ATTEMPTS_MAX: u32 = 5;

/// Who drives a run, for whom, and until when.
pub(crate) struct Driver<'d> {
    pub(crate) runtime: &'d AgentRuntime,
    pub(crate) tenant: &'d Tenant,
    pub(crate) lease: Lease,
    pub(crate) teller: Arc<Teller>,
    /// What the calls of the step have begun to send, in this process and in those before it.
    pub(crate) intents: Arc<Intents>,
    durable: watch::Receiver<bool>,
    deadline: Instant,
}

impl Driver<'_> {
    /// Waits for the commit that accepts the run: before it nothing that the model says is told, and nothing is held, written
    /// or charged. The model is asked meanwhile.
    pub(crate) async fn durable(&self) {
        durable(self.durable.clone()).await;
    }

    /// How long a call that begins now may take.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).saturating_sub(CALL_BEFORE_DEADLINE)
    }

    /// What a try of a call has of this process.
    pub(crate) fn host(&self, call: CallId, attempt: u32, step: &Arc<StepSends>) -> TenantHost {
        let clock = self.runtime.0.parts.clock.clone();
        let sending = Sending { call, attempt, clock, step: Some(step.clone()), reserved: None };
        TenantHost::new(self.tenant, &self.runtime.0.store_reads, sending).telling(&self.teller)
    }

    /// What a call came to that did not end, or did not begin. Where a request may have left, that is what is told.
    fn unfinished(&self, call: NamedCall, code: &str, words: &str) -> CallResult {
        match intents::gravest(&self.intents.of(call.id)) {
            Some(sent) => calls::unknown(call, sent),
            None => calls::not_finished(call, code, words),
        }
    }
}

/// How a process comes to a run.
pub(crate) enum Beginning {
    /// It is accepted here: the data of its first event, and what is read of it. `durable` becomes true with the commit
    /// that accepts it; where that fails, nothing of the run has been.
    Accepted { started: Value, read: Box<Read>, durable: watch::Receiver<bool> },
    /// It was queued.
    Queued,
    /// Another process drove it and went silent.
    Abandoned { attempt: u32 },
}

/// Whatever happens to the task that drives it, a run leaves the process's books and its followers are told.
struct Leaving<P> {
    runtime: AgentRuntime,
    run: RunId,
    feed: Arc<Feed>,
    _place: P,
}

impl<P> Drop for Leaving<P> {
    fn drop(&mut self) {
        let mut live = self.runtime.live();
        // The run may have been taken here again meanwhile.
        if live.get(&self.run).is_some_and(|live| Arc::ptr_eq(&live.feed, &self.feed)) {
            live.remove(&self.run);
        }
        drop(live);
        self.feed.close();
    }
}

impl AgentRuntime {
    /// Drives a run that is this process's. It takes `place` up as long.
    pub(crate) fn drive_in_background(&self, taken: TakenRun, beginning: Beginning, place: impl Send + Sync + 'static) {
        let TakenRun { tenant, run, fence } = taken;
        let lease = Lease::new(self.0.worker, fence);
        let outlet = self.0.parts.settings.relay.as_ref().map(|relay| relay.outlet(run));
        let live =
            Live { tenant: tenant.clone(), feed: Arc::new(Feed::new(outlet)), cancel: Default::default(), lease };
        self.live().insert(run, live.clone());
        self.0.awaited.begun(run);
        let accepted = match &beginning {
            Beginning::Accepted { durable, .. } => durable.clone(),
            _ => watch::channel(true).1,
        };
        let leaving = Leaving { runtime: self.clone(), run, feed: live.feed.clone(), _place: place };
        self.0.tracker.spawn(async move {
            let runtime = &leaving.runtime;
            let driven = tokio::select! {
                driven = drive(runtime, &tenant, run, beginning, accepted.clone(), &live) => driven,
                () = void(accepted.clone()) => return,
                lost = async {
                    // Before, there is no row to keep.
                    durable(accepted.clone()).await;
                    runtime.keep_lease(&tenant, run, &live).await
                } => lost,
            };
            let Err(error) = driven else { return };
            tracing::error!(tenant.id = %tenant.id(), run.id = %run, error = %error, cause = ?error, "a run was left");
            let left = match error {
                // Where it is not another's, only its step was lost: whoever looks next goes on with it.
                RunError::Fenced => runtime.give_back(run, &live).await,
                // The database is away: the lease expires, and the run goes on.
                error if error.kind() == Kind::Unavailable => Ok(()),
                _ => {
                    let words =
                        "the platform failed to finish the run; every finished step is kept: send the message again";
                    let end = End::failed(StopReason::Error, "run.internal_error", words);
                    runtime.end_unled(&tenant, run, &live.lease, &end).await
                }
            };
            if let Err(error) = left {
                tracing::error!(run.id = %run, error = %error, "a run was neither ended nor given back; its lease runs out");
            }
        });
    }
}

/// Waits until it is true. Where it never will be, whoever waits is dropped.
async fn durable(mut durable: watch::Receiver<bool>) {
    if durable.wait_for(|durable| *durable).await.is_err() {
        std::future::pending().await
    }
}

/// Waits until it can become true no more.
async fn void(mut durable: watch::Receiver<bool>) {
    if durable.wait_for(|durable| *durable).await.is_ok() {
        std::future::pending().await
    }
}

/// Drives a run until it ends or waits for an approval.
async fn drive(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    run: RunId,
    beginning: Beginning,
    durable: watch::Receiver<bool>,
    live: &Live,
) -> Result<(), RunError> {
    tokens::load().await;
    let is_given_up = matches!(&beginning, Beginning::Abandoned { attempt } if *attempt > ATTEMPTS_MAX);
    let (mut turn, begin) = load(runtime, tenant, run, beginning, &live.lease).await?;
    let parts = &runtime.0.parts;
    let left = turn.run.private.deadline.unwrap_or(turn.run.created_at).since(parts.clock.now());
    let driver = Driver {
        runtime,
        tenant,
        lease: live.lease.clone(),
        teller: begin.teller(&live.feed),
        intents: turn.intents.clone(),
        durable,
        deadline: Instant::now() + left,
    };
    // A timer that is over already rings a little later.
    let over = match left.is_zero() {
        _ if is_given_up => Some(interrupted()),
        true => Some(late()),
        false => None,
    };
    let halt = halt(live, driver.deadline, over);
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

    for number in turn.run.steps + 1.. {
        match summary::fold(&mut turn).await {
            Ok(None) => {}
            Ok(Some(fold)) => match summary::make(&driver, &mut turn, number, fold, &mut halt).await? {
                Made::Summary => continue,
                Made::End => return Ok(()),
            },
            Err(end) => return finish(&driver, &turn, None, Some(end), &mut halt).await.map(drop),
        }
        let Asked { reply, named, pending } = match replied(&driver, &mut turn, number, &mut halt).await {
            Ok(asked) => asked,
            Err(end) => return finish(&driver, &turn, None, Some(end), &mut halt).await.map(drop),
        };
        let mut done = StepDone {
            number,
            model: reply.model,
            billed_provider: reply.billed,
            usage: reply.usage,
            makes: Makes::Message,
            message: reply.message,
            text: reply.text,
            extra: reply.extra,
            trace: reply.trace,
            calls: Vec::new(),
            result_bytes: result_bytes(&turn.agent, named.len()),
            started_at: pending.started_at,
            sends: Arc::new(StepSends::new(&turn, live.lease.clone(), pending.clone())),
        };
        let mut end = reply.cut;
        let refuse = |code: &str, words: &str| -> Vec<CallResult> {
            named.iter().map(|call| driver.unfinished(call.clone(), code, words)).collect()
        };
        if end.is_some() {
            done.calls = refuse("run.ended", "the run ended before the call began");
        } else {
            let used = done.spent(commit::bill(&writer(&driver, &turn), &done).cost);
            let spent = turn.purse.spent + used.money;
            // A step that summarises leaves the run the steps that it has.
            let asked = number - turn.summaries;
            match step::next(named.len(), asked, turn.agent.spec.limits.steps(), spent, max_cost) {
                Next::Answer => {
                    let has_step = asked < turn.agent.spec.limits.steps();
                    let has_money = max_cost.is_none_or(|max| spent < max);
                    end = output::answered(&mut turn, &done.text, has_step && has_money);
                }
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
                Next::Call => {
                    let asks = approvals::wanted(&turn, &named, parts.clock.now());
                    if !asks.is_empty() {
                        return approvals::wait(&driver, &turn, &pending, used, &asks).await;
                    }
                    (done.calls, end) = call_all(&driver, &turn, &done.sends, used, named, &mut halt).await;
                }
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
        turn.pending = None;
        turn.purse.spent = turn.purse.spent + cost;
        turn.messages.push(Message { role: Role::Assistant, parts: commit::said_by_model(&done) });
        if !done.calls.is_empty() {
            turn.messages.push(Message { role: Role::Tool, parts: commit::results_for_model(&done) });
        }
    }
    Ok(())
}

/// A reply, its calls by name, and both as whoever might go on with the step needs them.
struct Asked {
    reply: Reply,
    named: Vec<NamedCall>,
    pending: Arc<Pending>,
}

/// The reply that another process left behind, else the model's. It stays in `turn` until its step is committed.
async fn replied(
    driver: &Driver<'_>,
    turn: &mut Loaded,
    number: u32,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<Asked, End> {
    let parts = &driver.runtime.0.parts;
    if let Some(pending) = turn.pending.clone().filter(|pending| pending.step == number) {
        if !pending.is_told {
            pending.tell(&driver.teller);
        }
        let (mut reply, ids) = pending.clone().reply();
        reply.cut = (&mut *halt).now_or_never();
        let named = ids.into_iter().zip(reply.calls.iter().cloned());
        let named = named.map(|(id, asked)| approvals::named(turn, turn.functions.name(id, asked))).collect();
        return Ok(Asked { reply, named, pending: Arc::new(pending) });
    }
    let began = parts.clock.now();
    let reply = ask(driver, turn, halt).await?;
    let name = |asked: &AskedCall| turn.functions.name(CallId::new(parts.ids.as_ref()), asked.clone());
    let named: Vec<NamedCall> = reply.calls.iter().map(name).collect();
    let pending = Arc::new(Pending::of(number, &reply, &named, began));
    Ok(Asked { reply, named, pending })
}

/// A run that ends every process that drives it, or that no process gets to drive for long.
fn interrupted() -> End {
    let words = "the processes that drove the run ended, one after the other; the conversation keeps every finished step: \
                 send the message again";
    End::failed(StopReason::Interrupted, "run.interrupted", words)
}

/// Ready when the run must stop where it is.
async fn halt(live: &Live, deadline: Instant, over: Option<End>) -> End {
    if live.cancel.is_cancelled() {
        return End::cancelled();
    }
    if let Some(end) = over {
        return end;
    }
    tokio::select! {
        biased;
        () = live.cancel.cancelled() => End::cancelled(),
        () = tokio::time::sleep_until(deadline) => late(),
    }
}

fn late() -> End {
    let words = "the run's deadline has passed; raise `limits.deadline_seconds` of the agent";
    End::failed(StopReason::Deadline, "run.deadline", words)
}

/// Runs a step's calls side by side. When the run must stop, the calls that run are dropped, which ends them.
async fn call_all(
    driver: &Driver<'_>,
    turn: &Loaded,
    sends: &Arc<StepSends>,
    used: Spend,
    named: Vec<NamedCall>,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> (Vec<CallResult>, Option<End>) {
    let (mut results, mut stopped): (HashMap<CallId, CallResult>, Option<End>) = Default::default();
    let mut runs = Vec::new();
    for call in &named {
        let refused = approvals::refused(turn, call);
        match (refused, intents::after_cut(&driver.intents.of(call.id))) {
            (Some(outcome), _) => drop(results.insert(call.id, calls::refused(call.clone(), outcome))),
            (None, AfterCut::Unknown(sent)) => drop(results.insert(call.id, calls::unknown(call.clone(), &sent))),
            (None, AfterCut::Run { attempt }) => runs.push((call.clone(), attempt)),
        }
    }
    let mut paid: Vec<&mut NamedCall> = runs.iter_mut().map(|(call, _)| call).collect();
    if let Err(end) = spending::hold_for_calls(driver, turn, used, &mut paid, halt).await {
        let words = "what is left of the budget does not pay for the call";
        for (call, _) in runs.drain(..) {
            results.insert(call.id, driver.unfinished(call, "run.budget", words));
        }
        stopped = Some(end);
    }
    let run_one = |(call, attempt): (NamedCall, u32)| async move {
        let NamedCall { id, tool, function, .. } = &call;
        let data = json!({"id": id, "tool": tool, "function": function, "arguments": call.arguments()});
        driver.teller.event("tool_call.started", data);
        let host = driver.host(call.id, attempt, sends);
        let this = Try { attempt, host, left: driver.left() };
        driver.runtime.run_call(driver.tenant, turn, call, this).await
    };
    {
        let mut running = stream::iter(runs.into_iter().map(run_one)).buffer_unordered(CALLS_AT_ONCE);
        loop {
            let result = tokio::select! {
                biased;
                stop = &mut *halt, if stopped.is_none() => { stopped = Some(stop); break }
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
            None => driver.unfinished(call, "call.cancelled", "the run ended while the call ran"),
        })
        .collect();
    (results, stopped)
}

/// Bytes of each of a step's results that the model reads: together they fill half of its window, at about four bytes a
/// token. The whole answer stays with the call.
fn result_bytes(agent: &Agent, calls: usize) -> usize {
    const LEAST: usize = 1024;
    let half = usize::try_from(input_tokens(agent).saturating_mul(2)).unwrap_or(usize::MAX);
    (half / calls.max(1)).max(LEAST)
}
