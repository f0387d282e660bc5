//! A request that is done once, however often it is sent: what it came to is written in the transaction that does it.
//!
//! What one transaction does is opened with `Way::Answer` and closed with `keep`. What takes longer is reserved in a
//! transaction of its own, renewed while it is being done, and kept in the transaction that ends it. An error keeps
//! nothing: nothing happened, and sending it again is right.

pub mod operator;
mod reservation;

use std::time::Duration;

use domain::{CallId, Kind, Problem, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Db, DbError, TenantTx,
    seal::{self, MasterKey, SealError, Sealed},
};

pub use reservation::Reservation;

/// How long an answer is kept. The sweep's policy in the database says the same.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a reserved request belongs to a process that does not renew: past it, whoever asks again does it.
pub const LEASE: Duration = Duration::from_secs(15);
/// Rows that one statement of the sweep deletes: a short transaction, whatever has gathered.
const SWEEP_ROWS: i32 = 1_000;
/// How often, and how long after, a request is looked at again that another transaction holds: it may be one that failed
/// and is just being rolled back.
const HELD_TRIES: u32 = 10;
const HELD_PAUSE: Duration = Duration::from_millis(20);

/// A request that came with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The API key that asks; nil for the operator. A key of one is nothing to another: an answer may hold what only the
    /// first may see.
    pub holder: Uuid,
    /// SHA-256 of the key that the client chose.
    pub key: [u8; 32],
    /// SHA-256 of what is asked.
    pub fingerprint: [u8; 32],
}

/// How a request is going to be done.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// In the transaction that is open, which ends with `keep`.
    Answer,
    /// It starts this run, in the transaction that is open. Until then the first one waits for the run's end.
    Run { run: RunId, waits_until: Timestamp },
    /// In transactions to come.
    Reserved { by: Uuid, call: Option<CallId> },
}

/// What is known of a request.
#[derive(Debug)]
pub enum Opened {
    /// Nothing: it is to be done.
    First,
    /// Whoever did it has died. It is to be done again: with this call, if it is one.
    Again(Option<CallId>),
    Answered(Answer),
    Run {
        run: RunId,
        waits_until: Timestamp,
    },
    Call(CallId),
}

