//! The loop: load, window, model, tools, commit, again.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_config::agents::Agent;
use billing_meter::prices::PriceBook;
use domain::{Amount, CallId, Kind, MessageId, Money, Problem, RunId, message::Role, nul};
use futures::{StreamExt, stream};
use model_providers::{Message, ModelEvent, ModelRef, ModelRequest, ProviderError, Usage, retry, tokens};
use serde_json::{Value, json};
use tenancy::Tenant;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tool_api::CallContext;

use crate::{
    AgentRuntime, Live,
    calls::{self, CALLS_AT_ONCE, CallResult, NamedCall},
    commit::{self, Bill, StepDone, Writer},
    events::NewEvent,
    feed::Feed,
    load::{Loaded, input_tokens, load, request},
    runs::{self, End, RunError, RunUsage, StopReason},
    step::{self, AskedCall, Next},
    tool_calls::BilledReceipt,
};

/// What a run's model and tools may say in all, in bytes: it is held in memory until the run ends. Looked at after each
/// step, so one step may pass it by what its own calls may answer.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// A call of a run ends this long before the run's deadline does, so that what it consumed is on its receipt.
const CALL_BEFORE_DEADLINE: Duration = Duration::from_millis(250);
/// Tries to commit a step while the database is away for a moment.
const COMMIT_TRIES: u32 = 5;
/// Between two of them.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);

/// What a model said, whole or cut.
struct Reply {
    model: ModelRef,
    billed: String,
    usage: Usage,
    message: MessageId,
    text: String,
    calls: Vec<AskedCall>,
    /// Why it was cut.
    cut: Option<End>,
}

/// Tells a run's events: live at once, and kept for the step's commit.
struct Teller<'t> {
    feed: &'t Feed,
    seq: AtomicU32,
    untold: Mutex<Vec<NewEvent>>,
}

