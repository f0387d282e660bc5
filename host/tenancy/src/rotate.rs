//! Rotation of the key-encryption key: every tenant's data keys are sealed again, under the current one. The values that
//! the data keys seal stay as they are.
//!
//! Online: whoever has both keys opens a data key before and after. Give the new key to every process first, then rotate,
//! then take the old one away. Stopped halfway it is begun again; what was done is not done twice.

use domain::page::{PAGE_ROWS_MAX, PageRequest};

use crate::{
    Db, Tenant,
    seal::{MasterKey, SealError},
};

/// Data keys that a rotation has looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Sealed again under the current key.
    pub rewrapped: u64,
    /// Were under the current key, or became so meanwhile by another rotation.
    pub already: u64,
}

/// Seals every data key under the current key-encryption key. `progress` is told the sums after each tenant. When this
/// future is dropped, what it has finished stays.
pub async fn rotate(db: &Db, master: &MasterKey, mut progress: impl FnMut(Rotated)) -> Result<Rotated, SealError> {
    let mut sums = Rotated::default();
    let mut page = PageRequest { limit: PAGE_ROWS_MAX, after: None };
    loop {
        let tenants = db.tenants(page).await?;
        for tenant in &tenants {
            let Rotated { rewrapped, already } = rotate_tenant(tenant, master).await?;
            sums = Rotated { rewrapped: sums.rewrapped + rewrapped, already: sums.already + already };
            progress(sums);
        }
        match tenants.last() {
            Some(last) => page.after = Some(last.id().uuid()),
            None => return Ok(sums),
        }
    }
}

async fn rotate_tenant(tenant: &Tenant, master: &MasterKey) -> Result<Rotated, SealError> {
    let current = master.current_kek();
    let mut sums = Rotated::default();
    let mut tx = tenant.begin().await?;
    let rows = sqlx::query!("SELECT version, sealed, kek FROM data_key WHERE tenant_id = $1", tx.tenant().uuid())
        .fetch_all(tx.conn())
        .await?;
    for row in rows {
        if row.kek == current {
            sums.already += 1;
            continue;
        }
        let key = master.open_data_key(tx.tenant(), row.version, row.kek.as_deref(), &row.sealed)?;
        let sealed = master.seal_data_key(tx.tenant(), row.version, &key)?;
        // A seal is never made twice: the old bytes name the row as it was read.
        let updated = sqlx::query!(
            "UPDATE data_key SET sealed = $4, kek = $5 WHERE tenant_id = $1 AND version = $2 AND sealed = $3",
            tx.tenant().uuid(),
            row.version,
            row.sealed,
            sealed,
            current,
        )
        .execute(tx.conn())
        .await?;
        match updated.rows_affected() {
            0 => sums.already += 1,
            _ => sums.rewrapped += 1,
        }
    }
    tx.commit().await?;
    Ok(sums)
}
