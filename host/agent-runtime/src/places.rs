//! The places in which a process drives runs, and the runs that wait for one. Below it, `scheduler` decides.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{Clock, TenantId, Timestamp};
use tenancy::plans::Plan;
use tokio::sync::Notify;

use crate::scheduler::{Entitlement, Full, Scheduler, Seen};

pub(crate) struct Places {
    scheduler: Mutex<Scheduler>,
    clock: Arc<dyn Clock>,
    /// Somebody waits, and may find a place.
    open: Notify,
}

impl Places {
    pub(crate) fn new(places: usize, queued_max: usize, clock: Arc<dyn Clock>) -> Arc<Places> {
        let scheduler = Mutex::new(Scheduler::new(places, queued_max));
        Arc::new(Places { scheduler, clock, open: Notify::new() })
    }

    /// The numbers stay whole whatever panicked while they were held.
    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run is about to be accepted: refused here, it costs nobody a transaction.
    pub(crate) fn arrive(self: &Arc<Self>, tenant: TenantId) -> Result<Arrival, Full> {
        self.scheduler().arrive(tenant, self.clock.now())?;
        Ok(Arrival { places: self.clone(), tenant })
    }

    /// The place of the run that goes next.
    pub(crate) fn next(self: &Arc<Self>) -> Option<Place> {
        let taken_at = self.clock.now();
        let tenant = self.scheduler().next(taken_at)?;
        Some(Place { places: self.clone(), tenant, taken_at, missed: false })
    }

    /// A place of a run that was begun before, even where the tenant has no more to take.
    pub(crate) fn take(self: &Arc<Self>, tenant: TenantId) -> Place {
        let taken_at = self.clock.now();
        self.scheduler().take(tenant, taken_at);
        Place { places: self.clone(), tenant, taken_at, missed: false }
    }

    /// What the database said when it was asked.
    pub(crate) fn see(&self, seen: &[Seen], asked_at: Timestamp) {
        self.scheduler().see(seen, asked_at, self.clock.now());
    }

    pub(crate) fn spent(&self, tenant: TenantId) -> Duration {
        self.scheduler().spent(tenant, self.clock.now())
    }

    /// Ready when somebody waits and may find a place.
    pub(crate) async fn opened(&self) {
        self.open.notified().await;
    }
}

/// A run on its way into the queue of its tenant. Dropped, it has never been there.
pub(crate) struct Arrival {
    places: Arc<Places>,
    tenant: TenantId,
}

impl Arrival {
    /// What its plan gives to the tenant, before `place` or `wait`.
    pub(crate) fn entitled(&self, plan: &Plan) {
        let now = self.places.clock.now();
        self.places.scheduler().entitled(self.tenant, entitlement(plan), now);
    }

    /// A place at once, where that passes nobody by.
    pub(crate) fn place(&self) -> Option<Place> {
        let taken_at = self.places.clock.now();
        let entered = self.places.scheduler().enter(self.tenant, taken_at);
        entered.then(|| Place { places: self.places.clone(), tenant: self.tenant, taken_at, missed: false })
    }

    /// The run is queued, and committed as such.
    pub(crate) fn wait(self) {
        self.places.scheduler().wait(self.tenant, self.places.clock.now());
        self.places.open.notify_one();
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.places.scheduler().arrived(self.tenant);
    }
}

/// Held for as long as a run is driven here: what its tenant is charged.
pub(crate) struct Place {
    places: Arc<Places>,
    tenant: TenantId,
    taken_at: Timestamp,
    missed: bool,
}

impl Place {
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// None of the tenant's runs could begin.
    pub(crate) fn missed(mut self) {
        self.missed = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = self.places.clock.now();
        if self.missed {
            self.places.scheduler().miss(self.tenant, self.taken_at, now);
        } else {
            self.places.scheduler().leave(self.tenant, self.taken_at, now);
        }
        // Also after a miss: the place is another's.
        self.places.open.notify_one();
    }
}

/// Both numbers are greater than zero (`Plan::check`).
fn entitlement(plan: &Plan) -> Entitlement {
    Entitlement { weight: plan.weight.unsigned_abs(), runs_max: plan.concurrent_runs.unsigned_abs() }
}
