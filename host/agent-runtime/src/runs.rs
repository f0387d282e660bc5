//! A run: one turn of the agent loop, as a row and as it is told.

use std::collections::BTreeMap;

use agent_config::{agents::AgentError, provider_keys::ProviderKeyError};
use billing_meter::{BudgetError, prices::PriceError, usage::UsageError};
use conversation_store::{
    conversations::ConversationError,
    messages::{self, Message, MessageError},
};
use domain::{
    AgentId, AgentName, Amount, ApiKeyId, ConversationId, Kind, Money, Problem, RunId, Timestamp,
    page::{Page, PageRequest},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{QueryBuilder, Row as _, postgres::PgRow};
use tenancy::{DbError, TenantTx, tenants::TenantError};
use uuid::Uuid;

use crate::{
    approvals::{self, PendingApproval},
    tool_calls::{self, ToolCallRow},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Queued,
    Running,
    WaitingForApproval,
    Completed,
    Failed,
    Cancelled,
}

impl RunStatus {
    const ALL: [RunStatus; 6] = [
        RunStatus::Queued,
        RunStatus::Running,
        RunStatus::WaitingForApproval,
        RunStatus::Completed,
        RunStatus::Failed,
        RunStatus::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Queued => "queued",
            RunStatus::Running => "running",
            RunStatus::WaitingForApproval => "waiting_for_approval",
            RunStatus::Completed => "completed",
            RunStatus::Failed => "failed",
            RunStatus::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<RunStatus> {
        RunStatus::ALL.into_iter().find(|status| status.as_str() == text)
    }

    pub fn is_terminal(self) -> bool {
        matches!(self, RunStatus::Completed | RunStatus::Failed | RunStatus::Cancelled)
    }

    /// The event that ends a run in this status.
    pub(crate) fn event(self) -> &'static str {
        match self {
            RunStatus::Completed => "run.completed",
            RunStatus::Cancelled => "run.cancelled",
            _ => "run.failed",
        }
    }
}

/// Why a run ended. Only `done` answers; with `max_steps` and `budget` the run is completed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    Done,
    MaxSteps,
    Budget,
    Deadline,
    Cancelled,
    /// One process after the other that drove the run ended.
    Interrupted,
    Error,
}

impl StopReason {
    const ALL: [StopReason; 7] = [
        StopReason::Done,
        StopReason::MaxSteps,
        StopReason::Budget,
        StopReason::Deadline,
        StopReason::Cancelled,
        StopReason::Interrupted,
        StopReason::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::Done => "done",
            StopReason::MaxSteps => "max_steps",
            StopReason::Budget => "budget",
            StopReason::Deadline => "deadline",
            StopReason::Cancelled => "cancelled",
            StopReason::Interrupted => "interrupted",
            StopReason::Error => "error",
        }
    }

    fn parse(text: &str) -> Option<StopReason> {
        StopReason::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct End {
    pub(crate) status: RunStatus,
    pub(crate) reason: StopReason,
    pub(crate) error: Option<Failure>,
    /// What the answer is by the agent's `output_schema`.
    pub(crate) output: Option<Value>,
}

impl End {
    pub(crate) fn completed(reason: StopReason) -> End {
        End { status: RunStatus::Completed, reason, error: None, output: None }
    }

    pub(crate) fn failed(reason: StopReason, code: &str, detail: impl Into<String>) -> End {
        let error = Some(Failure { code: code.to_owned(), detail: detail.into() });
        End { status: RunStatus::Failed, reason, error, output: None }
    }

    pub(crate) fn cancelled() -> End {
        End { status: RunStatus::Cancelled, reason: StopReason::Cancelled, error: None, output: None }
    }
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Failure {
    pub code: String,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct RunUsage {
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub output_tokens: u64,
    pub fuel: u64,
}

/// A run as it is told.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Run {
    pub id: RunId,
    pub agent: AgentName,
    pub agent_id: AgentId,
    pub revision: u32,
    pub conversation_id: ConversationId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
    pub status: RunStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Steps that are committed.
    pub steps: u32,
    pub usage: RunUsage,
    pub cost: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The calls that wait for a decision, and the run with them.
    pub pending_approvals: Vec<PendingApproval>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    #[serde(skip)]
    pub(crate) private: Private,
}

/// What the loop needs of a run and nobody is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Private {
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) context: BTreeMap<String, String>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) cancel_requested: bool,
    pub(crate) output: Option<Value>,
    /// The request brought a key for the model's provider, and the run may still need it.
    pub(crate) has_provider_key: bool,
}

