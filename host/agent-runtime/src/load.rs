//! What a run needs, read once: its agent, functions, prices, history and models; and the request that a step makes of it.

use std::{collections::HashMap, sync::Arc};

use agent_config::{
    agents::{Agent, ModelChoice, Strategy},
    provider_keys::{OpenedKey, ProviderKind},
    revisions,
};
use async_trait::async_trait;
use billing_meter::{PriceBook, prices};
use conversation_store::{Message as Stored, MessageError, NewMessage, messages};
use domain::{
    CallId, RunId, SecretString, TenantId, Timestamp,
    message::{FunctionSpec, Part, Role},
};
use model_providers::{
    Endpoint, EndpointKind, KeyOf, Message, ModelProvider, ModelRef, ModelRequest, ModelStream, ProviderError, tokens,
};
use serde_json::{Map, Value};
use tenancy::{Tenant, TenantTx, plans::Plan};
use tool_api::{CallContext, Share};

use crate::{
    AgentRuntime, Lease,
    approvals::{self, Asked},
    calls::Functions,
    configured::{self, Configured, reference},
    context::{self, DoesNotFit, INPUT_TOKENS_DEFAULT, WINDOW_MESSAGES_MAX},
    drive::Beginning,
    events,
    feed::Feed,
    intents::{self, Intents, Sent},
    line, output,
    pending::{self, Pending},
    request_key,
    runs::{self, End, Run, RunError, StopReason},
    spending::{self, Purse},
    summary::{self, Summary},
    teller::Teller,
    trace::Tracer,
};

/// Everything a run needs, read once.
pub(crate) struct Loaded {
    pub(crate) run: Run,
    pub(crate) agent: Arc<Agent>,
    pub(crate) functions: Functions,
    /// What every call of the run may know of it.
    pub(crate) context: CallContext,
    pub(crate) share: Share,
    /// The plan's, for entries that calls write.
    pub(crate) storage_bytes_max: i64,
    pub(crate) specs: Arc<[FunctionSpec]>,
    pub(crate) book: Arc<PriceBook>,
    pub(crate) purse: Purse,
    pub(crate) candidates: Result<Vec<Candidate>, ProviderError>,
    /// `None`: longer than it may be.
    pub(crate) system: Option<String>,
    /// Tokens of the system prompt and the functions.
    pub(crate) fixed_tokens: u64,
    /// Of the messages before `messages`, where the agent has them summarised.
    pub(crate) summary: Option<Summary>,
    /// Steps of this run that made one.
    pub(crate) summaries: u32,
    /// Of the first of `messages`, in the conversation.
    pub(crate) first_position: u32,
    pub(crate) messages: Vec<Message>,
    /// Tokens of each message, once counted.
    pub(crate) counts: Vec<Option<u64>>,
    /// Tokens of the request that was made last.
    pub(crate) asked_tokens: u64,
    /// What the model is told of an answer that did not fit the agent's `output_schema`, once there was one.
    pub(crate) correction: Option<String>,
    pub(crate) tracer: Tracer,
    /// The reply that a process before this one left behind.
    pub(crate) pending: Option<Pending>,
    /// What calls have begun to send: those of `pending`, then of this process.
    pub(crate) intents: Arc<Intents>,
    /// What was said of calls of `pending`.
    pub(crate) approvals: HashMap<CallId, Asked>,
}

/// A model that may answer.
pub(crate) struct Candidate {
    pub(crate) model: ModelRef,
    pub(crate) provider: Arc<dyn ModelProvider>,
    /// The provider as the price book names it.
    pub(crate) billed: String,
}

/// From where a run's events are told.
pub(crate) enum Begin {
    /// From the first one, with this data.
    First(Value),
    /// Those up to this number are stored.
    After(u32),
}

impl Begin {
    pub(crate) fn teller(self, feed: &Arc<Feed>) -> Arc<Teller> {
        match self {
            Begin::First(started) => Teller::begin(feed, started),
            Begin::After(seq) => Teller::go_on(feed, seq),
        }
    }
}

