//! The life of a version: uploaded, inspected, then ready or rejected with a reason.
//!
//! The only part of this crate that commits: an inspection takes seconds, and no transaction is held across it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use domain::{Clock, Ids, TenantId, Timestamp, ToolId, ToolName};
use serde_json::json;
use sqlx::types::Json;
use tenancy::{Db, Tenant, TenantTx, tenants};
use tokio::sync::Semaphore;
use tool_api::{ArtifactHash, Function, InspectError, Inspection, Rejection, ToolInspector};

use crate::{
    artifacts, json,
    tools::{self, LABEL_BYTES_MAX, ToolError, ToolVersion, VersionRef, VersionStatus},
};

/// How long a process that admits a version and does not renew its claim is believed to live.
const CLAIM: Duration = Duration::from_secs(60);
/// How often a claim is renewed while its version waits for its turn and is inspected.
const RENEWAL: Duration = Duration::from_secs(20);
/// Inspections at once. Each holds a whole component and its code; those that wait hold a hash.
const INSPECTIONS_MAX: usize = 2;
/// Uploads of one tenant that are inspected by this process or wait for it.
const WAITING_MAX: usize = 16;

pub struct Admission {
    inspector: Arc<dyn ToolInspector>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    turns: Semaphore,
    under_way: Mutex<HashSet<UnderWay>>,
}

/// An upload that this process inspects, or will.
type UnderWay = (TenantId, ToolId, ArtifactHash);

/// Takes an upload off the list when its inspection has ended, or was dropped.
struct Listed<'a>(&'a Admission, UnderWay);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.under_way().remove(&self.1);
    }
}

/// What an upload was taken as.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Inspect it with `finish` while it is compiling.
    pub version: ToolVersion,
    /// False when the tool had these bytes already.
    pub new: bool,
}

impl Admission {
    pub fn new(inspector: Arc<dyn ToolInspector>, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        Self { inspector, clock, ids, turns: Semaphore::new(INSPECTIONS_MAX), under_way: Mutex::default() }
    }

    /// Stores the bytes and a version that is compiling; or finds the version that these bytes already are. A rejected
    /// one begins again: a newer host may take it.
    pub async fn accept(
        &self,
        tenant: &Tenant,
        tool: &ToolName,
        component: Bytes,
        label: Option<String>,
    ) -> Result<Accepted, ToolError> {
        if label.as_ref().is_some_and(|label| {
            label.is_empty() || label.len() > LABEL_BYTES_MAX || label.contains(|c: char| c.is_control())
        }) {
            return Err(ToolError::BadLabel);
        }
        refuse_too_many(&self.under_way(), tenant.id(), WAITING_MAX)?;
        let hash = ArtifactHash::of(&component);
        let now = self.clock.now();
        let mut tx = tenant.begin().await?;
        artifacts::lock(&mut tx).await?;
        let plan = tenants::get(&mut tx).await?.plan;
        let bytes = i64::try_from(component.len()).unwrap_or(i64::MAX);
        if bytes > plan.upload_bytes {
            return Err(ToolError::TooLarge { bytes, max: plan.upload_bytes });
        }
        let id = tools::ensure(&mut tx, tool, &*self.ids, now).await?;
        let new = !again(&mut tx, id, hash, label.as_deref(), now).await?;
        if new {
            let (known, stored) = artifacts::stored(&mut tx, hash).await?;
            if !known {
                if stored + bytes > plan.storage_bytes {
                    return Err(ToolError::StorageExceeded { bytes: stored + bytes, max: plan.storage_bytes });
                }
                artifacts::insert(&mut tx, hash, &component, now).await?;
            }
            insert(&mut tx, id, hash, label.as_deref(), bytes, now).await?;
        }
        let version = tools::version_of(&mut tx, id, hash).await?.ok_or_else(|| missing(tool, hash))?;
        tx.commit().await?;
        Ok(Accepted { version, new })
    }

    /// Inspects a version that is compiling and writes what it turned out to be; one that is under way already is told
    /// as it is. When this future is dropped, or the process dies, the version stays compiling until its claim has passed
    /// and `recover_one` finds it.
    pub async fn finish(&self, tenant: &Tenant, tool: &ToolName, hash: ArtifactHash) -> Result<ToolVersion, ToolError> {
        let mut tx = tenant.begin().await?;
        let id = tools::id(&mut tx, tool).await?;
        drop(tx);
        self.inspect(tenant, id, hash, WAITING_MAX).await?.ok_or_else(|| missing(tool, hash))
    }

    /// Takes up one version whose admission has stopped, if there is one.
    pub async fn recover_one(&self, db: &Db) -> Result<bool, ToolError> {
        let now = self.clock.now();
        let Some((tenant, tool, hash)) = db.claim_version(now, now.plus(CLAIM)).await? else { return Ok(false) };
        self.inspect(&tenant, tool, ArtifactHash::from_bytes(hash), usize::MAX).await?;
        Ok(true)
    }

    /// Inspects in its turn, and renews the claim until it is settled.
    async fn inspect(
        &self,
        tenant: &Tenant,
        tool: ToolId,
        hash: ArtifactHash,
        waiting_max: usize,
    ) -> Result<Option<ToolVersion>, ToolError> {
        let Some(_listed) = self.enlist((tenant.id(), tool, hash), waiting_max)? else {
            let mut tx = tenant.begin().await?;
            return tools::version_of(&mut tx, tool, hash).await;
        };
        tokio::select! {
            settled = self.inspect_in_turn(tenant, tool, hash) => settled,
            failed = self.keep_claim(tenant, tool, hash) => Err(failed),
        }
    }