/// A run with what it said and did: the answer of the chat.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Turn {
    pub run: Run,
    pub conversation_id: ConversationId,
    /// The last message of the assistant, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Message>,
    /// The answer as JSON, where the agent has an `output_schema` and the run is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    pub tool_calls: Vec<ToolCallRow>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("no such run; `GET /v1/runs` lists yours")]
    NotFound,
    /// Another process has taken the run over, it was erased, or others have taken what was held for its step: what this
    /// process did since its last commit is void.
    #[error("what was done since the run's last commit is void: the run, or what was held for it, was taken")]
    Fenced,
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    ProviderKey(#[from] ProviderKeyError),
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error(transparent)]
    Price(#[from] PriceError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for RunError {
    fn kind(&self) -> Kind {
        match self {
            RunError::NotFound => Kind::NotFound,
            RunError::Fenced => Kind::Internal,
            RunError::Agent(error) => error.kind(),
            RunError::Conversation(error) => error.kind(),
            RunError::Message(error) => error.kind(),
            RunError::ProviderKey(error) => error.kind(),
            RunError::Tenant(error) => error.kind(),
            RunError::Usage(error) => error.kind(),
            RunError::Price(error) => error.kind(),
            RunError::Budget(error) => error.kind(),
            RunError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            RunError::NotFound => "run.not_found",
            RunError::Fenced => "run.fenced",
            RunError::Agent(error) => error.code(),
            RunError::Conversation(error) => error.code(),
            RunError::Message(error) => error.code(),
            RunError::ProviderKey(error) => error.code(),
            RunError::Tenant(error) => error.code(),
            RunError::Usage(error) => error.code(),
            RunError::Price(error) => error.code(),
            RunError::Budget(error) => error.code(),
            RunError::Db(error) => error.code(),
        }
    }
}

impl From<sqlx::Error> for RunError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    pub agent: Option<AgentId>,
    /// Of these agents only.
    pub agents: Option<Vec<AgentId>>,
    pub status: Option<RunStatus>,
    pub conversation: Option<ConversationId>,
    pub external_user_id: Option<String>,
}

pub async fn get(tx: &mut TenantTx, id: RunId) -> Result<Option<Run>, RunError> {
    let mut query = select(tx);
    query.push(" AND r.run_id = ").push_bind(id.uuid());
    query.build().fetch_optional(tx.conn()).await?.map(|row| from_row(&row)).transpose()
}

/// Newest first.
pub async fn list(tx: &mut TenantTx, filter: &RunFilter, page: PageRequest) -> Result<Page<Run>, RunError> {
    let mut query = select(tx);
    if let Some(agent) = filter.agent {
        query.push(" AND r.agent_id = ").push_bind(agent.uuid());
    }
    if let Some(agents) = &filter.agents {
        let agents: Vec<Uuid> = agents.iter().map(|agent| agent.uuid()).collect();
        query.push(" AND r.agent_id = ANY(").push_bind(agents).push(")");
    }
    if let Some(status) = filter.status {
        query.push(" AND r.status = ").push_bind(status.as_str());
    }
    if let Some(conversation) = filter.conversation {
        query.push(" AND r.conversation_id = ").push_bind(conversation.uuid());
    }
    if let Some(user) = &filter.external_user_id {
        query.push(" AND r.external_user_id = ").push_bind(user.clone());
    }
    if let Some(after) = page.after {
        query.push(" AND r.run_id < ").push_bind(after);
    }
    query.push(" ORDER BY r.run_id DESC LIMIT ").push_bind(page.rows());
    let rows = query.build().fetch_all(tx.conn()).await?;
    let runs = rows.iter().map(from_row).collect::<Result<_, _>>()?;
    Ok(Page::cut(runs, page, |run: &Run| run.id.uuid()))
}

