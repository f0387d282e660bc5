//! A turn is accepted: the user's message and the run are durable before anything is said or charged.

mod error;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_config::{
    agents::{AgentError, AgentRef},
    revisions,
};
use billing_meter::{Spender, holds};
use conversation_store::{
    conversations::{self, ConversationError, NewConversation},
    messages,
};
use domain::{
    AgentId, Amount, ApiKeyId, ConversationId, FieldError, Money, RunId, SecretString, Timestamp,
    message::{Part, Role},
};
use serde_json::{Map, Value, json};
use tenancy::{
    DbError, Room, Stamp, TakenRun, Tenant, TenantTx,
    idempotency::{self, Opened, Way},
};
use tokio::sync::watch;

use crate::{
    AgentRuntime,
    configured::{Configured, Named},
    drive::Beginning,
    fault,
    line::{self, LINE_MAX},
    load::{Basis, Read},
    request_key,
    runs::{self, Private, Run, RunError, RunStatus, RunUsage},
    spending,
};

pub use error::StartError;

/// New messages of one turn: a person says a few things at a time.
const MESSAGES_MAX: usize = 100;
/// Bytes of a turn's `context`: tools and prompts read it whole.
pub(crate) const CONTEXT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a run's `metadata`: it is told with every look at the run.
const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Under which the process that accepts a run writes it; see `Lease`.
const FIRST_FENCE: i64 = 1;
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
    /// Told by the database before the turn came: what was read since an equal one is not read again.
    pub configuration: Option<Stamp>,
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

/// A transaction that begins when it is first needed: a turn of which nothing is to be read asks its model before. There is
/// room for it from the start, so that who gets none is refused before the model is asked.
struct Late {
    room: Option<Room>,
    tx: Option<TenantTx>,
}

impl Late {
    async fn tx(&mut self) -> Result<&mut TenantTx, DbError> {
        if let Some(room) = self.room.take() {
            self.tx = Some(room.begin().await?);
        }
        // Absent where beginning has failed, which ends the turn.
        Ok(self.tx.as_mut().ok_or(sqlx::Error::PoolClosed)?)
    }

