//! A request that is being done in more than one transaction, and belongs to this process meanwhile.

use std::{future::Future, time::Duration};

use domain::{Clock, Timestamp};
use uuid::Uuid;

use super::{Answer, IdempotencyError, LEASE, Request, keep};
use crate::{DbError, Tenant, TenantTx, seal::MasterKey};

/// How often a reservation is renewed. Well under the lease.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The right to do a request. Ended by `keep`, `end`, `release` or `give_up`; dropped, it ends with the lease.
#[derive(Debug, Clone, Copy)]
pub struct Reservation {
    pub request: Request,
    /// Made for this one reservation: who takes it over has another.
    pub by: Uuid,
}

impl Reservation {
    /// Works, and renews meanwhile. The work is dropped when another process has taken the request over.
    pub async fn renewing<T>(
        &self,
        tenant: &Tenant,
        clock: &dyn Clock,
        work: impl Future<Output = T>,
    ) -> Result<T, IdempotencyError> {
        let lost = async {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                // The database may be away for a moment: who has lost the request meanwhile cannot keep an answer.
                if let Err(IdempotencyError::Lost) = self.renew(tenant, clock.now().plus(LEASE)).await {
                    break;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = lost => Err(IdempotencyError::Lost),
        }
    }

    async fn renew(&self, tenant: &Tenant, until: Timestamp) -> Result<(), IdempotencyError> {
        let mut tx = tenant.begin().await?;
        let is_ours = self.lasts(&mut tx, until).await?;
        tx.commit().await?;
        if is_ours { Ok(()) } else { Err(IdempotencyError::Lost) }
    }

    /// Whether the request is still this one's, which then lasts until `until`.
    async fn lasts(&self, tx: &mut TenantTx, until: Timestamp) -> Result<bool, DbError> {
        let renewed = sqlx::query!(
            r#"
            UPDATE idempotency SET running_until = $5
            WHERE tenant_id = $1 AND holder = $2 AND key = $3 AND running_by = $4
            "#,
            tx.tenant().uuid(),
            self.request.holder,
            &self.request.key[..],
            self.by,
            until.offset(),
        )
        .execute(tx.conn())
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Keeps the answer.
    pub async fn keep(
        &self,
        tx: &mut TenantTx,
        master: &MasterKey,
        answer: &Answer,
        now: Timestamp,
    ) -> Result<(), IdempotencyError> {
        keep(tx, master, &self.request, Some(self.by), answer, now).await
    }

    /// The call that it is about has been written.
    pub async fn end(&self, tx: &mut TenantTx) -> Result<(), IdempotencyError> {
        let ended = sqlx::query!(
            r#"
            UPDATE idempotency SET running_by = NULL, running_until = NULL
            WHERE tenant_id = $1 AND holder = $2 AND key = $3 AND running_by = $4
            "#,
            tx.tenant().uuid(),
            self.request.holder,
            &self.request.key[..],
            self.by,
        )
        .execute(tx.conn())
        .await?;
        if ended.rows_affected() == 1 { Ok(()) } else { Err(IdempotencyError::Lost) }
    }

    /// Whether the request is still this one's; nobody takes it over before the transaction ends.
    pub async fn holds(&self, tx: &mut TenantTx) -> Result<bool, DbError> {
        let held = sqlx::query_scalar!(
            r#"
            SELECT running_by AS "by!" FROM idempotency
            WHERE tenant_id = $1 AND holder = $2 AND key = $3 AND running_by = $4
            FOR UPDATE
            "#,
            tx.tenant().uuid(),
            self.request.holder,
            &self.request.key[..],
            self.by,
        )
        .fetch_optional(tx.conn())
        .await?;
        Ok(held.is_some())
    }

    /// Nothing was done: the key is as if it had never been used.
    pub async fn release(&self, tx: &mut TenantTx) -> Result<(), DbError> {
        sqlx::query!(
            "DELETE FROM idempotency WHERE tenant_id = $1 AND holder = $2 AND key = $3 AND running_by = $4",
            tx.tenant().uuid(),
            self.request.holder,
            &self.request.key[..],
            self.by,
        )
        .execute(tx.conn())
        .await?;
        Ok(())
    }

    /// Something may have been done: whoever asks again finds out, and need not wait for the lease.
    pub async fn give_up(&self, tx: &mut TenantTx, now: Timestamp) -> Result<(), DbError> {
        self.lasts(tx, now).await.map(drop)
    }
}