/// What a run is driven from, and whoever accepts a turn has looked at already.
pub(crate) struct Basis {
    pub(crate) run: Run,
    pub(crate) configured: Arc<Configured>,
    /// The request's own.
    pub(crate) provider_key: Option<SecretString>,
}

/// All that is read of a run before it is driven.
pub(crate) struct Read {
    run: Run,
    configured: Arc<Configured>,
    summary: Option<Summary>,
    summaries: u32,
    /// The messages behind the summary, newest last.
    window: Vec<Stored>,
    tracer: Tracer,
    candidates: Result<Vec<Candidate>, ProviderError>,
}

/// What a process before this one has left of a step.
#[derive(Default)]
struct Left {
    pending: Option<Pending>,
    intents: HashMap<CallId, Vec<Sent>>,
    approvals: HashMap<CallId, Asked>,
}

/// A run that was accepted here has been read; of one that goes on here, that is stored before anything is told.
pub(crate) async fn load(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    id: RunId,
    beginning: Beginning,
    lease: &Lease,
) -> Result<(Loaded, Begin), RunError> {
    let attempt = match beginning {
        Beginning::Accepted { started, read, .. } => {
            return Ok((loaded(*read, Left::default()).await, Begin::First(started)));
        }
        Beginning::Queued => None,
        Beginning::Abandoned { attempt } => Some(attempt),
    };
    let parts = &runtime.0.parts;
    let mut tx = tenant.begin().await?;
    let run = runs::get(&mut tx, id).await?.ok_or(RunError::NotFound)?;
    let agent = revisions::pinned(&mut tx, run.agent_id, run.revision).await?;
    let configured = Arc::new(Configured::read(parts, &mut tx, agent).await?);
    // Before its messages are read: what it says is one of them.
    let spoke = line::speak(&mut tx, &run, lease, parts.ids.as_ref(), parts.clock.now()).await?;
    let provider_key = match run.private.has_provider_key {
        true => request_key::open(&mut tx, &parts.master_key, id).await?,
        false => None,
    };
    let mut read = Read::new(runtime, tenant.id(), Basis { run, configured, provider_key });
    read.look_back(&mut tx).await?;
    let pending = pending::of_run(&mut tx, id).await?;
    let calls: Vec<CallId> = pending.iter().flat_map(|pending| &pending.calls).map(|call| call.id).collect();
    let (intents, approvals) = match calls.as_slice() {
        [] => Default::default(),
        calls => (intents::of_calls(&mut tx, calls).await?, approvals::of_calls(&mut tx, calls).await?),
    };
    let last = match attempt {
        None => events::last_seq(&mut tx, id).await?,
        Some(attempt) => {
            still_ours(&mut tx, id, lease).await?;
            events::resumed(&mut tx, id, attempt, parts.clock.now()).await?
        }
    };
    if spoke || attempt.is_some() {
        tx.commit().await?;
    }
    Ok((loaded(read, Left { pending, intents, approvals }).await, Begin::After(last)))
}

impl Read {
    /// Of a conversation in which nothing was said yet.
    pub(crate) fn new(runtime: &AgentRuntime, tenant: TenantId, basis: Basis) -> Read {
        let Basis { run, configured, provider_key } = basis;
        let tracer = Tracer::new();
        let candidates = candidates(runtime, tenant, &configured, provider_key.as_ref(), &tracer);
        Read { run, configured, summary: None, summaries: 0, window: Vec::new(), tracer, candidates }
    }

    /// What was said before.
    pub(crate) async fn look_back(&mut self, tx: &mut TenantTx) -> Result<(), RunError> {
        let conversation = self.run.conversation_id;
        let looked_at = match self.configured.agent.spec.context.strategy {
            Strategy::Truncate => WINDOW_MESSAGES_MAX,
            Strategy::Summarize => {
                (self.summary, self.summaries) = summary::newest(tx, conversation, self.run.id).await?;
                // More than that are summarised, and so are read.
                2 * WINDOW_MESSAGES_MAX
            }
        };
        self.window = messages::newest_after(tx, conversation, self.through(), looked_at).await?;
        Ok(())
    }

