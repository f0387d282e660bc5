//! What all turns of an agent are driven by: read once, and kept in memory as long as nothing of it has changed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use agent_config::{
    Binding, BoundFunction,
    agents::{Agent, AgentRef, AgentSpec, ModelChoice},
    provider_keys::{self, OpenedKey},
    revisions,
};
use billing_meter::{PriceBook, Standing, prices};
use domain::{TenantId, message::FunctionSpec};
use model_providers::{ModelRef, ModelRequest, tokens};
use moka::future::Cache;
use serde_json::{Map, Value, json};
use tenancy::{Stamp, TenantTx, plans::Plan, tenants};
use tokio::sync::OnceCell;

use crate::{Parts, context, output, runs::RunError};

/// Bytes of what is kept: thousands of agents with a few functions each.
const KEPT_BYTES_MAX: u64 = 64 << 20;
/// After so long it is read again, and the tenant's keys in it are forgotten where nobody asks for it any more.
const KEPT_MAX: Duration = Duration::from_secs(600);
/// Of an entry, besides its texts and its price book.
const ENTRY_BYTES: usize = 4 * 1024;
/// Of a model's prices.
const MODEL_PRICE_BYTES: usize = 256;

pub(crate) struct Configured {
    pub(crate) agent: Arc<Agent>,
    pub(crate) plan: Plan,
    pub(crate) book: Arc<PriceBook>,
    pub(crate) has_budgets: bool,
    /// In the order of their bindings. What their schemas are made into belongs to a run, and goes with it.
    pub(crate) functions: Vec<Arc<BoundFunction>>,
    pub(crate) specs: Arc<[FunctionSpec]>,
    /// The tenant's own, by the names of the providers of the agent's models.
    pub(crate) keys: HashMap<String, OpenedKey>,
    /// See `fixed_tokens`; of a turn without context.
    fixed_tokens: OnceCell<u64>,
}

impl Configured {
    /// Reads what belongs to an agent at a revision.
    pub(crate) async fn read(parts: &Parts, tx: &mut TenantTx, agent: Agent) -> Result<Configured, RunError> {
        let plan = tenants::get(tx).await?.plan;
        let Standing { book, has_budgets } = prices::standing(tx).await?;
        let mut functions = revisions::functions(tx, agent.id, agent.revision).await?;
        // A plan may have become smaller since the revision was published.
        functions.iter_mut().for_each(|function| function.limits = function.limits.min(plan.tool_limits));
        let mut keys = HashMap::new();
        for choice in models(&agent.spec) {
            let ModelRef { provider, .. } = reference(choice);
            if let Some(key) = provider_keys::open(tx, &parts.master_key, &provider).await? {
                keys.insert(provider, key);
            }
        }
        Ok(Configured {
            specs: functions.iter().map(|function| function.spec.clone()).collect(),
            functions: functions.into_iter().map(Arc::new).collect(),
            agent: Arc::new(agent),
            book: Arc::new(book),
            plan,
            has_budgets,
            keys,
            fixed_tokens: OnceCell::new(),
        })
    }

    /// The system prompt, filled from a turn's context. `None`: longer than it may be.
    pub(crate) fn system(&self, context: &BTreeMap<String, String>) -> Option<String> {
        let spec = &self.agent.spec;
        let mut system = context::fill(&spec.system_prompt, context)?;
        spec.output_schema.iter().for_each(|schema| output::instruct(&mut system, schema));
        Some(system)
    }

    /// Tokens of what is sent with every request: the system prompt, filled from this context, and the functions.
    pub(crate) async fn fixed_tokens(&self, context: &BTreeMap<String, String>, system: &str) -> u64 {
        let counted = || count(system.to_owned(), self.specs.to_vec());
        match context.is_empty() {
            true => *self.fixed_tokens.get_or_init(counted).await,
            false => counted().await,
        }
    }

    fn bytes(&self) -> usize {
        let text = |value: Value| value.to_string().len();
        // A schema is there twice: of the function, and as the model reads it.
        let functions: usize = self
            .functions
            .iter()
            .map(|function| text(json!(*function.grants)) + 2 * text(json!(function.spec.input_schema)))
            .sum();
        ENTRY_BYTES + MODEL_PRICE_BYTES * self.book.models.len() + text(json!(self.agent.spec)) + functions
    }
}

/// Functions may have megabytes of schemas: counting them is no work for a thread that others wait for.
async fn count(system: String, functions: Vec<FunctionSpec>) -> u64 {
    let request = ModelRequest {
        model: ModelRef::new("", ""),
        system,
        messages: Vec::new(),
        functions,
        temperature: None,
        max_output_tokens: None,
        options: Map::new(),
        output_schema: None,
    };
    // It ends only with the process, or by a panic of the tokenizer: then nothing is taken for fixed.
    tokio::task::spawn_blocking(move || tokens::count_request(&request)).await.unwrap_or(0)
}

/// The agent's models, in the order in which they are asked.
pub(crate) fn models(spec: &AgentSpec<Binding>) -> impl Iterator<Item = &ModelChoice> {
    std::iter::once(&spec.model).chain(&spec.fallback_models)
}

/// Which model is meant.
pub(crate) fn reference(choice: &ModelChoice) -> ModelRef {
    match &choice.provider {
        Some(provider) => ModelRef::new(provider, &choice.name),
        None => ModelRef::parse(&choice.name),
    }
}

/// An agent as a turn names it: by id or name, at its active revision or at another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Named {
    pub(crate) tenant: TenantId,
    pub(crate) agent: AgentRef,
    pub(crate) revision: Option<u32>,
}

/// What was read, and since when it is known to be so.
pub(crate) struct Known(Cache<Named, (Stamp, Arc<Configured>)>);

impl Known {
    pub(crate) fn new() -> Known {
        let weigh = |_: &Named, (_, kept): &(Stamp, Arc<Configured>)| u32::try_from(kept.bytes()).unwrap_or(u32::MAX);
        Known(Cache::builder().max_capacity(KEPT_BYTES_MAX).weigher(weigh).time_to_live(KEPT_MAX).build())
    }

    /// What there was when the database told `stamp`, if that is known.
    pub(crate) async fn at(&self, named: &Named, stamp: Stamp) -> Option<Arc<Configured>> {
        let (since, configured) = self.0.get(named).await?;
        if since == stamp {
            return Some(configured);
        }
        // Whatever replaces it, or if nothing does: a key in it may have been deleted.
        self.0.invalidate(named).await;
        None
    }

    /// It was read after the database told `stamp`.
    pub(crate) async fn keep(&self, named: Named, stamp: Stamp, configured: Arc<Configured>) {
        self.0.insert(named, (stamp, configured)).await;
    }
}
