//! A turn is accepted: the user's message and the run are durable before anything is said or charged.

use std::{collections::BTreeMap, time::Duration};

use agent_config::{
    agents::{self, AgentError, AgentRef},
    revisions,
};
use billing_meter::{BudgetError, Exceeded, Spender, holds, prices};
use conversation_store::{
    conversations::{self, ConversationError, NewConversation},
    messages::{self, MessageError},
};
use domain::{
    AgentId, ApiKeyId, ConversationId, FieldError, Kind, Problem, RunId, SecretString, Timestamp,
    message::{Part, Role},
};
use serde_json::{Map, Value, json};
use tenancy::{
    DbError, TakenRun, Tenant,
    idempotency::{self, IdempotencyError, Opened, Way},
    tenants::{self, TenantError},
};

use crate::{
    AgentRuntime,
    drive::Beginning,
    events::{self, NewEvent},
    fault,
    line::{self, LINE_MAX},
    request_key,
    runs::{self, RunError},
    scheduler::Full,
    spending,
};

/// New messages of one turn: a person says a few things at a time.
const MESSAGES_MAX: usize = 100;
/// Bytes of a turn's `context`: tools and prompts read it whole.
pub(crate) const CONTEXT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a run's `metadata`: it is told with every look at the run.
const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Under which the process that accepts a run writes it; see `Lease`.
const FIRST_FENCE: i64 = 1;
/// When a full queue is worth another try, in seconds: a few runs have ended by then.
const FULL_RETRY_SECONDS: u64 = 2;
/// How often a turn is tried to be put in line, when the conversation becomes busy at that moment.
const LINE_TRIES_MAX: u32 = 3;
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
    /// Whether it waits for a conversation that is busy.
    pub queue: bool,
    pub api_key: Option<ApiKeyId>,
    /// The agents that the caller's key may speak with; `None`: all.
    pub allowed_agents: Option<Vec<AgentId>>,
    /// The request's own key for the provider of the agent's model.
    pub provider_key: Option<SecretString>,
    /// Started once, however often it is asked for.
    pub once: Option<StartOnce>,
}

