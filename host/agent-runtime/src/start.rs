//! A turn is accepted: the user's message and the run are durable before anything is said or charged.

use std::collections::BTreeMap;

use agent_config::{
    agents::{self, AgentError, AgentRef},
    revisions,
};
use billing_meter::prices;
use conversation_store::{
    conversations::{self, ConversationError, NewConversation},
    messages::{self, MessageError, NewMessage},
};
use domain::{
    AgentId, ApiKeyId, ConversationId, FieldError, Kind, MessageId, Problem, RunId,
    message::{Part, Role},
};
use serde_json::{Map, Value, json};
use tenancy::{
    DbError, Tenant, TenantTx,
    tenants::{self, TenantError},
};

use crate::{
    AgentRuntime,
    events::{self, NewEvent},
    runs::{self, RunError},
};

/// New messages of one turn: a person says a few things at a time.
const MESSAGES_MAX: usize = 100;
/// Bytes of a turn's `context`: tools and prompts read it whole.
pub(crate) const CONTEXT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a run's `metadata`: it is told with every look at the run.
const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Longest `external_user_id`.
const EXTERNAL_USER_ID_BYTES_MAX: usize = 256;

/// A turn as the caller asks for it.
#[derive(Debug, Clone)]
pub struct StartRun {
    pub agent: AgentRef,
    /// The active one when absent.
    pub revision: Option<u32>,
    /// A new one when absent.
    pub conversation: Option<ConversationId>,
    /// What a new conversation begins with.
    pub history: Vec<(Role, Vec<Part>)>,
    /// What the user says now: one message or more.
    pub messages: Vec<Vec<Part>>,
    pub external_user_id: Option<String>,
    pub context: BTreeMap<String, String>,
    pub metadata: Map<String, Value>,
    pub api_key: Option<ApiKeyId>,
    /// The agents that the caller's key may speak with; `None`: all.
    pub allowed_agents: Option<Vec<AgentId>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub run: RunId,
    pub conversation: ConversationId,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the conversation is busy with another run; wait until it ends, or cancel it")]
    Busy,
    #[error("the plan allows {0} runs at once; wait until one ends")]
    TooManyRuns(i32),
    #[error("the conversation is with another agent; start a new one by leaving `conversation_id` out")]
    OtherAgent,
    #[error("the turn cannot be started as it is; see `errors`")]
    Invalid(Vec<FieldError>),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for StartError {
    fn kind(&self) -> Kind {
        match self {
            StartError::Busy => Kind::Conflict,
            StartError::TooManyRuns(_) => Kind::TooMany,
            StartError::OtherAgent | StartError::Invalid(_) => Kind::Invalid,
            StartError::Agent(error) => error.kind(),
            StartError::Conversation(error) => error.kind(),
            StartError::Message(error) => error.kind(),
            StartError::Tenant(error) => error.kind(),
            StartError::Run(error) => error.kind(),
            StartError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StartError::Busy => "conversation.busy",
            StartError::TooManyRuns(_) => "run.too_many",
            StartError::OtherAgent => "conversation.other_agent",
            StartError::Invalid(_) => "chat.invalid",
            StartError::Agent(error) => error.code(),
            StartError::Conversation(error) => error.code(),
            StartError::Message(error) => error.code(),
            StartError::Tenant(error) => error.code(),
            StartError::Run(error) => error.code(),
            StartError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            StartError::Invalid(fields) => fields.clone(),
            StartError::Agent(error) => error.fields(),
            StartError::Message(error) => error.fields(),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            StartError::TooManyRuns(_) => Some(1),
            StartError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for StartError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl AgentRuntime {
    /// Makes a turn durable and begins to drive it, at once where this process has room.
    pub async fn start(&self, tenant: &Tenant, turn: StartRun) -> Result<Started, StartError> {
        check(&turn)?;
        let parts = &self.0.parts;
        let now = parts.clock.now();
        let permit = self.0.capacity.clone().try_acquire_owned().ok();

        let mut tx = tenant.begin().await?;
        let agent = match turn.revision {
            None => agents::get(&mut tx, &turn.agent).await?,
            Some(revision) => revisions::get(&mut tx, &turn.agent, revision).await?,
        };
        if turn.allowed_agents.as_ref().is_some_and(|allowed| !allowed.contains(&agent.id)) {
            return Err(AgentError::NotFound.into());
        }
        refuse_too_many(&mut tx).await?;
        let conversation = match turn.conversation {
            Some(id) => {
                let user = turn.external_user_id.as_deref();
                let conversation = conversations::find_for_user(&mut tx, id, user).await?;
                if conversation.agent_id != agent.id {
                    // A key that may not speak with that agent does not learn that the conversation is there.
                    let hidden = turn.allowed_agents.is_some_and(|allowed| !allowed.contains(&conversation.agent_id));
                    return Err(if hidden { ConversationError::NotFound.into() } else { StartError::OtherAgent });
                }
                id
            }
            None => {
                let new = NewConversation {
                    agent_id: agent.id,
                    external_user_id: turn.external_user_id.clone(),
                    title: None,
                    metadata: Map::new(),
                };
                let id = conversations::create(&mut tx, new, parts.ids.as_ref(), now).await?.id;
                messages::import(&mut tx, id, turn.history, parts.ids.as_ref(), now).await?;
                id
            }
        };

        let run = RunId::new(parts.ids.as_ref());
        let book = prices::current(&mut tx).await.map_err(RunError::from)?;
        let (status, worker, leased_until) = match &permit {
            Some(_) => ("running", Some(self.0.worker), Some(now.plus(parts.settings.lease).offset())),
            None => ("queued", None, None),
        };
        let inserted = sqlx::query!(
            r#"
            INSERT INTO run (tenant_id, run_id, agent_id, revision, conversation_id, external_user_id, api_key_id, context,
                             metadata, status, currency, leased_by, leased_until, deadline, created_at, started_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            agent.id.uuid(),
            agent.revision.cast_signed(),
            conversation.uuid(),
            turn.external_user_id,
            turn.api_key.map(ApiKeyId::uuid),
            json!(turn.context),
            Value::Object(turn.metadata),
            status,
            book.currency,
            worker,
            leased_until,
            now.plus(agent.spec.limits.deadline()).offset(),
            now.offset(),
            worker.map(|_| now.offset()),
        )
        .execute(tx.conn())
        .await;
        match inserted {
            Err(error) if DbError::violates(&error, "run_active") => return Err(StartError::Busy),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let said: Vec<NewMessage> = turn
            .messages
            .into_iter()
            .map(|parts_said| NewMessage {
                id: MessageId::new(parts.ids.as_ref()),
                role: Role::User,
                parts: parts_said,
                run_id: Some(run),
            })
            .collect();
        messages::append(&mut tx, conversation, &said, now).await?;
        let told = runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?;
        let started = json!({"run": told, "conversation_id": conversation});
        let event = NewEvent::Event { seq: 1, kind: "run.started", data: started.clone() };
        events::append(&mut tx, run, &[event]).await?;
        tx.commit().await?;

        if let Some(permit) = permit {
            self.drive_in_background(tenant.clone(), run, Some(started), permit);
        }
        Ok(Started { run, conversation })
    }
}

/// A bound on what one tenant takes of a process, not an invariant: starts at the same moment do not see each other, and
/// may pass together.
async fn refuse_too_many(tx: &mut TenantTx) -> Result<(), StartError> {
    let plan = tenants::get(tx).await?.plan;
    let active = sqlx::query_scalar!(
        r#"SELECT count(*) AS "active!" FROM run WHERE tenant_id = $1 AND status IN ('queued', 'running')"#,
        tx.tenant().uuid(),
    )
    .fetch_one(tx.conn())
    .await?;
    if active >= i64::from(plan.concurrent_runs) { Err(StartError::TooManyRuns(plan.concurrent_runs)) } else { Ok(()) }
}

fn check(turn: &StartRun) -> Result<(), StartError> {
    let mut wrong = Vec::new();
    if turn.messages.is_empty() || turn.messages.iter().any(Vec::is_empty) {
        wrong.push(FieldError::new("/message", "say something: a text, or parts"));
    }
    if turn.messages.len() > MESSAGES_MAX {
        wrong.push(FieldError::new("/messages", format!("more than {MESSAGES_MAX} new messages; send fewer")));
    }
    for (at, parts) in turn.messages.iter().enumerate() {
        wrong.extend(messages::check_parts(&format!("/messages/{at}"), parts));
    }
    if json!(turn.context).to_string().len() > CONTEXT_BYTES_MAX {
        wrong.push(FieldError::new("/context", format!("more than {CONTEXT_BYTES_MAX} bytes of JSON; send less")));
    }
    if json!(turn.metadata).to_string().len() > METADATA_BYTES_MAX {
        wrong.push(FieldError::new("/metadata", format!("more than {METADATA_BYTES_MAX} bytes of JSON; send less")));
    }
    if let Some(user) = &turn.external_user_id
        && (user.is_empty() || user.len() > EXTERNAL_USER_ID_BYTES_MAX || user.chars().any(char::is_control))
    {
        let detail = format!("1 to {EXTERNAL_USER_ID_BYTES_MAX} bytes without control characters");
        wrong.push(FieldError::new("/external_user_id", detail));
    }
    let nul = turn.context.iter().any(|(key, value)| key.contains('\0') || value.contains('\0'));
    if nul || domain::nul::replace(&mut Value::Object(turn.metadata.clone())) {
        wrong.push(FieldError::new("", "`context` and `metadata` cannot hold the character U+0000"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(StartError::Invalid(wrong)) }
}
