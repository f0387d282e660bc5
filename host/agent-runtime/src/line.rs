//! The line of a conversation: one run at a time, and those that asked to wait for it (`queue: true`).
//!
//! What the user says in a run that stands in line is kept with the run, and becomes a message of the conversation when
//! the run begins: behind the answer of the run before.

use conversation_store::messages::{self, NewMessage};
use domain::{
    ConversationId, MessageId, RunId, Timestamp,
    ids::Ids,
    message::{Part, Role},
};
use serde_json::{Value, json};
use tenancy::{DbError, TenantTx};

use crate::{
    Lease,
    events::{self, NewEvent},
    runs::{End, Run, RunError},
    webhooks,
};

/// Runs of one conversation that have not ended, the one that is driven included. People do not write further ahead.
pub(crate) const LINE_MAX: usize = 16;

/// Runs of a conversation that have not ended.
pub(crate) async fn length(tx: &mut TenantTx, conversation: ConversationId) -> Result<usize, DbError> {
    let runs = sqlx::query_scalar!(
        r#"
        SELECT count(*) AS "runs!" FROM run
        WHERE tenant_id = $1 AND conversation_id = $2 AND status IN ('queued', 'running', 'waiting_for_approval')
        "#,
        tx.tenant().uuid(),
        conversation.uuid(),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(usize::try_from(runs).unwrap_or(usize::MAX))
}

/// New messages of the user, as messages of a run.
pub(crate) fn messages_of(said: Vec<Vec<Part>>, run: RunId, ids: &dyn Ids) -> Vec<NewMessage> {
    said.into_iter()
        .map(|parts| NewMessage { id: MessageId::new(ids), role: Role::User, parts, run_id: Some(run) })
        .collect()
}

/// As it is kept with a run in line. NUL characters become U+FFFD, as in a message.
pub(crate) fn kept(said: &[Vec<Part>]) -> Value {
    let mut kept = json!(said);
    domain::nul::replace(&mut kept);
    kept
}

/// A run that stood in line begins: what the user says becomes messages. False: it said nothing, or has said it before.
pub(crate) async fn speak(
    tx: &mut TenantTx,
    run: &Run,
    lease: &Lease,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<bool, RunError> {
    let kept = sqlx::query_scalar!(
        r#"
        SELECT said AS "said!" FROM run
        WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
          AND said IS NOT NULL
        FOR UPDATE
        "#,
        tx.tenant().uuid(),
        run.id.uuid(),
        lease.worker,
        lease.fence(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(kept) = kept else { return Ok(false) };
    let said: Vec<Vec<Part>> = serde_json::from_value(kept).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    sqlx::query!("UPDATE run SET said = NULL WHERE tenant_id = $1 AND run_id = $2", tx.tenant().uuid(), run.id.uuid())
        .execute(tx.conn())
        .await?;
    messages::append(tx, run.conversation_id, &messages_of(said, run.id, ids), now).await?;
    Ok(true)
}

/// A run that stands in line is cancelled: it has not begun, so there is nobody to end it and nothing to settle. False: it
/// does not stand in line.
pub(crate) async fn leave(tx: &mut TenantTx, run: RunId, ids: &dyn Ids, now: Timestamp) -> Result<bool, RunError> {
    let end = End::cancelled();
    let touched = sqlx::query!(
        r#"
        UPDATE run SET status = $3, stop_reason = $4, ended_at = $5, cancel_requested = true, said = NULL
        WHERE tenant_id = $1 AND run_id = $2 AND status = 'queued' AND said IS NOT NULL
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        end.status.as_str(),
        end.reason.as_str(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    if touched.rows_affected() == 0 {
        return Ok(false);
    }
    let seq = events::last_seq(tx, run).await? + 1;
    events::append(tx, run, &[NewEvent::Event { seq, kind: end.status.event(), data: json!({}) }]).await?;
    webhooks::run_ended(tx, run, end.status, None, ids, now).await?;
    Ok(true)
}