    /// Returns only when the database fails; then another process may take the version up.
    async fn keep_claim(&self, tenant: &Tenant, tool: ToolId, hash: ArtifactHash) -> ToolError {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let renewed = async {
                let mut tx = tenant.begin().await?;
                claim(&mut tx, tool, hash, self.clock.now().plus(CLAIM)).await?;
                Ok::<_, ToolError>(tx.commit().await?)
            };
            if let Err(error) = renewed.await {
                return error;
            }
        }
    }

    /// `None`: it was deleted meanwhile.
    async fn inspect_in_turn(
        &self,
        tenant: &Tenant,
        tool: ToolId,
        hash: ArtifactHash,
    ) -> Result<Option<ToolVersion>, ToolError> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await.map_err(|error| ToolError::NotInspected(error.into()))?;
        let mut tx = tenant.begin().await?;
        let component = match tools::version_of(&mut tx, tool, hash).await? {
            Some(version) if version.status == VersionStatus::Compiling => {
                artifacts::component_by_hash(&mut tx, hash).await?
            }
            settled => return Ok(settled),
        };
        drop(tx);
        let Some(component) = component else { return Ok(None) };

        let verdict = match self.inspector.inspect(component).await {
            Ok(inspection) => storable(inspection),
            Err(InspectError::Rejected(rejection)) => Err(rejection),
            Err(InspectError::Failed(cause)) => {
                let mut tx = tenant.begin().await?;
                claim(&mut tx, tool, hash, self.clock.now()).await?;
                tx.commit().await?;
                return Err(ToolError::NotInspected(cause));
            }
        };
        let mut tx = tenant.begin().await?;
        settle(&mut tx, tool, hash, verdict).await?;
        let version = tools::version_of(&mut tx, tool, hash).await?;
        tx.commit().await?;
        Ok(version)
    }

    /// `None`: it is under way already.
    fn enlist(&self, upload: UnderWay, waiting_max: usize) -> Result<Option<Listed<'_>>, ToolError> {
        let mut under_way = self.under_way();
        if under_way.contains(&upload) {
            return Ok(None);
        }
        refuse_too_many(&under_way, upload.0, waiting_max)?;
        under_way.insert(upload);
        Ok(Some(Listed(self, upload)))
    }

    /// A panic of ours leaves a list that is still whole.
    fn under_way(&self) -> MutexGuard<'_, HashSet<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_too_many(under_way: &HashSet<UnderWay>, tenant: TenantId, max: usize) -> Result<(), ToolError> {
    match under_way.iter().filter(|upload| upload.0 == tenant).count() {
        count if count >= max => Err(ToolError::TooManyWaiting(count)),
        _ => Ok(()),
    }
}

fn missing(tool: &ToolName, hash: ArtifactHash) -> ToolError {
    ToolError::VersionNotFound { tool: tool.clone(), version: VersionRef::Hash(hash) }
}

/// What a tool says of itself goes into jsonb, which takes no NUL character.
fn storable(inspection: Inspection) -> Result<Inspection, Rejection> {
    let said = json!([inspection.functions, inspection.requires]);
    match json::nul(&said) {
        None => Ok(inspection),
        Some(_) => Err(Rejection::new(
            "toolbox.bad_function",
            "a description, a schema or `requires` contains a NUL character; remove it",
        )),
    }
}

/// Whether the tool has these bytes already. Then they get the new label, and a rejected version begins again.
async fn again(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    label: Option<&str>,
    now: Timestamp,
) -> Result<bool, sqlx::Error> {
    let updated = sqlx::query!(
        r#"
        UPDATE tool_version
        SET label = coalesce($4, label),
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
    )
    .execute(tx.conn())
    .await?;
    Ok(updated.rows_affected() > 0)
}

async fn insert(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    label: Option<&str>,
    bytes: i64,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        INSERT INTO tool_version
            (tenant_id, tool_id, hash, number, label, status, size_bytes, claimed_until, created_at)
        SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4, 'compiling', $5, $6, $7
        FROM tool_version WHERE tenant_id = $1 AND tool_id = $2
        "#,
        tx.tenant().uuid(),
        tool.uuid(),
        hash.as_bytes().as_slice(),
        label,
        bytes,
        now.plus(CLAIM).offset(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Writes the verdict, unless another process has written one.
async fn settle(
    tx: &mut TenantTx,
    tool: ToolId,
    hash: ArtifactHash,
    verdict: Result<Inspection, Rejection>,
) -> Result<(), sqlx::Error> {
    let none: (Vec<Function>, serde_json::Value) = (Vec::new(), json!({}));
    let (status, (functions, requires), contract, rejection) = match verdict {
        Ok(seen) => (VersionStatus::Ready, (seen.functions, seen.requires), Some(seen.contract), None),
        Err(rejection) => (VersionStatus::Rejected, none, None, Some(rejection)),
    };
    sqlx::query!(
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
    Ok(())
}

/// Sets until when a compiling version is claimed. In the past, it is taken up again.
async fn claim(tx: &mut TenantTx, tool: ToolId, hash: ArtifactHash, until: Timestamp) -> Result<(), sqlx::Error> {
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
