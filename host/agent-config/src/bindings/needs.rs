//! Functions that some agent calls only with a person's word.

use domain::{AgentName, FunctionName, ToolId};
use sqlx::types::Json;
use tenancy::TenantTx;

use super::{ApprovalRule, When};
use crate::agents::AgentError;

/// An agent whose active revision has calls of this function wait, whichever version of the tool it binds. Who may not
/// call it there unasked may not call it around that agent either.
pub async fn needs_approval(
    tx: &mut TenantTx,
    tool: ToolId,
    function: &FunctionName,
) -> Result<Option<AgentName>, AgentError> {
    let rows = sqlx::query!(
        r#"
        SELECT a.name, b.approval AS "approval!: Json<ApprovalRule>"
        FROM binding b
        JOIN agent a ON a.tenant_id = b.tenant_id AND a.agent_id = b.agent_id AND a.active_revision = b.revision
        WHERE b.tenant_id = $1 AND b.tool_id = $2 AND b.approval IS NOT NULL AND a.archived_at IS NULL
        ORDER BY a.name
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
    )
    .fetch_all(tx.conn())
    .await?;
    let found = rows.into_iter().find(|row| row.approval.0.of(function) == When::Always);
    Ok(found.map(|row| row.name.parse().map_err(crate::unreadable)).transpose()?)
}
