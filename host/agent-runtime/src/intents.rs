//! Outward effects: what a call is about to send is committed before it connects. No intent means that nothing has left.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use billing_meter::holds;
use domain::{CallId, Clock, RunId, Timestamp, message::Part, nul};
use serde_json::json;
use tenancy::{Tenant, TenantTx, idempotency::Reservation};
use tool_api::{HostError, Intent, Outcome, Status};

use crate::{Lease, fault, load::Loaded, pending::Pending, runs::RunError};

/// A request that a call began to send.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    pub(crate) attempt: u32,
    /// It carried the call's idempotency key.
    pub(crate) keyed: bool,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) at: Timestamp,
}

/// What the calls of a run's step have begun to send, here and in processes before this one.
#[derive(Default)]
pub(crate) struct Intents(Mutex<HashMap<CallId, Vec<Sent>>>);

impl Intents {
    pub(crate) fn found(sent: HashMap<CallId, Vec<Sent>>) -> Intents {
        Intents(Mutex::new(sent))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<CallId, Vec<Sent>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, call: CallId) -> Vec<Sent> {
        self.all().get(&call).cloned().unwrap_or_default()
    }
}

/// What becomes of a call that was cut off.
#[derive(Debug, PartialEq)]
pub(crate) enum AfterCut {
    /// It runs again under the same key, or for the first time.
    Run { attempt: u32 },
    /// Running it again might repeat an effect.
    Unknown(Sent),
}

/// What is told of a call that is not made again: a request without the key, if there was one.
pub(crate) fn gravest(sent: &[Sent]) -> Option<&Sent> {
    sent.iter().find(|sent| !sent.keyed).or(sent.first())
}

/// Pure.
pub(crate) fn after_cut(sent: &[Sent]) -> AfterCut {
    match sent.iter().find(|sent| !sent.keyed) {
        Some(sent) => AfterCut::Unknown(sent.clone()),
        None => AfterCut::Run { attempt: sent.iter().map(|sent| sent.attempt).max().unwrap_or(0) + 1 },
    }
}

/// What the model is told of a call whose request may or may not have taken effect.
pub(crate) fn outcome_unknown(call: CallId, sent: &Sent) -> Outcome {
    let Sent { attempt, method, target, at, .. } = sent;
    let words = format!(
        "the call was cut off after it had begun to send {method} {target} at {at}; whether that took effect is not known, \
         so it was not made again: find out before you call it once more"
    );
    let evidence = json!({
        "method": method, "target": target, "sent_at": at, "attempt": attempt, "idempotency_key": call.to_string(),
    });
    Outcome {
        status: Status::OutcomeUnknown,
        code: None,
        content: vec![Part::text(words)],
        structured: Some(evidence),
        trap: None,
    }
}

/// A step whose calls may send: with the first intent, the reply that asked for them is stored.
pub(crate) struct StepSends {
    run: RunId,
    lease: Lease,
    pending: Arc<Pending>,
    is_stored: AtomicBool,
    intents: Arc<Intents>,
    /// Until when the step's hold counts, once its reply is stored. `None`: nothing is held.
    owed_until: Option<Timestamp>,
}

impl StepSends {
    pub(crate) fn new(turn: &Loaded, lease: Lease, pending: Arc<Pending>) -> StepSends {
        let (intents, owed_until) = (turn.intents.clone(), turn.purse.owed_until());
        let is_stored = AtomicBool::new(turn.pending.is_some());
        StepSends { run: turn.run.id, lease, pending, is_stored, intents, owed_until }
    }

    /// Whether the reply is stored: then the step is not done again, whoever goes on with it.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_stored.load(Ordering::Acquire)
    }
}

/// One try of one call that may send.
pub(crate) struct Sending {
    pub(crate) call: CallId,
    pub(crate) attempt: u32,
    pub(crate) clock: Arc<dyn Clock>,
    /// Absent for a direct call.
    pub(crate) step: Option<Arc<StepSends>>,
    /// Of a direct call that is made once: whoever has lost it sends nothing any more.
    pub(crate) reserved: Option<Reservation>,
}

impl Sending {
    /// One transaction. When the run is another process's by now, or what was held for the step has lapsed, nothing may
    /// leave from here.
    pub(crate) async fn note(&self, tenant: &Tenant, intent: Intent) -> Result<(), HostError> {
        let sent = Sent {
            attempt: self.attempt,
            keyed: intent.idempotency_header,
            method: intent.method,
            target: nul::replaced(intent.target),
            at: self.clock.now(),
        };
        self.write(tenant, &sent).await.map_err(|error| {
            tracing::warn!(tool_call.id = %self.call, error = %error, "a request was held back: its intent was not stored");
            HostError(Box::new(error))
        })
    }