    /// The last message that the summary tells of.
    fn through(&self) -> u32 {
        self.summary.as_ref().map_or(0, |summary| summary.through)
    }

    /// What is about to be said in the conversation, behind all that was read; as it will be stored.
    pub(crate) fn said(&mut self, new: &[NewMessage], now: Timestamp) -> Result<(), MessageError> {
        let last = self.window.last().map_or(self.through(), |message| message.position);
        self.window.extend(messages::behind(last, new, now)?);
        Ok(())
    }
}

async fn loaded(read: Read, left: Left) -> Loaded {
    let through = read.through();
    let Read { run, configured, summary, summaries, window, tracer, candidates } = read;
    let Configured { agent, plan, book, has_budgets, functions, specs, .. } = &*configured;
    let system = configured.system(&run.private.context);
    let schema = agent.spec.output_schema.as_ref();
    let correction = schema.and_then(|schema| output::correction_of(schema, &window, run.id));
    Loaded {
        fixed_tokens: configured.fixed_tokens(&run.private.context, system.as_deref().unwrap_or_default()).await,
        system,
        specs: specs.clone(),
        functions: Functions::new(functions),
        context: CallContext {
            agent: Some(agent.spec.name.to_string()),
            conversation: Some(run.conversation_id),
            external_user_id: run.external_user_id.clone(),
            entries: Arc::new(run.private.context.clone()),
            ..CallContext::default()
        },
        share: share(plan),
        storage_bytes_max: plan.storage_bytes,
        purse: Purse {
            is_bounded: *has_budgets || plan.tokens_per_month.is_some(),
            tokens_per_month: plan.tokens_per_month,
            max_cost: agent.spec.limits.max_cost.as_ref().map(|max| max.amount),
            spent: run.cost.amount,
            deadline: run.private.deadline.unwrap_or(run.created_at),
        },
        first_position: window.first().map_or(through + 1, |message| message.position),
        summary,
        summaries,
        messages: window.into_iter().map(|message| Message { role: message.role, parts: message.parts }).collect(),
        counts: Vec::new(),
        asked_tokens: 0,
        correction,
        tracer,
        pending: left.pending,
        intents: Arc::new(Intents::found(left.intents)),
        approvals: left.approvals,
        run,
        agent: agent.clone(),
        book: book.clone(),
        candidates,
    }
}

/// The run stays this process's until the transaction ends.
async fn still_ours(tx: &mut TenantTx, run: RunId, lease: &Lease) -> Result<(), RunError> {
    let held = sqlx::query_scalar!(
        r#"
        SELECT run_id FROM run
        WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
        FOR UPDATE
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        lease.worker,
        lease.fence(),
    )
    .fetch_optional(tx.conn())
    .await?;
    held.map(drop).ok_or(RunError::Fenced)
}

/// What a plan gives to a tenant's calls. Both numbers are greater than zero (`Plan::check`).
pub(crate) fn share(plan: &Plan) -> Share {
    Share { weight: plan.weight.unsigned_abs(), calls_max: plan.concurrent_tool_calls.unsigned_abs() }
}

pub(crate) fn request(turn: &mut Loaded) -> Result<ModelRequest, End> {
    let too_large = |words: String| End::failed(StopReason::Error, "context.too_large", words);
    let system = turn.system.clone().ok_or_else(|| {
        too_large(format!(
            "the system prompt, filled from `context`, has more than {} bytes",
            context::SYSTEM_BYTES_MAX
        ))
    })?;
    let (plan, fixed_tokens) = plan(turn).map_err(|error| too_large(error.to_string()))?;
    let (context::Plan::Send { from } | context::Plan::Summarize { before: from }) = plan;
    turn.asked_tokens = fixed_tokens + turn.counts[from..].iter().flatten().sum::<u64>();
    let before = turn.summary.as_ref().map(summary::as_message);
    let messages = before.into_iter().chain(turn.messages[from..].iter().cloned()).chain(correction(turn));
    Ok(ModelRequest {
        model: ModelRef::new("", ""),
        system,
        messages: messages.collect(),
        functions: turn.specs.to_vec(),
        temperature: None,
        max_output_tokens: None,
        options: Map::new(),
        output_schema: turn.agent.spec.output_schema.clone(),
    })
}

