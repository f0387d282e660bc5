//! The right to act for one tenant, and the transaction that it opens.

use std::fmt;

use domain::TenantId;
use sqlx::PgConnection;
use tokio::sync::OwnedSemaphorePermit;

use crate::{Db, DbError, Placement, connections::Lent};

/// The right to act for one tenant. Made only by the doors and by the birth of a tenant; there is no way from an id to
/// this outside of the crate.
#[derive(Clone)]
pub struct Tenant {
    id: TenantId,
    placement: Placement,
    db: Db,
}

impl Tenant {
    pub(crate) fn new(id: TenantId, placement: Placement, db: Db) -> Self {
        Self { id, placement, db }
    }

    pub fn id(&self) -> TenantId {
        self.id
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Opens a transaction in which only this tenant's rows exist. Waits while too many of this tenant's are open: who
    /// holds one does not open another.
    pub async fn begin(&self) -> Result<TenantTx, DbError> {
        self.room().await?.begin().await
    }

    /// Room for a transaction that begins later.
    pub async fn room(&self) -> Result<Room, DbError> {
        Ok(Room { tenant: self.clone(), place: self.db.place(self.id).await? })
    }
}

/// One of the transactions that a tenant may have open, not begun yet.
pub struct Room {
    tenant: Tenant,
    place: OwnedSemaphorePermit,
}

impl Room {
    /// Begin, tenant and search path travel in one round trip; all three end with the transaction.
    pub async fn begin(self) -> Result<TenantTx, DbError> {
        let Room { tenant: Tenant { id, placement, db }, place } = self;
        // Both texts are safe to embed: a UUID's digits and a schema name that `Placement` has checked.
        let statement = format!(
            "BEGIN; SET LOCAL belljar.tenant = '{}'; SET LOCAL search_path = {}",
            id.uuid(),
            placement.schema()
        );
        Ok(TenantTx { tenant: id, tx: db.lend(&placement).await?.begin(statement).await?, _place: place })
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({})", self.id)
    }
}

/// A transaction of one tenant. Who begins it commits it; everybody else borrows it.
#[must_use = "a TenantTx that is not committed rolls back"]
pub struct TenantTx {
    tenant: TenantId,
    tx: Lent,
    /// Behind the transaction: dropped after it.
    _place: OwnedSemaphorePermit,
}

impl TenantTx {
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    pub fn conn(&mut self) -> &mut PgConnection {
        self.tx.conn()
    }

    pub async fn commit(self) -> Result<(), DbError> {
        Ok(self.tx.commit().await?)
    }

    /// Commits without waiting for the disk: for what may be lost when the server crashes in the same second.
    pub async fn commit_soon(mut self) -> Result<(), DbError> {
        sqlx::query("SET LOCAL synchronous_commit = off").execute(self.conn()).await?;
        self.commit().await
    }
}