    async fn write(&self, tenant: &Tenant, sent: &Sent) -> Result<(), RunError> {
        let mut tx = tenant.begin().await?;
        if let Some(reserved) = &self.reserved
            && !reserved.holds(&mut tx).await?
        {
            return Err(RunError::Fenced);
        }
        let Some(step) = &self.step else {
            insert(&mut tx, self.call, sent).await?;
            return Ok(tx.commit().await?);
        };
        // The reply may have megabytes: it is sent once.
        let pending = (!step.is_kept()).then(|| step.pending.stored()).transpose()?;
        let written = sqlx::query!(
            r#"
            WITH held AS (
                UPDATE run SET pending = coalesce(pending, $5)
                WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
                RETURNING run_id
            )
            INSERT INTO intent (tenant_id, run_id, call_id, attempt, keyed, method, target, sent_at)
            SELECT $1, held.run_id, $6, $7, $8, $9, $10, $11 FROM held
            "#,
            tx.tenant().uuid(),
            step.run.uuid(),
            step.lease.worker,
            step.lease.fence(),
            pending,
            self.call.uuid(),
            sent.attempt.cast_signed(),
            sent.keyed,
            sent.method,
            sent.target,
            sent.at.offset(),
        )
        .execute(tx.conn())
        .await?;
        if written.rows_affected() != 1 {
            return Err(RunError::Fenced);
        }
        if let (Some(_), Some(until)) = (pending, step.owed_until) {
            if holds::lapsed(&mut tx, step.run.uuid()).await? {
                return Err(RunError::Fenced);
            }
            holds::renew(&mut tx, step.run.uuid(), until).await?;
        }
        // Known before it is committed: when the answer of the commit is lost, the request may not leave, and a call that
        // is told as unknown although nothing left is the lesser evil.
        step.intents.all().entry(self.call).or_default().push(sent.clone());
        fault::point("intent.committing");
        tx.commit().await?;
        fault::point("intent.committed");
        step.is_stored.store(true, Ordering::Release);
        Ok(())
    }
}

async fn insert(tx: &mut TenantTx, call: CallId, sent: &Sent) -> Result<(), RunError> {
    sqlx::query!(
        r#"
        INSERT INTO intent (tenant_id, call_id, attempt, keyed, method, target, sent_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        "#,
        tx.tenant().uuid(),
        call.uuid(),
        sent.attempt.cast_signed(),
        sent.keyed,
        sent.method,
        sent.target,
        sent.at.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What these calls have begun to send.
pub(crate) async fn of_calls(tx: &mut TenantTx, calls: &[CallId]) -> Result<HashMap<CallId, Vec<Sent>>, RunError> {
    let rows = sqlx::query!(
        r#"
        SELECT call_id, attempt, keyed, method, target, sent_at FROM intent
        WHERE tenant_id = $1 AND call_id = ANY($2)
        ORDER BY sent_at
        "#,
        tx.tenant().uuid(),
        &calls.iter().map(|call| call.uuid()).collect::<Vec<_>>(),
    )
    .fetch_all(tx.conn())
    .await?;
    let mut sent: HashMap<CallId, Vec<Sent>> = HashMap::new();
    for row in rows {
        sent.entry(row.call_id.into()).or_default().push(Sent {
            attempt: row.attempt.cast_unsigned(),
            keyed: row.keyed,
            method: row.method,
            target: row.target,
            at: row.sent_at.into(),
        });
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_sent_without_its_key_is_not_made_again() {
        let sent = |attempt, keyed| Sent {
            attempt,
            keyed,
            method: "POST".into(),
            target: "https://bank.example/pay".into(),
            at: Timestamp::from_unix_us(0),
        };
        for (found, expected) in [
            (vec![], AfterCut::Run { attempt: 1 }),
            (vec![sent(1, true)], AfterCut::Run { attempt: 2 }),
            (vec![sent(1, true), sent(2, true)], AfterCut::Run { attempt: 3 }),
            (vec![sent(1, false)], AfterCut::Unknown(sent(1, false))),
            (vec![sent(1, true), sent(1, false)], AfterCut::Unknown(sent(1, false))),
        ] {
            assert_eq!(after_cut(&found), expected, "{found:?}");
        }
    }
}