/// What becomes of the messages, as the agent's strategy has it; and the tokens of all else that is sent with them.
pub(crate) fn plan(turn: &mut Loaded) -> Result<(context::Plan, u64), DoesNotFit> {
    let beside = correction(turn).into_iter().chain(turn.summary.as_ref().map(summary::as_message));
    let fixed_tokens = turn.fixed_tokens + beside.map(|message| tokens::count_message(&message)).sum::<u64>();
    let roles: Vec<Role> = turn.messages.iter().map(|message| message.role).collect();
    turn.counts.resize(roles.len(), None);
    let (messages, counts) = (&turn.messages, &mut turn.counts);
    let count = |index: usize| *counts[index].get_or_insert_with(|| tokens::count_message(&messages[index]));
    let strategy = turn.agent.spec.context.strategy;
    let plan = context::plan(strategy, &roles, fixed_tokens, input_tokens(&turn.agent), count)?;
    Ok((plan, fixed_tokens))
}

/// It follows whatever the window holds, and is no turn of its own.
fn correction(turn: &Loaded) -> Option<Message> {
    turn.correction.clone().map(|text| Message { role: Role::User, parts: vec![Part::text(text)] })
}

pub(crate) fn input_tokens(agent: &Agent) -> u64 {
    u64::from(agent.spec.context.max_input_tokens.unwrap_or(INPUT_TOKENS_DEFAULT))
}

/// The agent's models in order, each behind its own provider. The request's key goes before the tenant's, and that before
/// the platform's.
fn candidates(
    runtime: &AgentRuntime,
    tenant: TenantId,
    configured: &Configured,
    brought: Option<&SecretString>,
    tracer: &Tracer,
) -> Result<Vec<Candidate>, ProviderError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for choice in configured::models(&configured.agent.spec) {
        let model = reference(choice);
        let mut own = configured.keys.get(&model.provider).cloned().map(endpoint);
        // It is for the provider of the agent's model, and goes to no other.
        let is_first = candidates.first().is_none_or(|first| first.model.provider == model.provider);
        if let Some(key) = brought.filter(|_| is_first && model.provider != model_providers::DEMO) {
            own = Endpoint::with_request_key(own, &model.provider, key.clone());
        }
        let billed = match &own {
            Some(_) => prices::own_key(&model.provider),
            None => model.provider.clone(),
        };
        let inner = runtime.0.parts.providers.open(tenant, &model.provider, own)?;
        let provider = Arc::new(Tuned { inner, choice: choice.clone(), tracer: tracer.clone() });
        candidates.push(Candidate { model, provider, billed });
    }
    Ok(candidates)
}

fn endpoint(key: OpenedKey) -> Endpoint {
    let kind = match key.kind {
        ProviderKind::Openai => EndpointKind::Openai,
        ProviderKind::OpenaiCompatible => EndpointKind::OpenaiCompatible,
        ProviderKind::Anthropic => EndpointKind::Anthropic,
        ProviderKind::Gemini => EndpointKind::Gemini,
    };
    Endpoint { kind, base_url: key.base_url, api_key: key.api_key, key_of: KeyOf::Tenant }
}

/// A provider that is asked with one choice's settings.
struct Tuned {
    inner: Arc<dyn ModelProvider>,
    choice: ModelChoice,
    tracer: Tracer,
}

#[async_trait]
impl ModelProvider for Tuned {
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
        let ModelChoice { temperature, max_output_tokens, options, .. } = &self.choice;
        // What is held is enough for the model that may say most.
        let held = request.max_output_tokens.map(|held| held.min(spending::wanted(&self.choice)));
        let tuned = ModelRequest {
            temperature: *temperature,
            max_output_tokens: held.or(*max_output_tokens),
            options: options.clone(),
            ..request.clone()
        };
        self.tracer.watch(&tuned, self.inner.stream(&tuned)).await
    }
}