/// By what a turn is known again.
#[derive(Debug, Clone, Copy)]
pub struct StartOnce {
    pub request: idempotency::Request,
    /// For how long the caller waits for the run's end.
    pub waits: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub run: RunId,
    pub conversation: ConversationId,
    /// An earlier request started it, and waits for its end until then.
    pub before: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the conversation is busy with another run; wait until it ends, or cancel it")]
    Busy,
    #[error("the conversation is busy, and {LINE_MAX} runs wait for it already; wait until one ends")]
    LineFull,
    #[error(
        "{0} runs of this tenant are queued or about to be, the most that are taken; wait until some of them have begun"
    )]
    QueueFull(usize),
    #[error("this server has all the queued runs that it takes; try again in a few seconds")]
    QueuesFull,
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
    Exceeded(#[from] Exceeded),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error(transparent)]
    Idempotency(#[from] IdempotencyError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for StartError {
    fn kind(&self) -> Kind {
        match self {
            StartError::Busy => Kind::Conflict,
            StartError::LineFull | StartError::QueueFull(_) => Kind::TooMany,
            StartError::QueuesFull => Kind::Unavailable,
            StartError::OtherAgent | StartError::Invalid(_) => Kind::Invalid,
            StartError::Agent(error) => error.kind(),
            StartError::Conversation(error) => error.kind(),
            StartError::Message(error) => error.kind(),
            StartError::Tenant(error) => error.kind(),
            StartError::Run(error) => error.kind(),
            StartError::Exceeded(error) => error.kind(),
            StartError::Budget(error) => error.kind(),
            StartError::Idempotency(error) => error.kind(),
            StartError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StartError::Busy => "conversation.busy",
            StartError::LineFull => "conversation.queue_full",
            StartError::QueueFull(_) => "run.queue_full",
            StartError::QueuesFull => "runs.queue_full",
            StartError::OtherAgent => "conversation.other_agent",
            StartError::Invalid(_) => "chat.invalid",
            StartError::Agent(error) => error.code(),
            StartError::Conversation(error) => error.code(),
            StartError::Message(error) => error.code(),
            StartError::Tenant(error) => error.code(),
            StartError::Run(error) => error.code(),
            StartError::Exceeded(error) => error.code(),
            StartError::Budget(error) => error.code(),
            StartError::Idempotency(error) => error.code(),
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
            StartError::LineFull | StartError::QueueFull(_) | StartError::QueuesFull => Some(FULL_RETRY_SECONDS),
            StartError::Idempotency(error) => error.retry_after_seconds(),
            StartError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl From<Full> for StartError {
    fn from(full: Full) -> Self {
        match full {
            Full::Tenant(queued) => StartError::QueueFull(queued),
            Full::All => StartError::QueuesFull,
        }
    }
}

impl From<sqlx::Error> for StartError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl AgentRuntime {
    /// Makes a turn durable and begins to drive it, at once where there is a place for it; else it is queued.
    pub async fn start(&self, tenant: &Tenant, turn: StartRun) -> Result<Started, StartError> {
        check(&turn)?;
        if turn.queue {
            for _ in 1..LINE_TRIES_MAX {
                match self.try_start(tenant, turn.clone()).await {
                    // It was free, and another turn came first.
                    Err(StartError::Busy) => {}
                    started => return started,
                }
            }
        }
        self.try_start(tenant, turn).await
    }

    async fn try_start(&self, tenant: &Tenant, turn: StartRun) -> Result<Started, StartError> {
        let parts = &self.0.parts;
        let now = parts.clock.now();
        // Where its queue is full, it is refused before it costs a transaction.
        let arrival = self.0.places.arrive(tenant.id())?;

        let run = RunId::new(parts.ids.as_ref());
        let mut tx = tenant.begin().await?;
        if let Some(once) = &turn.once {
            let way = Way::Run { run, waits_until: now.plus(once.waits) };
            if let Opened::Run { run, waits_until } =
                idempotency::open(&mut tx, &parts.master_key, &once.request, way, now).await?
            {
                let conversation = runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?.conversation_id;
                return Ok(Started { run, conversation, before: Some(waits_until) });
            }
        }
        let agent = match turn.revision {
            None => agents::get(&mut tx, &turn.agent).await?,
            Some(revision) => revisions::get(&mut tx, &turn.agent, revision).await?,
        };
        if turn.allowed_agents.as_ref().is_some_and(|allowed| !allowed.contains(&agent.id)) {
            return Err(AgentError::NotFound.into());
        }
        let plan = tenants::get(&mut tx).await?.plan;
        arrival.entitled(&plan);
        let mut in_line = false;
        let conversation = match turn.conversation {
            Some(id) => {
                let user = turn.external_user_id.as_deref();
                let conversation = conversations::find_for_user(&mut tx, id, user).await?;
                if conversation.agent_id != agent.id {
                    // A key that may not speak with that agent does not learn that the conversation is there.
                    let hidden = turn.allowed_agents.is_some_and(|allowed| !allowed.contains(&conversation.agent_id));
                    return Err(if hidden { ConversationError::NotFound.into() } else { StartError::OtherAgent });
                }
                in_line = match line::length(&mut tx, id).await? {
                    0 => false,
                    _ if !turn.queue => return Err(StartError::Busy),
                    LINE_MAX.. => return Err(StartError::LineFull),
                    _ => true,
                };
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

        let book = prices::current(&mut tx).await.map_err(RunError::from)?;
        let spender = Spender {
            agent: Some(agent.id),
            external_user: turn.external_user_id.as_deref(),
            conversation: Some(conversation),
            run: Some(run),
            tokens_per_month: plan.tokens_per_month,
        };
        let left = holds::left(&mut tx, run.uuid(), &spender, now).await?;
        if let Some(exceeded) = spending::refused_at_the_door(&book, &left, &agent.spec, &turn.messages).await {
            return Err(exceeded.into());
        }
        let place = if in_line { None } else { arrival.place() };
        let (status, worker, leased_until) = match &place {
            Some(_) => ("running", Some(self.0.worker), Some(now.plus(parts.settings.lease).offset())),
            None => ("queued", None, None),
        };
        let inserted = sqlx::query!(
            r#"
            INSERT INTO run (tenant_id, run_id, agent_id, revision, conversation_id, external_user_id, api_key_id, context,
                             metadata, status, currency, leased_by, leased_until, deadline, created_at, started_at,
                             fence, said)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
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
            FIRST_FENCE,
            in_line.then(|| line::kept(&turn.messages)),
        )
        .execute(tx.conn())
        .await;
        match inserted {
            Err(error) if DbError::violates(&error, "run_active") => return Err(StartError::Busy),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        if let Some(key) = &turn.provider_key {
            request_key::store(&mut tx, &parts.master_key, run, key, now).await?;
        }
        if !in_line {
            let said = line::messages_of(turn.messages, run, parts.ids.as_ref());
            messages::append(&mut tx, conversation, &said, now).await?;
        }
        let told = runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?;
        let started = json!({"run": told, "conversation_id": conversation});
        let event = NewEvent::Event { seq: 1, kind: "run.started", data: started.clone() };
        events::append(&mut tx, run, &[event]).await?;
        fault::point("start.committing");
        tx.commit().await?;
        fault::point("start.committed");

        match place {
            Some(place) => {
                let taken = TakenRun { tenant: tenant.clone(), run, fence: FIRST_FENCE };
                self.drive_in_background(taken, Beginning::Accepted(started), place);
            }
            None => arrival.wait(),
        }
        Ok(Started { run, conversation, before: None })
    }
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
