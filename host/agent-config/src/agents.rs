//! Agents: a name in front of a row of revisions, one of which is active.

mod spec;

use std::str::FromStr;

use domain::{
    AgentId, AgentName, FieldError, Ids, Kind, Problem, Timestamp,
    page::{Page, PageRequest},
};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use tenancy::{DbError, TenantTx, plans::Plan};
use time::OffsetDateTime;
use tool_api::inspection::FUNCTIONS_MAX;
use uuid::Uuid;

pub use spec::*;

use crate::{
    bindings::{self, Binding, BindingError},
    revisions,
    secrets::NamingRight,
    tools::ToolError,
};

/// How a path names an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentRef {
    Id(AgentId),
    Name(AgentName),
}

/// An agent at one of its revisions.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Agent {
    pub id: AgentId,
    pub revision: u32,
    pub archived: bool,
    pub created_at: Timestamp,
    /// When this revision was published.
    pub updated_at: Timestamp,
    #[serde(flatten)]
    pub spec: AgentSpec<Binding>,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("no such agent; `GET /v1/agents` lists yours")]
    NotFound,
    #[error("the agent has no revision {0}; `GET /v1/agents/{{agent}}/revisions` lists those it has")]
    RevisionNotFound(u32),
    #[error("an agent called `{0}` exists; choose another name, or change that one with PATCH")]
    NameTaken(AgentName),
    #[error("the agent cannot be saved as it is; see `errors`")]
    Invalid(Vec<FieldError>),
    #[error("the bindings give {0} functions; models take {FUNCTIONS_MAX} at most: choose some with `functions`")]
    TooManyFunctions(usize),
    #[error(transparent)]
    Binding(#[from] BindingError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for AgentError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for AgentError {
    fn kind(&self) -> Kind {
        match self {
            AgentError::NotFound | AgentError::RevisionNotFound(_) => Kind::NotFound,
            AgentError::NameTaken(_) => Kind::Conflict,
            AgentError::Invalid(_) | AgentError::TooManyFunctions(_) => Kind::Invalid,
            AgentError::Binding(error) => error.kind(),
            AgentError::Tool(error) => error.kind(),
            AgentError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AgentError::NotFound => "agent.not_found",
            AgentError::RevisionNotFound(_) => "revision.not_found",
            AgentError::NameTaken(_) => "agent.name_taken",
            AgentError::Invalid(_) => "agent.invalid",
            AgentError::TooManyFunctions(_) => "agent.too_many_functions",
            AgentError::Binding(error) => error.code(),
            AgentError::Tool(error) => error.code(),
            AgentError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let at = |pointer: &str| vec![FieldError::new(pointer, self.to_string())];
        match self {
            AgentError::Invalid(fields) => fields.clone(),
            AgentError::TooManyFunctions(_) => at("/tools"),
            AgentError::Binding(error) => error.fields(),
            AgentError::Tool(error) => error.fields(),
            AgentError::Db(error) => error.fields(),
            AgentError::NotFound | AgentError::RevisionNotFound(_) | AgentError::NameTaken(_) => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            AgentError::Db(error) => error.retry_after_seconds(),
            AgentError::Tool(error) => error.retry_after_seconds(),
            AgentError::Binding(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl FromStr for AgentRef {
    type Err = AgentError;

    /// What can be neither names no agent. A name has no `_`, so an id is never a name.
    fn from_str(text: &str) -> Result<Self, AgentError> {
        let id = text.parse().map(AgentRef::Id).ok();
        id.or_else(|| text.parse().map(AgentRef::Name).ok()).ok_or(AgentError::NotFound)
    }
}

impl AgentRef {
    fn parts(&self) -> (Option<Uuid>, Option<&str>) {
        match self {
            AgentRef::Id(id) => (Some(id.uuid()), None),
            AgentRef::Name(name) => (None, Some(name.as_str())),
        }
    }
}

/// An agent's revision as it is stored: without its bindings, which are rows of their own.
pub(crate) struct Row {
    pub(crate) agent_id: Uuid,
    pub(crate) revision: i32,
    pub(crate) body: Json<AgentSpec<Value>>,
    pub(crate) archived: bool,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
}

/// Rows with their bindings.
pub(crate) async fn shown(tx: &mut TenantTx, rows: Vec<Row>) -> Result<Vec<Agent>, AgentError> {
    let keys: Vec<_> = rows.iter().map(|row| (row.agent_id, row.revision)).collect();
    let mut tools = bindings::of_revisions(tx, &keys).await?;
    rows.into_iter()
        .map(|row| {
            let tools = tools.remove(&(row.agent_id, row.revision)).unwrap_or_default();
            row.with_tools(tools)
        })
        .collect()
}

impl Row {
    pub(crate) fn with_tools(self, tools: Vec<Binding>) -> Result<Agent, AgentError> {
        Ok(Agent {
            id: self.agent_id.into(),
            revision: u32::try_from(self.revision).map_err(crate::unreadable)?,
            archived: self.archived,
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
            spec: self.body.0.with_tools(tools),
        })
    }
}

/// Creates an agent at revision 1. `right` is what the caller may do with secrets that the bindings name.
pub async fn create(
    tx: &mut TenantTx,
    plan: &Plan,
    spec: AgentSpec,
    right: NamingRight,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<Agent, AgentError> {
    let spec = bindings::resolve(tx, plan, spec, &[], right).await?;
    let id = AgentId::new(ids);
    sqlx::query!(
        r#"
        INSERT INTO agent (tenant_id, agent_id, name, active_revision, created_at, updated_at)
        VALUES ($1, $2, $3, 1, $4, $4)
        "#,
        tx.tenant().uuid(),
        id.uuid(),
        spec.name.as_str(),
        now.offset(),
    )
    .execute(tx.conn())
    .await
    .map_err(|error| name_taken(error, &spec.name))?;
    revisions::insert(tx, id, 1, &spec, now).await?;
    Ok(Agent { id, revision: 1, archived: false, created_at: now, updated_at: now, spec })
}

/// Publishes a new revision: the active one with `patch` (RFC 7396) merged over it. A patch that changes nothing
/// publishes nothing and answers the active revision. `right` is asked for where the patch names secrets anew.
pub async fn publish(
    tx: &mut TenantTx,
    plan: &Plan,
    agent: &AgentRef,
    patch: Value,
    right: NamingRight,
    now: Timestamp,
) -> Result<Agent, AgentError> {
    let id = lock(tx, agent).await?;
    let present = get(tx, &AgentRef::Id(id)).await?;
    let spec = AgentSpec::patched(&present.spec, patch)?;
    let spec = bindings::resolve(tx, plan, spec, &present.spec.tools, right).await?;
    if spec == present.spec {
        return Ok(present);
    }
    let revision = revisions::newest(tx, id).await? + 1;
    revisions::insert(tx, id, revision, &spec, now).await?;
    point_to(tx, id, revision, &spec.name, now).await?;
    let revision = u32::try_from(revision).map_err(crate::unreadable)?;
    Ok(Agent { revision, updated_at: now, spec, ..present })
}

/// The active revision. An archived agent is not found.
pub async fn get(tx: &mut TenantTx, agent: &AgentRef) -> Result<Agent, AgentError> {
    let row = row(tx, agent, None).await?.ok_or(AgentError::NotFound)?;
    shown(tx, vec![row]).await?.pop().ok_or(AgentError::NotFound)
}

/// At the active revision, or at another.
pub(crate) async fn row(tx: &mut TenantTx, agent: &AgentRef, revision: Option<i32>) -> Result<Option<Row>, AgentError> {
    let (id, name) = agent.parts();
    let row = sqlx::query_as!(
        Row,
        r#"
        SELECT a.agent_id, r.revision, r.body AS "body: Json<AgentSpec<Value>>",
               a.archived_at IS NOT NULL AS "archived!", a.created_at, r.created_at AS updated_at
        FROM agent a
        JOIN agent_revision r
            ON r.tenant_id = a.tenant_id AND r.agent_id = a.agent_id AND r.revision = coalesce($4, a.active_revision)
        WHERE a.tenant_id = $1 AND a.archived_at IS NULL AND (a.agent_id = $2 OR a.name = $3)
        "#,
        tx.tenant().uuid(),
        id,
        name,
        revision,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row)
}

/// Agents that are not archived, newest first; of these only, where some are named.
pub async fn list(tx: &mut TenantTx, agents: Option<&[AgentId]>, page: PageRequest) -> Result<Page<Agent>, AgentError> {
    let only: Option<Vec<Uuid>> = agents.map(|agents| agents.iter().map(|agent| agent.uuid()).collect());
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT a.agent_id, r.revision, r.body AS "body: Json<AgentSpec<Value>>",
               a.archived_at IS NOT NULL AS "archived!", a.created_at, r.created_at AS updated_at
        FROM agent a
        JOIN agent_revision r
            ON r.tenant_id = a.tenant_id AND r.agent_id = a.agent_id AND r.revision = a.active_revision
        WHERE a.tenant_id = $1 AND a.archived_at IS NULL AND ($2::uuid IS NULL OR a.agent_id < $2)
            AND ($4::uuid[] IS NULL OR a.agent_id = ANY($4))
        ORDER BY a.agent_id DESC
        LIMIT $3
        "#,
        tx.tenant().uuid(),
        page.after,
        page.rows(),
        only.as_deref(),
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(Page::cut(shown(tx, rows).await?, page, |agent| agent.id.uuid()))
}

/// Takes the agent out of use and frees its name. Its revisions, conversations and runs stay.
pub async fn archive(tx: &mut TenantTx, agent: &AgentRef, now: Timestamp) -> Result<(), AgentError> {
    let (id, name) = agent.parts();
    let archived = sqlx::query!(
        r#"
        UPDATE agent SET archived_at = $4, updated_at = $4
        WHERE tenant_id = $1 AND archived_at IS NULL AND (agent_id = $2 OR name = $3)
        "#,
        tx.tenant().uuid(),
        id,
        name,
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    if archived.rows_affected() == 0 { Err(AgentError::NotFound) } else { Ok(()) }
}

/// The agent's id; until the transaction ends, nobody else publishes or activates a revision of it.
pub(crate) async fn lock(tx: &mut TenantTx, agent: &AgentRef) -> Result<AgentId, AgentError> {
    let (id, name) = agent.parts();
    sqlx::query_scalar!(
        r#"
        SELECT agent_id FROM agent
        WHERE tenant_id = $1 AND archived_at IS NULL AND (agent_id = $2 OR name = $3)
        FOR NO KEY UPDATE
        "#,
        tx.tenant().uuid(),
        id,
        name,
    )
    .fetch_optional(tx.conn())
    .await?
    .map(AgentId::from)
    .ok_or(AgentError::NotFound)
}

/// Makes a revision the active one, with the name that it holds.
pub(crate) async fn point_to(
    tx: &mut TenantTx,
    agent: AgentId,
    revision: i32,
    name: &AgentName,
    now: Timestamp,
) -> Result<(), AgentError> {
    sqlx::query!(
        r#"
        UPDATE agent SET name = $3, active_revision = $4, updated_at = $5
        WHERE tenant_id = $1 AND agent_id = $2
        "#,
        tx.tenant().uuid(),
        agent.uuid(),
        name.as_str(),
        revision,
        now.offset(),
    )
    .execute(tx.conn())
    .await
    .map_err(|error| name_taken(error, name))?;
    Ok(())
}

fn name_taken(error: sqlx::Error, name: &AgentName) -> AgentError {
    if DbError::violates(&error, "agent_name") { AgentError::NameTaken(name.clone()) } else { error.into() }
}