/// A run with what it said and did so far.
pub async fn turn(tx: &mut TenantTx, id: RunId) -> Result<Turn, RunError> {
    let mut run = get(tx, id).await?.ok_or(RunError::NotFound)?;
    let message = messages::last_of_run(tx, id).await?;
    let tool_calls = tool_calls::of_run(tx, id).await?;
    let output = run.private.output.take();
    Ok(Turn { conversation_id: run.conversation_id, run, message, output, tool_calls })
}

fn select(tx: &TenantTx) -> QueryBuilder<sqlx::Postgres> {
    let mut query = QueryBuilder::new(
        "SELECT r.run_id, a.name AS agent, r.agent_id, r.revision, r.conversation_id, r.external_user_id, r.api_key_id,
                r.context, r.metadata, r.status, r.stop_reason, r.error_code, r.error_detail, r.steps, r.input_tokens,
                r.cached_input_tokens, r.output_tokens, r.fuel, r.cost, r.currency, r.cancel_requested, r.output, r.deadline,
                r.provider_key IS NOT NULL AS has_provider_key,
                r.created_at, r.started_at, r.ended_at, ",
    );
    query.push(approvals::OF_RUN).push(
        " AS pending_approvals
         FROM run r JOIN agent a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
         WHERE r.tenant_id = ",
    );
    query.push_bind(tx.tenant().uuid());
    query
}

fn from_row(row: &PgRow) -> Result<Run, RunError> {
    let broken = |what: &str| sqlx::Error::Decode(format!("a run's {what} cannot be read").into());
    let number = |name: &str| Ok::<u64, sqlx::Error>(row.try_get::<i64, _>(name)?.cast_unsigned());
    let time =
        |name: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<time::OffsetDateTime>, _>(name)?.map(Timestamp::from));
    let status: String = row.try_get("status")?;
    let stop_reason: Option<String> = row.try_get("stop_reason")?;
    let error = match (row.try_get("error_code")?, row.try_get::<Option<String>, _>("error_detail")?) {
        (Some(code), detail) => Some(Failure { code, detail: detail.unwrap_or_default() }),
        (None, _) => None::<Failure>,
    };
    let from_json = |error: serde_json::Error| sqlx::Error::Decode(Box::new(error));
    Ok(Run {
        id: row.try_get::<Uuid, _>("run_id")?.into(),
        agent: row.try_get::<String, _>("agent")?.parse().map_err(|_| broken("agent"))?,
        agent_id: row.try_get::<Uuid, _>("agent_id")?.into(),
        revision: row.try_get::<i32, _>("revision")?.cast_unsigned(),
        conversation_id: row.try_get::<Uuid, _>("conversation_id")?.into(),
        external_user_id: row.try_get("external_user_id")?,
        status: RunStatus::parse(&status).ok_or_else(|| broken("status"))?,
        stop_reason: stop_reason.as_deref().and_then(StopReason::parse),
        steps: row.try_get::<i32, _>("steps")?.cast_unsigned(),
        usage: RunUsage {
            input_tokens: number("input_tokens")?,
            cached_input_tokens: number("cached_input_tokens")?,
            output_tokens: number("output_tokens")?,
            fuel: number("fuel")?,
        },
        cost: Money { amount: Amount::rounded(row.try_get("cost")?), currency: row.try_get("currency")? },
        error,
        pending_approvals: approvals::of_run(row.try_get("pending_approvals")?).map_err(from_json)?,
        created_at: time("created_at")?.ok_or_else(|| broken("time"))?,
        started_at: time("started_at")?,
        ended_at: time("ended_at")?,
        metadata: serde_json::from_value(row.try_get("metadata")?).map_err(from_json)?,
        private: Private {
            api_key: row.try_get::<Option<Uuid>, _>("api_key_id")?.map(ApiKeyId::from),
            context: serde_json::from_value(row.try_get("context")?).map_err(from_json)?,
            deadline: time("deadline")?,
            cancel_requested: row.try_get("cancel_requested")?,
            output: row.try_get("output")?,
            has_provider_key: row.try_get("has_provider_key")?,
        },
    })
}
