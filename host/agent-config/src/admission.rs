//! The life of a version: uploaded, inspected, then ready or rejected with a reason.
//!
//! The only part of this crate that commits: an inspection takes seconds, and no transaction is held across it.

mod rows;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use domain::{Clock, FieldError, Ids, TenantId, ToolId, ToolName};
use serde_json::json;
use tenancy::{Db, Tenant, tenants};
use tool_api::{ArtifactHash, InspectError, Inspection, Manifest, Rejection, ToolInspector, Upload};

use crate::{
    artifacts::{self, StoredComponent},
    json, key_value,
    requires::Requires,
    tools::{self, LABEL_BYTES_MAX, ToolError, ToolVersion, VersionRef, VersionStatus},
    webhooks::{EventKind, Notice, deliveries},
};

/// How long a process that admits a version and does not renew its claim is believed to live.
const CLAIM: Duration = Duration::from_secs(60);
/// How often a claim is renewed while its version waits for its turn and is inspected.
const RENEWAL: Duration = Duration::from_secs(20);
/// Bytes of a manifest as JSON: a description for each of the functions that a tool may have.
const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Uploads of one tenant that are inspected by this process or wait for it.
const WAITING_MAX: usize = 16;

pub struct Admission {
    inspector: Arc<dyn ToolInspector>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
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
        Self { inspector, clock, ids, under_way: Mutex::default() }
    }

    /// Stores the bytes and a version that is compiling; or finds the version that these bytes already are. A rejected
    /// one begins again, with its new manifest: a newer host may take it.
    pub async fn accept(
        &self,
        tenant: &Tenant,
        tool: &ToolName,
        component: Bytes,
        label: Option<String>,
        manifest: Option<Manifest>,
    ) -> Result<Accepted, ToolError> {
        if label.as_ref().is_some_and(|label| {
            label.is_empty() || label.len() > LABEL_BYTES_MAX || label.contains(|c: char| c.is_control())
        }) {
            return Err(ToolError::BadLabel);
        }
        manifest.as_ref().map_or(Ok(()), check_manifest).map_err(ToolError::BadManifest)?;
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
        let new = !rows::again(&mut tx, id, hash, label.as_deref(), manifest.as_ref(), now).await?;
        if new {
            if !artifacts::known(&mut tx, hash).await? {
                artifacts::check_room(&mut tx, bytes, plan.storage_bytes).await?;
                artifacts::insert(&mut tx, hash, &component, now).await?;
                // Entries that were written meanwhile count too. Whoever writes more waits from here to the commit.
                key_value::lock_usage(&mut tx).await?;
                artifacts::check_room(&mut tx, 0, plan.storage_bytes).await?;
            }
            rows::insert(&mut tx, id, hash, label.as_deref(), manifest.as_ref(), bytes, now).await?;
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

    /// Inspects, and renews the claim until it is settled.
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
            settled = self.inspect_and_settle(tenant, tool, hash) => settled,
            failed = self.keep_claim(tenant, tool, hash) => Err(failed),
        }
    }

    /// Returns only when the database fails; then another process may take the version up.
    async fn keep_claim(&self, tenant: &Tenant, tool: ToolId, hash: ArtifactHash) -> ToolError {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let renewed = async {
                let mut tx = tenant.begin().await?;
                rows::claim(&mut tx, tool, hash, self.clock.now().plus(CLAIM)).await?;
                Ok::<_, ToolError>(tx.commit().await?)
            };
            if let Err(error) = renewed.await {
                return error;
            }
        }
    }

    /// The inspector lets uploads take their turns and asks for the bytes when this one's has come. `None`: it was deleted
    /// meanwhile.
    async fn inspect_and_settle(
        &self,
        tenant: &Tenant,
        tool: ToolId,
        hash: ArtifactHash,
    ) -> Result<Option<ToolVersion>, ToolError> {
        let mut tx = tenant.begin().await?;
        match tools::version_of(&mut tx, tool, hash).await? {
            Some(version) if version.status == VersionStatus::Compiling => {}
            settled => return Ok(settled),
        }
        let Some((manifest, first)) = rows::beside(&mut tx, tool, hash).await? else { return Ok(None) };
        drop(tx);

        let upload = Upload { tenant: tenant.id(), artifact: hash, manifest, first };
        let inspected = self.inspector.inspect(upload, &StoredComponent::new(tenant, hash)).await;
        let verdict = match inspected {
            Ok(inspection) => storable(inspection),
            Err(InspectError::Rejected(rejection)) => Err(rejection),
            Err(InspectError::Failed(cause)) => {
                let mut tx = tenant.begin().await?;
                if tools::version_of(&mut tx, tool, hash).await?.is_none() {
                    return Ok(None);
                }
                rows::claim(&mut tx, tool, hash, self.clock.now()).await?;
                tx.commit().await?;
                return Err(ToolError::NotInspected(cause));
            }
        };
        let mut tx = tenant.begin().await?;
        let settled = rows::settle(&mut tx, tool, hash, verdict).await?;
        let version = tools::version_of(&mut tx, tool, hash).await?;
        if let (true, Some(version)) = (settled, &version) {
            deliveries::notify(&mut tx, notice(version), &*self.ids, self.clock.now()).await?;
        }
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

/// Without functions and what they ask for, which may be megabytes.
fn notice(version: &ToolVersion) -> Notice {
    let event = match version.status {
        VersionStatus::Rejected => EventKind::ToolVersionRejected,
        VersionStatus::Ready | VersionStatus::Compiling => EventKind::ToolVersionReady,
    };
    let ToolVersion { version, tool, number, label, status, rejection, size_bytes, created_at, .. } = version;
    let data = json!({
        "tool": tool, "version": version, "number": number, "label": label, "status": status, "rejection": rejection,
        "size_bytes": size_bytes, "created_at": created_at,
    });
    Notice { event, run: None, data }
}

fn missing(tool: &ToolName, hash: ArtifactHash) -> ToolError {
    ToolError::VersionNotFound { tool: tool.clone(), version: VersionRef::Hash(hash) }
}

fn check_manifest(manifest: &Manifest) -> Result<(), FieldError> {
    let bytes = json::bytes(manifest);
    if bytes > MANIFEST_BYTES_MAX {
        return Err(FieldError::new("", format!("has {bytes} bytes, more than {MANIFEST_BYTES_MAX}; shorten it")));
    }
    match json::nul(&json!(manifest)) {
        None => Ok(()),
        Some(pointer) => Err(FieldError::new(pointer, "contains a NUL character, which cannot be stored; remove it")),
    }
}

/// What a tool says of itself goes into jsonb, which takes no NUL character; what it asks for, in the one form of it.
fn storable(inspection: Inspection) -> Result<Inspection, Rejection> {
    let said = json!([inspection.functions, inspection.requires]);
    if json::nul(&said).is_some() {
        return Err(Rejection::new(
            "toolbox.bad_function",
            "a description, a schema or `requires` contains a NUL character; remove it",
        ));
    }
    let requires = Requires::parse(&inspection.requires).map_err(|mistake| {
        let FieldError { pointer, detail } = mistake;
        Rejection::new("toolbox.bad_requires", format!("`requires{pointer}` cannot be granted: {detail}"))
    })?;
    Ok(Inspection { requires: json!(requires), ..inspection })
}
