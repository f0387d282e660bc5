//! The same for what the operator asks that is of no tenant which exists: new tenants, price books.

use std::future::Future;

use domain::Timestamp;
use sqlx::PgConnection;

use super::{Answer, HELD_PAUSE, HELD_TRIES, IdempotencyError, Request, before, first_bytes};
use crate::{
    DbError, GlobalTx, TenantTx,
    seal::{self, MasterKey},
};

/// A transaction that the operator's requests are done in: one over what is of no tenant, or a new tenant's first.
pub trait OperatorTx: Send {
    fn connection(&mut self) -> &mut PgConnection;

    fn done(self) -> impl Future<Output = Result<(), DbError>> + Send;
}

impl OperatorTx for GlobalTx {
    fn connection(&mut self) -> &mut PgConnection {
        self.conn()
    }

    fn done(self) -> impl Future<Output = Result<(), DbError>> + Send {
        self.commit()
    }
}

impl OperatorTx for TenantTx {
    fn connection(&mut self) -> &mut PgConnection {
        self.conn()
    }

    fn done(self) -> impl Future<Output = Result<(), DbError>> + Send {
        self.commit()
    }
}

/// The answer of an earlier request. `None`: it is to be done in this transaction, which ends with `keep`.
pub async fn open(
    tx: &mut impl OperatorTx,
    master: &MasterKey,
    request: &Request,
    now: Timestamp,
) -> Result<Option<Answer>, IdempotencyError> {
    for _ in 1..HELD_TRIES {
        match try_open(tx, master, request, now).await {
            Err(IdempotencyError::Running) => tokio::time::sleep(HELD_PAUSE).await,
            opened => return opened,
        }
    }
    try_open(tx, master, request, now).await
}

async fn try_open(
    tx: &mut impl OperatorTx,
    master: &MasterKey,
    request: &Request,
    now: Timestamp,
) -> Result<Option<Answer>, IdempotencyError> {
    let opened = sqlx::query_scalar!(
        r#"
        INSERT INTO operator_idempotency AS i (key, fingerprint, created_at)
        SELECT $1, $2, $3 WHERE pg_try_advisory_xact_lock($5)
        ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, answer = NULL, created_at = excluded.created_at
        WHERE i.created_at < $4
        RETURNING true AS "opened!"
        "#,
        &request.key[..],
        &request.fingerprint[..],
        now.offset(),
        before(now),
        first_bytes(&request.key),
    )
    .fetch_optional(tx.connection())
    .await?;
    if opened.is_some() {
        return Ok(None);
    }
    let row = sqlx::query!("SELECT fingerprint, answer FROM operator_idempotency WHERE key = $1", &request.key[..])
        .fetch_optional(tx.connection())
        .await?
        .ok_or(IdempotencyError::Running)?;
    if row.fingerprint != request.fingerprint {
        return Err(IdempotencyError::OtherPayload);
    }
    let sealed = row.answer.ok_or(IdempotencyError::Unkept)?;
    let plain = seal::open_installation(master, &request.seal_context(), &sealed)?;
    Ok(Some(serde_json::from_slice(&plain).map_err(|error| sqlx::Error::Decode(Box::new(error)))?))
}

/// Keeps the answer of a request that this transaction opened.
pub async fn keep(
    tx: &mut impl OperatorTx,
    master: &MasterKey,
    request: &Request,
    answer: &Answer,
) -> Result<(), IdempotencyError> {
    let plain = serde_json::to_vec(answer).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let sealed = seal::seal_installation(master, &request.seal_context(), &plain)?;
    let kept = sqlx::query!("UPDATE operator_idempotency SET answer = $2 WHERE key = $1", &request.key[..], sealed)
        .execute(tx.connection())
        .await?;
    if kept.rows_affected() == 1 { Ok(()) } else { Err(IdempotencyError::Lost) }
}
