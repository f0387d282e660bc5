//! Components' bytes, by the hash of their content. Per tenant, so that having them says nothing of another tenant.

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Timestamp, ToolName};
use sqlx::types::Json;
use tenancy::{Tenant, TenantTx};
use tool_api::{ArtifactHash, ComponentSource, HostError, Manifest, Upload};

use crate::tools::{self, ToolError, VersionRef};

/// The bytes of a component of a tenant, read in a transaction of their own when they are asked for.
#[derive(Debug, Clone)]
pub struct StoredComponent {
    tenant: Tenant,
    hash: ArtifactHash,
}

impl StoredComponent {
    pub(crate) fn new(tenant: &Tenant, hash: ArtifactHash) -> Self {
        Self { tenant: tenant.clone(), hash }
    }
}

#[async_trait]
impl ComponentSource for StoredComponent {
    async fn component(&self) -> Result<Option<Bytes>, HostError> {
        let mut tx = self.tenant.begin().await.map_err(|error| HostError(error.into()))?;
        component_by_hash(&mut tx, self.hash).await.map_err(|error| HostError(error.into()))
    }
}

/// What an inspector needs to bring the code of a ready version to its host. `None`: the tenant has none of these bytes.
pub async fn to_inspect(tenant: &Tenant, hash: ArtifactHash) -> Result<Option<(Upload, StoredComponent)>, ToolError> {
    let mut tx = tenant.begin().await?;
    // Any tool's manifest serves: it describes functions, and the code is the same.
    let row = sqlx::query!(
        r#"
        SELECT manifest AS "manifest: Json<Manifest>" FROM tool_version
        WHERE tenant_id = $1 AND hash = $2 AND status = 'ready'
        ORDER BY tool_id
        LIMIT 1
        "#,
        tx.tenant().uuid(),
        hash.as_bytes(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| {
        let manifest = row.manifest.map(|manifest| manifest.0);
        let upload = Upload { tenant: tenant.id(), artifact: hash, manifest, first: false };
        (upload, StoredComponent::new(tenant, hash))
    }))
}

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

/// Whether the tenant has these bytes already.
pub(crate) async fn known(tx: &mut TenantTx, hash: ArtifactHash) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM artifact WHERE tenant_id = $1 AND hash = $2) AS "known!""#,
        tx.tenant().uuid(),
        hash.as_bytes(),
    )
    .fetch_one(tx.conn())
    .await
}

/// Refuses when what the tenant stores, its key-value entries included, and `more` would pass `max`.
pub(crate) async fn check_room(tx: &mut TenantTx, more: i64, max: i64) -> Result<(), ToolError> {
    let stored = sqlx::query_scalar!(
        r#"
        SELECT (SELECT coalesce(sum(octet_length(bytes)), 0) FROM artifact WHERE tenant_id = $1)::bigint
               + coalesce((SELECT bytes FROM kv_usage WHERE tenant_id = $1), 0) AS "bytes!"
        "#,
        tx.tenant().uuid(),
    )
    .fetch_one(tx.conn())
    .await?;
    let bytes = stored.saturating_add(more);
    if bytes > max { Err(ToolError::StorageExceeded { bytes, max }) } else { Ok(()) }
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
