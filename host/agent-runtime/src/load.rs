//! What a run needs, read once: its agent, functions, prices, history and models; and the request that a step makes of it.

use std::sync::Arc;

use agent_config::{
    agents::{Agent, ModelChoice},
    provider_keys::{self, OpenedKey, ProviderKind},
    revisions,
};
use async_trait::async_trait;
use billing_meter::prices::{self, PriceBook};
use conversation_store::messages;
use domain::{RunId, message::Role};
use model_providers::{
    Endpoint, EndpointKind, Message, ModelProvider, ModelRef, ModelRequest, ModelStream, ProviderError, tokens,
};
use serde_json::{Map, Value};
use tenancy::{Tenant, TenantTx, plans::Plan, tenants};
use tool_api::{CallContext, Share};

use crate::{
    AgentRuntime,
    calls::Functions,
    context::{self, INPUT_TOKENS_DEFAULT, WINDOW_MESSAGES_MAX},
    events::{self, EventCursor},
    runs::{self, End, Run, RunError, StopReason},
};

/// Everything a run needs, read once.
pub(crate) struct Loaded {
    pub(crate) run: Run,
    pub(crate) agent: Agent,
    pub(crate) functions: Functions,
    /// What every call of the run may know of it.
    pub(crate) context: CallContext,
    pub(crate) share: Share,
    /// The plan's, for entries that calls write.
    pub(crate) storage_bytes_max: i64,
    pub(crate) specs: Vec<domain::message::FunctionSpec>,
    pub(crate) book: PriceBook,
    pub(crate) candidates: Result<Vec<Candidate>, ProviderError>,
    /// `None`: longer than it may be.
    pub(crate) system: Option<String>,
    /// Tokens of the system prompt and the functions.
    pub(crate) fixed_tokens: u64,
    pub(crate) messages: Vec<Message>,
    /// Tokens of each message, once counted.
    pub(crate) counts: Vec<Option<u64>>,
}

/// A model that may answer.
pub(crate) struct Candidate {
    pub(crate) model: ModelRef,
    pub(crate) provider: Arc<dyn ModelProvider>,
    /// The provider as the price book names it.
    pub(crate) billed: String,
}

/// One read transaction. Also gives the data of the run's first event.
pub(crate) async fn load(
    runtime: &AgentRuntime,
    tenant: &Tenant,
    id: RunId,
    started: Option<Value>,
) -> Result<(Loaded, Value), RunError> {
    let mut tx = tenant.begin().await?;
    let run = runs::get(&mut tx, id).await?.ok_or(RunError::NotFound)?;
    let agent = revisions::pinned(&mut tx, run.agent_id, run.revision).await?;
    let mut functions = revisions::functions(&mut tx, run.agent_id, run.revision).await?;
    // A plan may have become smaller since the revision was published.
    let plan = tenants::get(&mut tx).await?.plan;
    functions.iter_mut().for_each(|function| function.limits = function.limits.min(plan.tool_limits));
    let book = prices::current(&mut tx).await?;
    let window = messages::newest(&mut tx, run.conversation_id, WINDOW_MESSAGES_MAX).await?;
    let candidates = candidates(runtime, &mut tx, &agent).await?;
    let started = match started {
        Some(started) => started,
        None => {
            let first = events::read(&mut tx, id, EventCursor::default()).await?.into_iter().next();
            first.map(|event| event.data).unwrap_or_default()
        }
    };
    drop(tx);
    let system = context::fill(&agent.spec.system_prompt, &run.private.context);
    let specs: Vec<_> = functions.iter().map(|function| function.spec.clone()).collect();
    let loaded = Loaded {
        fixed_tokens: fixed_tokens(system.clone().unwrap_or_default(), specs.clone()).await,
        system,
        specs,
        functions: Functions::new(functions),
        context: CallContext {
            agent: Some(agent.spec.name.to_string()),
            conversation: Some(run.conversation_id),
            external_user_id: run.external_user_id.clone(),
            entries: Arc::new(run.private.context.clone()),
            ..CallContext::default()
        },
        share: share(&plan),
        storage_bytes_max: plan.storage_bytes,
        messages: window.into_iter().map(|message| Message { role: message.role, parts: message.parts }).collect(),
        counts: Vec::new(),
        run,
        agent,
        book,
        candidates,
    };
    Ok((loaded, started))
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
    let roles: Vec<Role> = turn.messages.iter().map(|message| message.role).collect();
    turn.counts.resize(roles.len(), None);
    let (messages, counts) = (&turn.messages, &mut turn.counts);
    let count = |index: usize| *counts[index].get_or_insert_with(|| tokens::count_message(&messages[index]));
    let start = context::window(&roles, turn.fixed_tokens, input_tokens(&turn.agent), count)
        .map_err(|error| too_large(error.to_string()))?;
    Ok(ModelRequest {
        model: ModelRef::new("", ""),
        system,
        messages: turn.messages[start..].to_vec(),
        functions: turn.specs.clone(),
        temperature: None,
        max_output_tokens: None,
        options: Map::new(),
    })
}

