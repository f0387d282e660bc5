//! Components' bytes, by the hash of their content. Per tenant, so that having them says nothing of another tenant.

use bytes::Bytes;
use domain::{Timestamp, ToolName};
use tenancy::TenantTx;
use tool_api::ArtifactHash;

use crate::tools::{self, ToolError, VersionRef};

/// Serialises what adds and removes a tenant's artifacts, so that their sum stays true and none is swept while another
/// transaction begins to use it.
pub(crate) async fn lock(tx: &mut TenantTx) -> Result<(), sqlx::Error> {
    let name = format!("artifacts/{}", tx.tenant());
    sqlx::query!(r#"SELECT pg_advisory_xact_lock(hashtextextended($1, 0)) AS "locked!: ()""#, name)
        .fetch_one(tx.conn())
        .await?;
    Ok(())
}

/// The bytes of a version.
pub async fn component(tx: &mut TenantTx, tool: &ToolName, version: VersionRef) -> Result<Bytes, ToolError> {
    let found = tools::version(tx, tool, version).await?;
    let bytes = component_by_hash(tx, found.version).await?;
    bytes.ok_or_else(|| ToolError::VersionNotFound { tool: tool.clone(), version })
}

/// The bytes of this hash, where the tenant has them.
pub async fn component_by_hash(tx: &mut TenantTx, hash: ArtifactHash) -> Result<Option<Bytes>, ToolError> {
    let bytes = sqlx::query_scalar!(
        "SELECT bytes FROM artifact WHERE tenant_id = $1 AND hash = $2",
        tx.tenant().uuid(),
        hash.as_bytes(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(bytes.map(Bytes::from))
}

/// Whether the tenant has these bytes already, and how many bytes it stores in all.
pub(crate) async fn stored(tx: &mut TenantTx, hash: ArtifactHash) -> Result<(bool, i64), sqlx::Error> {
    let row = sqlx::query!(
        r#"
        SELECT coalesce(bool_or(hash = $2), false) AS "known!", coalesce(sum(octet_length(bytes)), 0)::bigint AS "bytes!"
        FROM artifact WHERE tenant_id = $1
        "#,
        tx.tenant().uuid(),
        hash.as_bytes(),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok((row.known, row.bytes))
}

pub(crate) async fn insert(
    tx: &mut TenantTx,
    hash: ArtifactHash,
    component: &Bytes,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO artifact (tenant_id, hash, bytes, created_at) VALUES ($1, $2, $3, $4)",
        tx.tenant().uuid(),
        hash.as_bytes(),
        component.as_ref(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Removes the artifacts that no version uses.
pub(crate) async fn sweep(tx: &mut TenantTx) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        DELETE FROM artifact a
        WHERE a.tenant_id = $1
            AND NOT EXISTS (SELECT FROM tool_version v WHERE v.tenant_id = a.tenant_id AND v.hash = a.hash)
        "#,
        tx.tenant().uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