    async fn commit(self) -> Result<(), DbError> {
        self.tx.ok_or(sqlx::Error::PoolClosed)?.commit().await
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
        let full = |full| StartError::full(full, parts.ids.uuid().as_bytes()[15]);
        let arrival = self.0.places.arrive(tenant.id()).map_err(full)?;

        let run = RunId::new(parts.ids.as_ref());
        let named = Named { tenant: tenant.id(), agent: turn.agent, revision: turn.revision };
        let known = match turn.configuration {
            Some(stamp) => self.0.known.at(&named, stamp).await,
            None => None,
        };
        let mut late = Late { room: Some(tenant.room().await?), tx: None };
        if let Some(once) = &turn.once {
            let (tx, way) = (late.tx().await?, Way::Run { run, waits_until: now.plus(once.waits) });
            if let Opened::Run { run, waits_until } =
                idempotency::open(tx, &parts.master_key, &once.request, way, now).await?
            {
                let conversation = runs::get(tx, run).await?.ok_or(RunError::NotFound)?.conversation_id;
                return Ok(Started { run, conversation, before: Some(waits_until) });
            }
        }
        let configured = match known {
            Some(known) => known,
            None => {
                let tx = late.tx().await?;
                let agent = revisions::to_run(tx, &named.agent, named.revision).await?;
                let read = Arc::new(Configured::read(parts, tx, agent).await?);
                if let Some(stamp) = turn.configuration {
                    self.0.known.keep(named, stamp, read.clone()).await;
                }
                read
            }
        };
        let Configured { agent, plan, book, has_budgets, .. } = &*configured;
        if turn.allowed_agents.as_ref().is_some_and(|allowed| !allowed.contains(&agent.id)) {
            return Err(AgentError::NotFound.into());
        }
        arrival.entitled(plan);
        let (mut in_line, mut begun, mut said) = (false, None, Vec::new());
        let conversation = match turn.conversation {
            Some(id) => {
                let (tx, user) = (late.tx().await?, turn.external_user_id.as_deref());
                let conversation = conversations::lock_for_user(tx, id, user).await?;
                if conversation.agent_id != agent.id {
                    // A key that may not speak with that agent does not learn that the conversation is there.
                    let hidden = turn.allowed_agents.is_some_and(|allowed| !allowed.contains(&conversation.agent_id));
                    return Err(if hidden { ConversationError::NotFound.into() } else { StartError::OtherAgent });
                }
                in_line = match line::length(tx, id).await? {
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
                let new = begun.insert(conversations::begun(new, parts.ids.as_ref(), now)?);
                said = messages::imported(turn.history, parts.ids.as_ref())?;
                new.id
            }
        };

        if *has_budgets || plan.tokens_per_month.is_some() {
            let spender = Spender {
                agent: Some(agent.id),
                external_user: turn.external_user_id.as_deref(),
                conversation: Some(conversation),
                run: Some(run),
                tokens_per_month: plan.tokens_per_month,
            };
            let left = holds::left(late.tx().await?, run.uuid(), &spender, now).await?;
            let refused = spending::refused_at_the_door(book, &left, &agent.spec, &turn.messages);
            if let Some(exceeded) = refused.await {
                return Err(exceeded.into());
            }
        }
        let place = if in_line { None } else { arrival.place() };
        let begins = place.is_some();
        let kept = in_line.then(|| line::kept(&turn.messages));
        said.extend(line::messages_of(turn.messages, run, parts.ids.as_ref()));
        let row = Run {
            id: run,
            agent: agent.spec.name.clone(),
            agent_id: agent.id,
            revision: agent.revision,
            conversation_id: conversation,
            external_user_id: turn.external_user_id,
            status: if begins { RunStatus::Running } else { RunStatus::Queued },
            stop_reason: None,
            steps: 0,
            usage: RunUsage::default(),
            cost: Money { amount: Amount::ZERO, currency: book.currency.clone() },
            error: None,
            pending_approvals: Vec::new(),
            created_at: now,
            started_at: begins.then_some(now),
            ended_at: None,
            metadata: turn.metadata,
            private: Private {
                api_key: turn.api_key,
                context: turn.context,
                deadline: Some(now.plus(agent.spec.limits.deadline())),
                has_provider_key: turn.provider_key.is_some(),
                ..Private::default()
            },
        };
        let started = json!({"run": row, "conversation_id": conversation});
        let (durable, wait) = watch::channel(false);
        if let Some(place) = place {
            let (configured, provider_key) = (configured.clone(), turn.provider_key.clone());
            let mut read = Read::new(self, tenant.id(), Basis { run: row.clone(), configured, provider_key });
            if begun.is_none() {
                read.look_back(late.tx().await?).await?;
            }
            read.said(&said, now)?;
            // The model is asked while the turn becomes durable. Where that fails, what it says is heard by nobody.
            let taken = TakenRun { tenant: tenant.clone(), run, fence: FIRST_FENCE };
            let beginning = Beginning::Accepted { started: started.clone(), read: Box::new(read), durable: wait };
            self.drive_in_background(taken, beginning, place);
        }

        let tx = late.tx().await?;
        match &begun {
            Some(new) => conversations::insert(tx, new, &said).await?,
            None if in_line => {}
            None => drop(messages::append(tx, conversation, &said, now).await?),
        }
        self.insert(tx, &row, kept.as_ref(), &started).await?;
        if let Some(key) = &turn.provider_key {
            request_key::store(tx, &parts.master_key, run, key, now).await?;
        }
        fault::point("start.committing");
        late.commit().await?;
        fault::point("start.committed");
        match begins {
            true => drop(durable.send(true)),
            false => arrival.wait(),
        }
        Ok(Started { run, conversation, before: None })
    }

    /// A run that begins here or waits in a queue, there with what the user says in it; and its first event.
    async fn insert(
        &self,
        tx: &mut TenantTx,
        run: &Run,
        said: Option<&Value>,
        started: &Value,
    ) -> Result<(), StartError> {
        let worker = run.started_at.map(|_| self.0.worker);
        let parts = &self.0.parts;
        let leased_until = run.started_at.map(|_| parts.clock.now().plus(parts.settings.lease).offset());
        let inserted = sqlx::query!(
            r#"
            WITH accepted AS (
                INSERT INTO run (tenant_id, run_id, agent_id, revision, conversation_id, external_user_id, api_key_id,
                                 context, metadata, status, currency, leased_by, leased_until, deadline, created_at,
                                 started_at, fence, said)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
                RETURNING run_id
            )
            INSERT INTO run_event (tenant_id, run_id, seq, part, type, data)
            SELECT $1, run_id, 1, 0, 'run.started', $19 FROM accepted
            "#,
            tx.tenant().uuid(),
            run.id.uuid(),
            run.agent_id.uuid(),
            run.revision.cast_signed(),
            run.conversation_id.uuid(),
            run.external_user_id,
            run.private.api_key.map(ApiKeyId::uuid),
            json!(run.private.context),
            json!(run.metadata),
            run.status.as_str(),
            run.cost.currency,
            worker,
            leased_until,
            run.private.deadline.map(Timestamp::offset),
            run.created_at.offset(),
            run.started_at.map(Timestamp::offset),
            FIRST_FENCE,
            said,
            started,
        )
        .execute(tx.conn())
        .await;
        match inserted {
            Err(error) if DbError::violates(&error, "run_active") => Err(StartError::Busy),
            inserted => Ok(inserted.map(drop)?),
        }
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