pub(crate) fn input_tokens(agent: &Agent) -> u64 {
    u64::from(agent.spec.context.max_input_tokens.unwrap_or(INPUT_TOKENS_DEFAULT))
}

/// Functions may have megabytes of schemas: counting them is no work for a thread that others wait for.
async fn fixed_tokens(system: String, functions: Vec<domain::message::FunctionSpec>) -> u64 {
    let request = ModelRequest {
        model: ModelRef::new("", ""),
        system,
        messages: Vec::new(),
        functions,
        temperature: None,
        max_output_tokens: None,
        options: Map::new(),
    };
    // It ends only with the process, or by a panic of the tokenizer: then nothing is taken for fixed.
    tokio::task::spawn_blocking(move || tokens::count_request(&request)).await.unwrap_or(0)
}

/// The agent's models in order, each behind its own provider. The tenant's key goes before the platform's.
async fn candidates(
    runtime: &AgentRuntime,
    tx: &mut TenantTx,
    agent: &Agent,
) -> Result<Result<Vec<Candidate>, ProviderError>, RunError> {
    let parts = &runtime.0.parts;
    let mut candidates = Vec::new();
    for choice in std::iter::once(&agent.spec.model).chain(&agent.spec.fallback_models) {
        let model = match &choice.provider {
            Some(provider) => ModelRef::new(provider, &choice.name),
            None => ModelRef::parse(&choice.name),
        };
        let own = provider_keys::open(tx, &parts.master_key, &model.provider).await?.map(endpoint);
        let billed = match &own {
            Some(_) => prices::own_key(&model.provider),
            None => model.provider.clone(),
        };
        match parts.providers.open(&model.provider, own) {
            Ok(inner) => {
                let provider = Arc::new(Tuned { inner, choice: choice.clone() });
                candidates.push(Candidate { model, provider, billed });
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(candidates))
}

fn endpoint(key: OpenedKey) -> Endpoint {
    let kind = match key.kind {
        ProviderKind::Openai => EndpointKind::Openai,
        ProviderKind::OpenaiCompatible => EndpointKind::OpenaiCompatible,
    };
    Endpoint { kind, base_url: key.base_url, api_key: key.api_key, trusted: false }
}

/// A provider that is asked with one choice's settings.
struct Tuned {
    inner: Arc<dyn ModelProvider>,
    choice: ModelChoice,
}

#[async_trait]
impl ModelProvider for Tuned {
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
        let ModelChoice { temperature, max_output_tokens, options, .. } = &self.choice;
        let tuned = ModelRequest {
            temperature: *temperature,
            max_output_tokens: *max_output_tokens,
            options: options.clone(),
            ..request.clone()
        };
        self.inner.stream(&tuned).await
    }
}
