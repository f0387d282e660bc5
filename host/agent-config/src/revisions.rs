//! Revisions of an agent: what it was at a time. They never change.

use domain::{
    AgentId, Timestamp,
    page::{Page, PageRequest},
};
use serde_json::Value;
use sqlx::types::Json;
use tenancy::TenantTx;
use uuid::Uuid;

use crate::{
    agents::{self, Agent, AgentError, AgentRef, AgentSpec, Row},
    bindings::{self, Binding, BoundFunction},
};

/// The revisions of an agent, newest first. `page.after` is a revision's number as a UUID.
pub async fn list(tx: &mut TenantTx, agent: &AgentRef, page: PageRequest) -> Result<Page<Agent>, AgentError> {
    let agent = agents::get(tx, agent).await?;
    // A place that is no number lies behind them all.
    let before = page.after.map(|after| i32::try_from(after.as_u128()).unwrap_or(0));
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT a.agent_id, r.revision, r.body AS "body: Json<AgentSpec<Value>>",
               a.archived_at IS NOT NULL AS "archived!", a.created_at, r.created_at AS updated_at
        FROM agent a
        JOIN agent_revision r ON r.tenant_id = a.tenant_id AND r.agent_id = a.agent_id
        WHERE a.tenant_id = $1 AND a.agent_id = $2 AND ($3::integer IS NULL OR r.revision < $3)
        ORDER BY r.revision DESC
        LIMIT $4
        "#,
        tx.tenant().uuid(),
        agent.id.uuid(),
        before,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(Page::cut(agents::shown(tx, rows).await?, page, |agent| Uuid::from_u128(agent.revision.into())))
}

/// One revision of an agent that is not archived.
pub async fn get(tx: &mut TenantTx, agent: &AgentRef, revision: u32) -> Result<Agent, AgentError> {
    let agent = agents::get(tx, agent).await?;
    if agent.revision == revision { Ok(agent) } else { pinned(tx, agent.id, revision).await }
}

/// The revision that a run is pinned to. Also of an archived agent: its runs go on.
pub async fn pinned(tx: &mut TenantTx, agent: AgentId, revision: u32) -> Result<Agent, AgentError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        SELECT a.agent_id, r.revision, r.body AS "body: Json<AgentSpec<Value>>",
               a.archived_at IS NOT NULL AS "archived!", a.created_at, r.created_at AS updated_at
        FROM agent a
        JOIN agent_revision r ON r.tenant_id = a.tenant_id AND r.agent_id = a.agent_id
        WHERE a.tenant_id = $1 AND a.agent_id = $2 AND r.revision = $3
        "#,
        tx.tenant().uuid(),
        agent.uuid(),
        number(revision)?,
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(AgentError::RevisionNotFound(revision))?;
    agents::shown(tx, vec![row]).await?.pop().ok_or(AgentError::RevisionNotFound(revision))
}

/// Makes an older (or newer) revision the active one; the agent takes back the name that it held.
pub async fn activate(tx: &mut TenantTx, agent: &AgentRef, revision: u32, now: Timestamp) -> Result<Agent, AgentError> {
    let id = agents::lock(tx, agent).await?;
    let chosen = get(tx, &AgentRef::Id(id), revision).await?;
    agents::point_to(tx, id, number(revision)?, &chosen.spec.name, now).await?;
    Ok(chosen)
}

/// The agent as a turn finds it, at its active revision or at another. What a run calls are `functions`: `tools` are left out.
pub async fn to_run(tx: &mut TenantTx, agent: &AgentRef, revision: Option<u32>) -> Result<Agent, AgentError> {
    match (agents::row(tx, agent, revision.map(number).transpose()?).await?, revision) {
        (Some(row), _) => row.with_tools(Vec::new()),
        (None, None) => Err(AgentError::NotFound),
        // The agent is missing, or only its revision.
        (None, Some(revision)) => get(tx, agent, revision).await,
    }
}

/// What a run of a revision may call, in the order of its bindings.
pub async fn functions(tx: &mut TenantTx, agent: AgentId, revision: u32) -> Result<Vec<BoundFunction>, AgentError> {
    bindings::functions(tx, agent, number(revision)?).await
}

/// The number of the newest revision.
pub(crate) async fn newest(tx: &mut TenantTx, agent: AgentId) -> Result<i32, AgentError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT max(revision) AS "newest!" FROM agent_revision WHERE tenant_id = $1 AND agent_id = $2"#,
        tx.tenant().uuid(),
        agent.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

pub(crate) async fn insert(
    tx: &mut TenantTx,
    agent: AgentId,
    revision: i32,
    spec: &AgentSpec<Binding>,
    now: Timestamp,
) -> Result<(), AgentError> {
    let body = spec.clone().with_tools(Vec::<Value>::new());
    sqlx::query!(
        r#"
        INSERT INTO agent_revision (tenant_id, agent_id, revision, body, created_at)
        VALUES ($1, $2, $3, $4, $5)
        "#,
        tx.tenant().uuid(),
        agent.uuid(),
        revision,
        Json(&body) as _,
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    bindings::insert(tx, agent, revision, &spec.tools).await
}

fn number(revision: u32) -> Result<i32, AgentError> {
    i32::try_from(revision).map_err(|_| AgentError::RevisionNotFound(revision))
}
