//! The rows of versions that are being admitted.

use domain::{Timestamp, ToolId};
use serde_json::json;
use sqlx::types::Json;
use tenancy::TenantTx;
use tool_api::{ArtifactHash, Function, Inspection, Manifest, Rejection};

use super::CLAIM;
use crate::tools::{ToolError, VersionStatus};

/// Whether the tool has these bytes already. Then they get the new label, and a rejected version begins again. Bytes that
/// were given with another manifest are refused: what a version is does not change.
pub(super) async fn again(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    label: Option<&str>,
    manifest: Option<&Manifest>,
    now: Timestamp,
) -> Result<bool, ToolError> {
    let present = sqlx::query!(
        r#"
        SELECT status, manifest AS "manifest: Json<Manifest>" FROM tool_version
        WHERE tenant_id = $1 AND tool_id = $2 AND hash = $3
        FOR UPDATE
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(present) = present else { return Ok(false) };
    let rejected = present.status == VersionStatus::Rejected.as_str();
    if !rejected && manifest.is_some_and(|manifest| present.manifest.is_none_or(|present| present.0 != *manifest)) {
        return Err(ToolError::ManifestDiffers(hash));
    }
    sqlx::query!(
        r#"
        UPDATE tool_version
        SET label = coalesce($4, label),
            manifest = coalesce($6, manifest),
            status = CASE status WHEN 'rejected' THEN 'compiling' ELSE status END,
            claimed_until = CASE status WHEN 'rejected' THEN $5 ELSE claimed_until END,
            rejection_code = NULL,
            rejection_detail = NULL
        WHERE tenant_id = $1 AND tool_id = $2 AND hash = $3
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes(),
        label,
        now.plus(CLAIM).offset(),
        manifest.map(Json) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(true)
}

/// What came beside the bytes; and whether no version of these bytes has settled for this tenant, so that it does not learn
/// from the time whether another tenant's has. `None`: it was deleted.
pub(super) async fn beside(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
) -> Result<Option<(Option<Manifest>, bool)>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        SELECT v.manifest AS "manifest: Json<Manifest>",
               NOT EXISTS (
                   SELECT FROM tool_version o
                   WHERE o.tenant_id = v.tenant_id AND o.hash = v.hash AND o.status <> 'compiling'
               ) AS "first!"
        FROM tool_version v
        WHERE v.tenant_id = $1 AND v.tool_id = $2 AND v.hash = $3
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| (row.manifest.map(|manifest| manifest.0), row.first)))
}

pub(super) async fn insert(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    label: Option<&str>,
    manifest: Option<&Manifest>,
    bytes: i64,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        INSERT INTO tool_version
            (tenant_id, tool_id, hash, number, label, manifest, status, size_bytes, claimed_until, created_at)
        SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4, $8, 'compiling', $5, $6, $7
        FROM tool_version WHERE tenant_id = $1 AND tool_id = $2
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes().as_slice(),
        label,
        bytes,
        now.plus(CLAIM).offset(),
        now.offset(),
        manifest.map(Json) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Writes the verdict. False: another process has written one, or the version is gone.
pub(super) async fn settle(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    verdict: Result<Inspection, Rejection>,
) -> Result<bool, sqlx::Error> {
    let none: (Vec<Function>, serde_json::Value) = (Vec::new(), json!({}));
    let (status, (functions, requires), contract, rejection) = match verdict {
        Ok(seen) => (VersionStatus::Ready, (seen.functions, seen.requires), Some(seen.contract), None),
        Err(rejection) => (VersionStatus::Rejected, none, None, Some(rejection)),
    };
    let touched = sqlx::query!(
        r#"
        UPDATE tool_version
        SET status = $4, functions = $5, requires = $6, contract = $7, rejection_code = $8, rejection_detail = $9
        WHERE tenant_id = $1 AND tool_id = $2 AND hash = $3 AND status = 'compiling'
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes(),
        status.as_str(),
        Json(&functions) as _,
        requires,
        contract,
        rejection.as_ref().map(|rejection| rejection.code.as_str()),
        rejection.as_ref().map(|rejection| rejection.detail.replace('\0', "\u{fffd}")),
    )
    .execute(tx.conn())
    .await?;
    Ok(touched.rows_affected() == 1)
}

/// Sets until when a compiling version is claimed. In the past, it is taken up again.
pub(super) async fn claim(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    until: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        UPDATE tool_version SET claimed_until = $4
        WHERE tenant_id = $1 AND tool_id = $2 AND hash = $3 AND status = 'compiling'
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes(),
        until.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