/// An answer that is kept: a success, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub body: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    #[error("this `Idempotency-Key` was used for another request; use a new key for each thing that is to be done")]
    OtherPayload,
    #[error("the first request with this `Idempotency-Key` is still being done; ask again in a second")]
    Running,
    /// The process stalled for longer than its lease.
    #[error("another process has taken this request over; ask again with the same `Idempotency-Key`")]
    Lost,
    #[error("a request was committed without what it came to")]
    Unkept,
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for IdempotencyError {
    fn kind(&self) -> Kind {
        match self {
            IdempotencyError::OtherPayload => Kind::Invalid,
            IdempotencyError::Running | IdempotencyError::Lost => Kind::Conflict,
            IdempotencyError::Unkept => Kind::Internal,
            IdempotencyError::Seal(error) => error.kind(),
            IdempotencyError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            IdempotencyError::OtherPayload => "idempotency_key.other_payload",
            IdempotencyError::Running => "idempotency_key.in_progress",
            IdempotencyError::Lost => "idempotency_key.taken_over",
            IdempotencyError::Unkept => "internal",
            IdempotencyError::Seal(error) => error.code(),
            IdempotencyError::Db(error) => error.code(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            IdempotencyError::Running | IdempotencyError::Lost => Some(1),
            IdempotencyError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for IdempotencyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Request {
    /// What is sealed with an answer, so that it opens for no other request.
    fn seal_context(&self) -> String {
        format!("idempotency/{}/{}", self.holder, hex::encode(self.key))
    }

    /// Two requests that meet by chance would only wait for each other.
    fn lock(&self, tx: &TenantTx) -> i64 {
        let digest = Sha256::new().chain_update(tx.tenant().uuid()).chain_update(self.holder).chain_update(self.key);
        first_bytes(&digest.finalize())
    }
}

/// Asks whether a request was done, and marks it as done by this transaction if not. One statement when it is new; one that
/// is being done is waited for a moment and no longer.
pub async fn open(
    tx: &mut TenantTx,
    master: &MasterKey,
    request: &Request,
    way: Way,
    now: Timestamp,
) -> Result<Opened, IdempotencyError> {
    for _ in 1..HELD_TRIES {
        match try_open(tx, master, request, way, now).await? {
            Some(opened) => return Ok(opened),
            None => tokio::time::sleep(HELD_PAUSE).await,
        }
    }
    try_open(tx, master, request, way, now).await?.ok_or(IdempotencyError::Running)
}

/// `None`: another transaction holds it.
async fn try_open(
    tx: &mut TenantTx,
    master: &MasterKey,
    request: &Request,
    way: Way,
    now: Timestamp,
) -> Result<Option<Opened>, IdempotencyError> {
    let (mut run, mut waits_until, mut call, mut by) = (None, None, None, None);
    match way {
        Way::Answer => {}
        Way::Run { run: id, waits_until: until } => (run, waits_until) = (Some(id.uuid()), Some(until.offset())),
        Way::Reserved { by: id, call: made } => (by, call) = (Some(id), made.map(CallId::uuid)),
    }
    let (forgotten, lock) = (before(now), request.lock(tx));
    // The lock ends with the transaction, after its row can be seen: who gets it sees the row of whoever had it.
    let opened = sqlx::query!(
        r#"
        INSERT INTO idempotency AS i (tenant_id, holder, key, fingerprint, run_id, waits_until, call_id, running_by,
                                      running_until, created_at)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
        WHERE pg_try_advisory_xact_lock($12)
        ON CONFLICT (tenant_id, holder, key) DO UPDATE SET
            fingerprint = excluded.fingerprint, run_id = excluded.run_id, waits_until = excluded.waits_until,
            call_id = CASE WHEN i.created_at < $11 THEN excluded.call_id ELSE coalesce(i.call_id, excluded.call_id) END,
            running_by = excluded.running_by, running_until = excluded.running_until,
            status = NULL, location = NULL, body = NULL, data_key_version = NULL,
            created_at = CASE WHEN i.created_at < $11 THEN excluded.created_at ELSE i.created_at END
        WHERE i.created_at < $11
           OR (i.running_until < $10 AND i.fingerprint = excluded.fingerprint AND excluded.running_by IS NOT NULL)
        RETURNING call_id, (created_at < $10) AS "again!"
        "#,
        tx.tenant().uuid(),
        request.holder,
        &request.key[..],
        &request.fingerprint[..],
        run,
        waits_until,
        call,
        by,
        by.map(|_| now.plus(LEASE).offset()),
        now.offset(),
        forgotten,
        lock,
    )
    .fetch_optional(tx.conn())
    .await?;
    match opened {
        Some(row) if row.again => Ok(Some(Opened::Again(row.call_id.map(CallId::from)))),
        Some(_) => Ok(Some(Opened::First)),
        None => done(tx, master, request, now).await,
    }
}

/// What an earlier request came to. `None`: it is not committed, or is being taken over.
async fn done(
    tx: &mut TenantTx,
    master: &MasterKey,
    request: &Request,
    now: Timestamp,
) -> Result<Option<Opened>, IdempotencyError> {
    let row = sqlx::query!(
        r#"
        SELECT fingerprint, run_id, waits_until, call_id, running_until, status, location, body, data_key_version,
               created_at
        FROM idempotency WHERE tenant_id = $1 AND holder = $2 AND key = $3
        "#,
        tx.tenant().uuid(),
        request.holder,
        &request.key[..],
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row.filter(|row| row.created_at >= before(now)) else { return Ok(None) };
    if row.fingerprint != request.fingerprint {
        return Err(IdempotencyError::OtherPayload);
    }
    match row.running_until {
        Some(until) if until < now.offset() => return Ok(None),
        Some(_) => return Err(IdempotencyError::Running),
        None => {}
    }
    match (row.status, row.body, row.data_key_version, row.run_id, row.waits_until, row.call_id) {
        (Some(status), Some(bytes), Some(data_key_version), ..) => {
            let sealed = Sealed { bytes, data_key_version };
            let body = text(&seal::open(tx, master, &request.seal_context(), &sealed).await?)?;
            Ok(Some(Opened::Answered(Answer { status: status.cast_unsigned(), location: row.location, body })))
        }
        (_, _, _, Some(run), Some(until), _) => Ok(Some(Opened::Run { run: run.into(), waits_until: until.into() })),
        (.., Some(call)) => Ok(Some(Opened::Call(call.into()))),
        _ => Err(IdempotencyError::Unkept),
    }
}

/// Keeps the answer of a request that this transaction opened, or that was reserved `by` this process.
pub async fn keep(
    tx: &mut TenantTx,
    master: &MasterKey,
    request: &Request,
    by: Option<Uuid>,
    answer: &Answer,
    now: Timestamp,
) -> Result<(), IdempotencyError> {
    let Sealed { bytes, data_key_version } =
        seal::seal(tx, master, &request.seal_context(), answer.body.as_bytes(), now).await?;
    let kept = sqlx::query!(
        r#"
        UPDATE idempotency
        SET status = $5, location = $6, body = $7, data_key_version = $8, running_by = NULL, running_until = NULL
        WHERE tenant_id = $1 AND holder = $2 AND key = $3 AND running_by IS NOT DISTINCT FROM $4
        "#,
        tx.tenant().uuid(),
        request.holder,
        &request.key[..],
        by,
        answer.status.cast_signed(),
        answer.location,
        bytes,
        data_key_version,
    )
    .execute(tx.conn())
    .await?;
    if kept.rows_affected() == 1 { Ok(()) } else { Err(IdempotencyError::Lost) }
}

impl Db {
    /// Forgets what is older than a day, of all tenants and of the operator.
    pub async fn sweep_idempotency(&self, now: Timestamp) -> Result<(), DbError> {
        loop {
            let mut tx = self.global().await?;
            let swept = sqlx::query_scalar!(r#"SELECT door_sweep_idempotency($1) AS "swept!""#, SWEEP_ROWS)
                .fetch_one(tx.conn())
                .await?;
            tx.commit().await?;
            if swept < i64::from(SWEEP_ROWS) {
                break;
            }
        }
        let mut tx = self.global().await?;
        sqlx::query!("DELETE FROM operator_idempotency WHERE created_at < $1", before(now)).execute(tx.conn()).await?;
        tx.commit().await
    }
}

/// What was asked before is forgotten.
fn before(now: Timestamp) -> OffsetDateTime {
    now.offset() - KEPT
}

/// What was sealed is what was kept, a text.
fn text(plain: &[u8]) -> Result<String, sqlx::Error> {
    String::from_utf8(plain.to_vec()).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn first_bytes(digest: &[u8]) -> i64 {
    digest.first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes))
}
