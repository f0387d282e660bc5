//! Tool calls: what was asked, what it came to, what it consumed and what it cost.

use domain::{
    AgentId, Amount, CallId, FunctionName, Money, RunId, Timestamp, ToolName,
    page::{Page, PageRequest},
};
use serde::Serialize;
use serde_json::Value;
use sqlx::{QueryBuilder, Row as _, postgres::PgRow};
use tenancy::TenantTx;
use tool_api::{ArtifactHash, Outcome, Receipt};
use uuid::Uuid;

use crate::{
    approvals::{self, Approval},
    runs::RunError,
};

/// One call, as it is stored and told.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ToolCallRow {
    pub id: CallId,
    /// Absent for a direct call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
    /// As the model named it, where no binding has that name.
    pub tool: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<ArtifactHash>,
    pub function: String,
    #[schema(value_type = Object)]
    pub arguments: Value,
    pub outcome: Outcome,
    /// Absent when the call did not begin.
    pub receipt: Option<BilledReceipt>,
    /// Who decided about it, where somebody had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// What the host gave to it is kept, and it can be run again on that.
    pub recorded: bool,
    pub created_at: Timestamp,
}

/// A receipt with its price.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct BilledReceipt {
    #[serde(flatten)]
    pub receipt: Receipt,
    pub price: Money,
    /// The version of the price book.
    pub price_book: u32,
    /// Who allowed it, where somebody had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
}

/// A call to be stored.
pub(crate) struct NewToolCall<'c> {
    pub(crate) id: CallId,
    pub(crate) tool: &'c str,
    pub(crate) function: &'c str,
    pub(crate) artifact: Option<ArtifactHash>,
    pub(crate) arguments: &'c Value,
    pub(crate) outcome: &'c Outcome,
    pub(crate) receipt: Option<&'c Receipt>,
    pub(crate) price: Amount,
}

/// What a step's calls, or a direct call, have in common.
pub(crate) struct Origin<'o> {
    pub(crate) run: Option<(RunId, u32)>,
    pub(crate) agent: Option<AgentId>,
    pub(crate) external_user_id: Option<&'o str>,
    pub(crate) currency: &'o str,
    pub(crate) price_book: u32,
}