impl Teller<'_> {
    fn keep(&self, event: NewEvent) {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn next(&self) -> u32 {
        self.seq.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn event(&self, kind: &'static str, data: Value) {
        let seq = self.next();
        self.feed.event(seq, kind, data.clone());
        self.keep(NewEvent::Event { seq, kind, data });
    }

    /// An event that is true only once it is committed.
    fn after_commit(&self, kind: &'static str, data: Value) -> u32 {
        let seq = self.next();
        self.keep(NewEvent::Event { seq, kind, data });
        seq
    }

    fn take(&self) -> Vec<NewEvent> {
        std::mem::take(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner))
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
    live.feed.event(1, "run.started", started);
    let teller = Teller { feed: &live.feed, seq: AtomicU32::new(1), untold: Mutex::default() };
    let parts = &runtime.0.parts;
    let left = turn.run.private.deadline.unwrap_or(turn.run.created_at).since(parts.clock.now());
    let deadline = Instant::now() + left;
    let halt = halt(live, deadline);
    tokio::pin!(halt);
    if turn.run.private.cancel_requested {
        live.cancel.cancel();
    }
    let max_cost = match &turn.agent.spec.limits.max_cost {
        Some(max) if max.currency != turn.book.currency => {
            let words = format!("`limits.max_cost` is in {}, and prices are in {}", max.currency, turn.book.currency);
            let end = End::failed(StopReason::Error, "run.max_cost_currency", words);
            return finish(runtime, tenant, &turn, &teller, None, Some(end)).await;
        }
        max_cost => max_cost.as_ref().map(|max| max.amount),
    };
    let mut spent = turn.run.cost.amount;

    for number in turn.run.steps + 1.. {
        let began = parts.clock.now();
        let reply = match ask(runtime, &mut turn, &teller, &mut halt).await {
            Ok(reply) => reply,
            Err(end) => return finish(runtime, tenant, &turn, &teller, None, Some(end)).await,
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
            let spent = spent + commit::bill(&writer(runtime, &turn), &done).cost;
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
                Next::Call => {
                    (done.calls, end) = call_all(runtime, tenant, &turn, named, &teller, deadline, &mut halt).await
                }
            }
        }
        if end.is_none() && live.feed.bytes() > OUTPUT_BYTES_MAX {
            let words = format!("the run's model and tools have said more than {OUTPUT_BYTES_MAX} bytes; ask for less");
            end = Some(End::failed(StopReason::Error, "run.too_much_output", words));
        }
        let ended = end.is_some();
        let results = commit::results_for_model(&done);
        let said = said(&done);
        spent = spent + finish_step(runtime, tenant, &turn, &teller, done, end).await?;
        if ended {
            return Ok(());
        }
        turn.messages.push(said);
        turn.messages.push(Message { role: Role::Tool, parts: results });
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

/// Asks the model and tells its text as it comes. `Err`: nothing came, and nothing is charged.
async fn ask(
    runtime: &AgentRuntime,
    turn: &mut Loaded,
    teller: &Teller<'_>,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<Reply, End> {
    let failed = |error: &ProviderError| End::failed(StopReason::Error, error.code(), error.to_string());
    let request = request(turn)?;
    let candidates = turn.candidates.as_ref().map_err(failed)?;
    let ids = runtime.0.parts.ids.clone();
    // The last 32 bits of an id are random.
    let chance = move || f64::from(ids.uuid().as_u128() as u32) / f64::from(u32::MAX);
    let tried: Vec<_> =
        candidates.iter().map(|candidate| (candidate.model.clone(), candidate.provider.clone())).collect();
    let (model, mut stream) = tokio::select! {
        biased;
        end = &mut *halt => return Err(end),
        started = retry::start(&tried, request.clone(), &chance) => started.map_err(|error| failed(&error))?,
    };
    let billed = candidates.iter().find(|candidate| candidate.model == model).map(|candidate| candidate.billed.clone());
    let mut reply = Reply {
        billed: billed.unwrap_or_else(|| model.provider.clone()),
        model,
        usage: Usage::default(),
        message: MessageId::new(runtime.0.parts.ids.as_ref()),
        text: String::new(),
        calls: Vec::new(),
        cut: None,
    };
    let ended = loop {
        let event = tokio::select! {
            biased;
            end = &mut *halt => { reply.cut = Some(end); break false }
            event = stream.next() => event,
        };
        match event {
            Some(Ok(ModelEvent::Text(text))) => {
                let text = nul::replaced(text);
                teller.feed.text(reply.message, &text);
                reply.text.push_str(&text);
            }
            Some(Ok(ModelEvent::ToolCall { provider_id, name, arguments })) => {
                reply.calls.push(AskedCall { provider_id, name, arguments });
            }
            Some(Ok(ModelEvent::End { usage, .. })) => {
                reply.usage = usage;
                break true;
            }
            Some(Err(error)) => {
                reply.cut = Some(failed(&error));
                break false;
            }
            None => {
                reply.cut = Some(failed(&ProviderError::CutShort { provider: reply.model.provider.clone() }));
                break false;
            }
        }
    };
    if !ended {
        // What came was paid for; what was not reported is counted.
        reply.usage = counted(&request, &reply);
        reply.calls.clear();
    }
    if !reply.text.is_empty() {
        let after = teller.seq.load(Ordering::SeqCst);
        teller.keep(NewEvent::Text { after, message: reply.message, text: reply.text.clone() });
    }
    Ok(reply)
}

fn counted(request: &ModelRequest, reply: &Reply) -> Usage {
    let calls: u64 =
        reply.calls.iter().map(|call| tokens::count(&call.name) + tokens::count(&call.arguments.to_string())).sum();
    Usage {
        input_tokens: tokens::count_request(request),
        cached_input_tokens: 0,
        output_tokens: tokens::count(&reply.text) + calls,
        reported: false,
    }
}

/// Runs a step's calls side by side. When the run must stop, the calls that run are dropped, which ends them.
async fn call_all(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    turn: &Loaded,
    named: Vec<NamedCall>,
    teller: &Teller<'_>,
    deadline: Instant,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> (Vec<CallResult>, Option<End>) {
    let context = CallContext {
        agent: Some(turn.agent.spec.name.to_string()),
        conversation: Some(turn.run.conversation_id),
        external_user_id: turn.run.external_user_id.clone(),
        entries: Arc::new(turn.run.private.context.clone()),
        ..CallContext::default()
    };
    let run_one = |call: NamedCall| {
        let context = context.clone();
        async move {
            let NamedCall { id, tool, function, asked, .. } = &call;
            let data = json!({"id": id, "tool": tool, "function": function, "arguments": asked.arguments});
            teller.event("tool_call.started", data);
            let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(CALL_BEFORE_DEADLINE);
            runtime.run_call(tenant, &turn.functions, call, context, left).await
        }
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
            let Some(result) = result else { break };
            let receipt = result.receipt.as_ref().map(|receipt| billed(&turn.book, receipt));
            let data = json!({"id": result.call.id, "outcome": result.outcome, "receipt": receipt});
            teller.event("tool_call.completed", data);
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

fn billed(book: &PriceBook, receipt: &tool_api::Receipt) -> BilledReceipt {
    let price = billing_meter::usage::price_call(book, receipt.fuel_used, receipt.memory_peak_bytes, receipt.total_us);
    BilledReceipt {
        receipt: receipt.clone(),
        price: Money { amount: price, currency: book.currency.clone() },
        price_book: book.version,
    }
}

/// Commits a step and what it ends, then tells of both. Returns what the step cost.
async fn finish_step(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    turn: &Loaded,
    teller: &Teller<'_>,
    step: StepDone,
    end: Option<End>,
) -> Result<Amount, RunError> {
    let writer = writer(runtime, turn);
    let bill = commit::bill(&writer, &step);
    let cost = bill.cost;
    finish(runtime, tenant, turn, teller, Some((step, bill)), end).await?;
    Ok(cost)
}

async fn finish(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    turn: &Loaded,
    teller: &Teller<'_>,
    step: Option<(StepDone, Bill)>,
    end: Option<End>,
) -> Result<(), RunError> {
    let step_told = step.as_ref().map(|(step, bill)| {
        let usage = RunUsage {
            input_tokens: step.usage.input_tokens,
            cached_input_tokens: step.usage.cached_input_tokens,
            output_tokens: step.usage.output_tokens,
            fuel: step.fuel(),
        };
        let cost = Money { amount: bill.cost, currency: turn.book.currency.clone() };
        let data = json!({"step": step.number, "usage": usage, "cost": cost});
        (teller.after_commit("step.completed", data.clone()), data)
    });
    let end_told = end.as_ref().map(|end| (teller.after_commit(end.status.event(), json!({})), end.status.event()));

    let step = step.as_ref().map(|(step, bill)| (step, bill));
    let told = teller.take();
    let write = async || -> Result<Option<Value>, RunError> {
        let mut tx = tenant.begin().await?;
        commit::commit(&mut tx, &writer(runtime, turn), step, end.as_ref(), &told).await?;
        // Read in the same transaction: the last event is told with the body that the run now has.
        let body = match end_told {
            Some(_) => Some(json!(runs::turn(&mut tx, turn.run.id).await?)),
            None => None,
        };
        tx.commit().await?;
        Ok(body)
    };
    let mut tries = 1;
    let body = loop {
        match write().await {
            // A commit whose answer was lost is not written twice: the step's key and the usage's refuse it.
            Err(error) if error.kind() == Kind::Unavailable && tries < COMMIT_TRIES => {
                tracing::warn!(run.id = %turn.run.id, error = %error, tries, "a step could not be committed yet");
                tries += 1;
                tokio::time::sleep(COMMIT_PAUSE).await;
            }
            written => break written?,
        }
    };

    if let Some((seq, data)) = step_told {
        teller.feed.event(seq, "step.completed", data);
    }
    if let (Some((seq, kind)), Some(body)) = (end_told, body) {
        teller.feed.event(seq, kind, body);
    }
    Ok(())
}

fn writer<'w>(runtime: &'w AgentRuntime, turn: &'w Loaded) -> Writer<'w> {
    let parts = &runtime.0.parts;
    let now = parts.clock.now();
    Writer {
        run: turn.run.id,
        worker: runtime.0.worker,
        leased_until: now.plus(parts.settings.lease),
        agent: turn.agent.id,
        conversation: turn.run.conversation_id,
        api_key: turn.run.private.api_key,
        external_user_id: turn.run.external_user_id.as_deref(),
        book: &turn.book,
        ids: parts.ids.as_ref(),
        now,
    }
}

/// Bytes of each of a step's results that the model reads: together they fill half of its window, at about four bytes a
/// token. The whole answer stays with the call.
fn result_bytes(agent: &Agent, calls: usize) -> usize {
    const LEAST: usize = 1024;
    let half = usize::try_from(input_tokens(agent).saturating_mul(2)).unwrap_or(usize::MAX);
    (half / calls.max(1)).max(LEAST)
}
