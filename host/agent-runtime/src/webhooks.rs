//! Webhooks are told: what happened is written with it, then sent from here, again and again until it arrives.

mod attempt;
mod schedule;
mod sign;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_config::webhooks::{
    EventKind, Notice, WebhookError,
    deliveries::{self, After, Due},
};
use domain::{Clock, Ids, RunId, TenantId, Timestamp, WebhookId};
use egress::Egress;
use futures::future;
use serde_json::{Value, json};
use tenancy::{Db, Tenant, TenantTx, seal::MasterKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::runs::{self, RunError, RunStatus};

/// How often a process looks for what is due. A notice is told this much later than it happened, at most.
const POLL: Duration = Duration::from_millis(500);
/// Webhooks that this process sends to at the same moment. Each holds a connection for seconds at worst. Half of them are
/// for those at which notices arrive: receivers that are waited for in vain take none of these.
const WEBHOOKS_AT_ONCE: usize = 32;
/// Of them, those of one tenant: receivers that never answer take no place from the others.
const TENANTS_WEBHOOKS_AT_ONCE: usize = 4;
/// Notices that are sent to one webhook side by side; to one that is failing, a single one tells.
const SENT_AT_ONCE: i64 = 4;
/// Rounds of them before another webhook has its turn.
const ROUNDS_MAX: usize = 16;
/// How long a claimed delivery is this process's. Longer than an attempt and what is written of it take.
const CLAIM: Duration = Duration::from_secs(60);
/// Bytes of a notice's data. A receiver that wants the rest asks for it by the run's id.
const DATA_BYTES_MAX: usize = 64 * 1024;

/// Tells the webhooks that want to know, once the caller commits. `run`: whose it is, to be erased with it.
pub async fn notify(
    tx: &mut TenantTx,
    event: EventKind,
    run: Option<RunId>,
    data: Value,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(), RunError> {
    Ok(deliveries::notify(tx, Notice { event, run, data }, ids, now).await?)
}

/// Tells of a run that the caller's transaction ends: the run, and the message that is its answer. `turn`: as it is in this
/// transaction, where the caller has read it.
pub(crate) async fn run_ended(
    tx: &mut TenantTx,
    run: RunId,
    status: RunStatus,
    turn: Option<&Value>,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(), RunError> {
    let event = match status {
        RunStatus::Completed => EventKind::RunCompleted,
        RunStatus::Cancelled => EventKind::RunCancelled,
        _ => EventKind::RunFailed,
    };
    let webhooks = deliveries::wanted_by(tx, event).await?;
    if webhooks.is_empty() {
        return Ok(());
    }
    let read;
    let turn = match turn {
        Some(turn) => turn,
        None => {
            read = json!(runs::turn(tx, run).await?);
            &read
        }
    };
    let mut data = json!({"run": turn["run"], "conversation_id": turn["conversation_id"]});
    for part in ["message", "output"] {
        if let Some(value) = turn.get(part) {
            data[part] = value.clone();
        }
    }
    let notice = Notice { event, run: Some(run), data: bounded(data) };
    Ok(deliveries::tell(tx, &webhooks, notice, ids, now).await?)
}

/// What is too long is left out, and the notice says so.
fn bounded(mut data: Value) -> Value {
    for part in ["message", "output"] {
        if data.to_string().len() <= DATA_BYTES_MAX {
            return data;
        }
        if let Some(fields) = data.as_object_mut() {
            fields.remove(part);
            fields.insert("shortened".into(), true.into());
        }
    }
    data
}

/// What the sender is made of.
pub struct SenderParts {
    pub db: Db,
    pub egress: Egress,
    pub master_key: MasterKey,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
}

/// Sends what is due. Any number of processes may: a delivery is claimed before it is sent.
#[derive(Clone)]
pub struct WebhookSender(Arc<Inner>);

struct Inner {
    parts: SenderParts,
    places: Arc<Semaphore>,
    /// The webhooks that this process sends to now.
    busy: Mutex<HashMap<WebhookId, TenantId>>,
}

/// A webhook's place, given back when its sending ends, however it ends.
struct Place {
    sender: WebhookSender,
    webhook: WebhookId,
    failing: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sender.busy().remove(&self.webhook);
    }
}

impl WebhookSender {
    pub fn new(parts: SenderParts) -> Self {
        let places = Arc::new(Semaphore::new(WEBHOOKS_AT_ONCE));
        Self(Arc::new(Inner { parts, places, busy: Mutex::default() }))
    }

    /// Sends what becomes due, until told to stop; then waits for the attempts under way.
    pub async fn work(&self, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(poll.tick()).await.is_some() {
            match self.take_due().await {
                Ok(due) => due.into_iter().for_each(|(tenant, place)| {
                    tracker.spawn(send_to(tenant, place, shutdown.clone()));
                }),
                Err(error) => tracing::warn!(%error, "could not look for webhooks to tell"),
            }
        }
        tracker.close();
        tracker.wait().await;
    }

    /// One round of what `work` does, waited for.
    pub async fn send_due(&self) -> Result<(), WebhookError> {
        let due = self.take_due().await?;
        let sending = due.into_iter().map(|(tenant, place)| send_to(tenant, place, CancellationToken::new()));
        future::join_all(sending).await;
        Ok(())
    }

    /// Webhooks to which something is due, each with a place.
    async fn take_due(&self) -> Result<Vec<(Tenant, Place)>, WebhookError> {
        let Inner { parts, places, .. } = &*self.0;
        if places.available_permits() == 0 {
            return Ok(Vec::new());
        }
        // Some of them may be busy here.
        let (each, rows) = (2 * TENANTS_WEBHOOKS_AT_ONCE as i64, 2 * WEBHOOKS_AT_ONCE as i32);
        let due = parts.db.due_webhooks(parts.clock.now(), each, rows).await?;
        let places = due.into_iter().filter_map(|(tenant, webhook, failing)| {
            let place = self.place(&tenant, webhook, failing)?;
            Some((tenant, place))
        });
        Ok(places.collect())
    }

    fn place(&self, tenant: &Tenant, webhook: WebhookId, failing: bool) -> Option<Place> {
        if failing && self.0.places.available_permits() <= WEBHOOKS_AT_ONCE / 2 {
            return None;
        }
        let mut busy = self.busy();
        let of_tenant = busy.values().filter(|busy| **busy == tenant.id()).count();
        if busy.contains_key(&webhook) || of_tenant >= TENANTS_WEBHOOKS_AT_ONCE {
            return None;
        }
        let permit = self.0.places.clone().try_acquire_owned().ok()?;
        busy.insert(webhook, tenant.id());
        Some(Place { sender: self.clone(), webhook, failing, _permit: permit })
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<WebhookId, TenantId>> {
        // The map stays whole whatever panicked while it was held.
        self.0.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is due to one webhook: round after round, while notices arrive and its turn lasts.
async fn send_to(tenant: Tenant, place: Place, shutdown: CancellationToken) {
    let mut at_once = if place.failing { 1 } else { SENT_AT_ONCE };
    for _ in 0..ROUNDS_MAX {
        match round(&place.sender, &tenant, place.webhook, at_once).await {
            Ok(true) if !shutdown.is_cancelled() => at_once = SENT_AT_ONCE,
            Ok(_) => break,
            Err(error) => {
                // What was claimed becomes due again.
                tracing::warn!(tenant.id = %tenant.id(), webhook.id = %place.webhook, %error, "a webhook was not told yet");
                break;
            }
        }
    }
}

/// True: notices arrived, and there may be more.
async fn round(
    sender: &WebhookSender,
    tenant: &Tenant,
    webhook: WebhookId,
    at_once: i64,
) -> Result<bool, WebhookError> {
    let parts = &sender.0.parts;
    let now = parts.clock.now();
    let mut tx = tenant.begin().await?;
    let claimed = deliveries::claim(&mut tx, &parts.master_key, webhook, (now, now.plus(CLAIM)), at_once).await?;
    tx.commit().await?;
    let Some((target, due)) = claimed else { return Ok(false) };
    let send = async |due: &Due| {
        let attempted = attempt::make(parts, &target, due).await;
        let mut tx = tenant.begin().await?;
        deliveries::settle(&mut tx, webhook, due.id, due.attempt, &attempted).await?;
        tx.commit().await?;
        if let After::Disable { reason, .. } = &attempted.after {
            tracing::info!(tenant.id = %tenant.id(), webhook.id = %webhook, reason, "a webhook was disabled");
        }
        Ok::<bool, WebhookError>(attempted.after == After::Delivered)
    };
    let settled = future::join_all(due.iter().map(send)).await;
    let arrived = settled.into_iter().collect::<Result<Vec<bool>, _>>()?;
    Ok(arrived.len() as i64 == at_once && arrived.contains(&true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_has_a_bound() {
        let small = json!({"run": {"id": 1}, "message": "x"});
        assert_eq!(bounded(small.clone()), small);
        let long = || "x".repeat(DATA_BYTES_MAX);
        let shortened = bounded(json!({"run": {"id": 1}, "message": long(), "output": 1}));
        assert_eq!(shortened, json!({"run": {"id": 1}, "output": 1, "shortened": true}));
        let shortened = bounded(json!({"run": {"id": 1}, "message": long(), "output": long()}));
        assert_eq!(shortened, json!({"run": {"id": 1}, "shortened": true}));
    }
}