/// Writes calls in one statement.
pub(crate) async fn record(
    tx: &mut TenantTx,
    origin: &Origin<'_>,
    calls: &[NewToolCall<'_>],
    now: Timestamp,
) -> Result<(), RunError> {
    if calls.is_empty() {
        return Ok(());
    }
    let json = |value: serde_json::Result<Value>| value.map_err(|error| sqlx::Error::Encode(Box::new(error)));
    let outcomes = calls.iter().map(|call| json(serde_json::to_value(call.outcome))).collect::<Result<Vec<_>, _>>()?;
    let receipts = calls
        .iter()
        .map(|call| call.receipt.map(|receipt| json(serde_json::to_value(receipt))).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    sqlx::query!(
        r#"
        INSERT INTO tool_call (tenant_id, run_id, step, agent_id, external_user_id, currency, price_book, created_at,
                               call_id, tool, hash, function, arguments, status, outcome, receipt, price)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, call_id, tool, hash, function, arguments, status, outcome, receipt, price
        FROM unnest($9::uuid[], $10::text[], $11::bytea[], $12::text[], $13::jsonb[], $14::text[], $15::jsonb[],
                    $16::jsonb[], $17::numeric[])
             AS c (call_id, tool, hash, function, arguments, status, outcome, receipt, price)
        "#,
        tx.tenant().uuid(),
        origin.run.map(|(run, _)| run.uuid()),
        origin.run.map(|(_, step)| step.cast_signed()),
        origin.agent.map(AgentId::uuid),
        origin.external_user_id,
        origin.currency,
        origin.price_book.cast_signed(),
        now.offset(),
        &calls.iter().map(|call| call.id.uuid()).collect::<Vec<_>>(),
        &calls.iter().map(|call| call.tool.to_owned()).collect::<Vec<_>>(),
        &calls.iter().map(|call| call.artifact.map(|hash| hash.as_bytes().to_vec())).collect::<Vec<_>>()
            as &[Option<Vec<u8>>],
        &calls.iter().map(|call| call.function.to_owned()).collect::<Vec<_>>(),
        &calls.iter().map(|call| call.arguments.clone()).collect::<Vec<_>>(),
        &calls.iter().map(|call| call.outcome.status.as_str().to_owned()).collect::<Vec<_>>(),
        &outcomes,
        &receipts as &[Option<Value>],
        &calls.iter().map(|call| call.price.decimal()).collect::<Vec<_>>(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Which calls to list.
#[derive(Debug, Clone, Default)]
pub struct ToolCallFilter {
    pub tool: Option<ToolName>,
    pub version: Option<ArtifactHash>,
    pub function: Option<FunctionName>,
    pub status: Option<tool_api::Status>,
    pub run: Option<RunId>,
    pub agent: Option<AgentId>,
    /// Of these agents only.
    pub agents: Option<Vec<AgentId>>,
    pub external_user_id: Option<String>,
}

pub async fn get(tx: &mut TenantTx, id: CallId) -> Result<Option<ToolCallRow>, RunError> {
    let mut query = select(tx);
    query.push(" AND call_id = ").push_bind(id.uuid());
    query.build().fetch_optional(tx.conn()).await?.map(|row| from_row(&row)).transpose()
}

/// Newest first.
pub async fn list(
    tx: &mut TenantTx,
    filter: &ToolCallFilter,
    page: PageRequest,
) -> Result<Page<ToolCallRow>, RunError> {
    let mut query = select(tx);
    if let Some(tool) = &filter.tool {
        query.push(" AND tool = ").push_bind(tool.to_string());
    }
    if let Some(version) = filter.version {
        query.push(" AND hash = ").push_bind(version.as_bytes().to_vec());
    }
    if let Some(function) = &filter.function {
        query.push(" AND function = ").push_bind(function.to_string());
    }
    if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_str());
    }
    if let Some(run) = filter.run {
        query.push(" AND run_id = ").push_bind(run.uuid());
    }
    if let Some(agent) = filter.agent {
        query.push(" AND agent_id = ").push_bind(agent.uuid());
    }
    if let Some(agents) = &filter.agents {
        let agents: Vec<Uuid> = agents.iter().map(|agent| agent.uuid()).collect();
        query.push(" AND agent_id = ANY(").push_bind(agents).push(")");
    }
    if let Some(user) = &filter.external_user_id {
        query.push(" AND external_user_id = ").push_bind(user.clone());
    }
    if let Some(after) = page.after {
        query.push(" AND call_id < ").push_bind(after);
    }
    query.push(" ORDER BY call_id DESC LIMIT ").push_bind(page.rows());
    let rows = query.build().fetch_all(tx.conn()).await?;
    let calls = rows.iter().map(from_row).collect::<Result<_, _>>()?;
    Ok(Page::cut(calls, page, |call: &ToolCallRow| call.id.uuid()))
}

/// A run's calls, in the order they were asked for.
pub(crate) async fn of_run(tx: &mut TenantTx, run: RunId) -> Result<Vec<ToolCallRow>, RunError> {
    let mut query = select(tx);
    query.push(" AND run_id = ").push_bind(run.uuid()).push(" ORDER BY call_id");
    query.build().fetch_all(tx.conn()).await?.iter().map(from_row).collect()
}

fn select(tx: &TenantTx) -> QueryBuilder<sqlx::Postgres> {
    let mut query = QueryBuilder::new(
        "SELECT call_id, run_id, step, agent_id, external_user_id, tool, hash, function, arguments, outcome, receipt,
                price, currency, price_book, created_at, ",
    );
    query.push(approvals::OF_CALL).push(
        " AS approval,
                EXISTS (SELECT FROM recording r WHERE r.tenant_id = tool_call.tenant_id
                                                  AND r.call_id = tool_call.call_id) AS recorded
         FROM tool_call WHERE tenant_id = ",
    );
    query.push_bind(tx.tenant().uuid());
    query
}

fn from_row(row: &PgRow) -> Result<ToolCallRow, RunError> {
    let from_json = |error: serde_json::Error| sqlx::Error::Decode(Box::new(error));
    let receipt = row
        .try_get::<Option<Value>, _>("receipt")?
        .map(serde_json::from_value::<Receipt>)
        .transpose()
        .map_err(from_json)?;
    let price = Money { amount: Amount::rounded(row.try_get("price")?), currency: row.try_get("currency")? };
    let price_book = row.try_get::<i32, _>("price_book")?.cast_unsigned();
    let approval = approvals::of_call(row.try_get("approval")?).map_err(from_json)?;
    let hash = row.try_get::<Option<Vec<u8>>, _>("hash")?;
    Ok(ToolCallRow {
        id: row.try_get::<Uuid, _>("call_id")?.into(),
        run: row.try_get::<Option<Uuid>, _>("run_id")?.map(RunId::from),
        step: row.try_get::<Option<i32>, _>("step")?.map(i32::cast_unsigned),
        agent_id: row.try_get::<Option<Uuid>, _>("agent_id")?.map(AgentId::from),
        external_user_id: row.try_get("external_user_id")?,
        tool: row.try_get("tool")?,
        version: hash.and_then(|hash| Some(ArtifactHash::from_bytes(hash.try_into().ok()?))),
        function: row.try_get("function")?,
        arguments: row.try_get("arguments")?,
        outcome: serde_json::from_value(row.try_get("outcome")?).map_err(from_json)?,
        receipt: receipt.map(|receipt| BilledReceipt { receipt, price, price_book, approval: approval.clone() }),
        approval,
        recorded: row.try_get("recorded")?,
        created_at: row.try_get::<time::OffsetDateTime, _>("created_at")?.into(),
    })
}
