//! From the queues of all tenants into the places of this process.

use domain::{TenantId, Timestamp};
use futures::{StreamExt, stream};
use serde::Serialize;

use crate::{
    AgentRuntime,
    drive::Beginning,
    places::Place,
    runs::RunError,
    scheduler::{Class, Entitlement, Seen},
};

/// Runs that a process takes from the queues at once: their commits share a flush.
const TAKEN_AT_ONCE: usize = 16;

/// One tenant's queue, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Queue {
    pub tenant: TenantId,
    /// Its runs wait until it is no longer suspended.
    pub suspended: bool,
    /// Runs that are queued.
    pub waiting: u64,
    /// Runs that are driven, by every process. Those that wait for an approval are not.
    pub running: u64,
    /// Runs that its plan lets run at once.
    pub concurrent_runs: u32,
    pub weight: u32,
    /// How long its runs have held places of the process that answers. A process forgets a tenant that has had no run
    /// for a quarter of an hour.
    pub worker_seconds: f64,
    /// `over_plan` is served behind all that are `within_plan`, except once in ten seconds.
    pub class: Class,
    pub waiting_since: Option<Timestamp>,
}

impl AgentRuntime {
    /// The tenants of whom a run waits or is driven, the longest queue first.
    pub async fn queues(&self) -> Result<Vec<Queue>, RunError> {
        let rows = self.0.parts.db.queues(self.0.worker).await?;
        let mut queues: Vec<Queue> = rows
            .into_iter()
            .map(|row| Queue {
                tenant: row.tenant,
                suspended: row.suspended,
                waiting: row.waiting,
                running: row.running,
                concurrent_runs: row.runs_max,
                weight: row.weight,
                worker_seconds: self.0.places.spent(row.tenant).as_secs_f64(),
                class: Class::of(
                    usize::try_from(row.waiting).unwrap_or(usize::MAX),
                    Entitlement { weight: row.weight, runs_max: row.runs_max },
                ),
                waiting_since: row.oldest,
            })
            .collect();
        queues.sort_by_key(|queue| (std::cmp::Reverse(queue.waiting), queue.tenant));
        Ok(queues)
    }

    /// Learns who waits.
    pub(crate) async fn look_at_queues(&self) -> Result<(), RunError> {
        let asked_at = self.0.parts.clock.now();
        let rows = self.0.parts.db.queues(self.0.worker).await?;
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let seen: Vec<Seen> = rows
            .into_iter()
            .map(|row| Seen {
                tenant: row.tenant,
                entitlement: Entitlement { weight: row.weight, runs_max: row.runs_max },
                waiting: number(row.waiting),
                ready: number(row.ready),
                elsewhere: number(row.elsewhere),
            })
            .collect();
        self.0.places.see(&seen, asked_at);
        Ok(())
    }

    /// Begins the runs for whom there is a place.
    pub(crate) async fn fill_places(&self) -> Result<(), RunError> {
        loop {
            let next: Vec<Place> = std::iter::from_fn(|| self.0.places.next()).take(TAKEN_AT_ONCE).collect();
            if next.is_empty() {
                return Ok(());
            }
            let taken = stream::iter(next).map(|place| self.take_next(place)).buffer_unordered(TAKEN_AT_ONCE);
            // All are waited for: one that failed says nothing about the others.
            taken.collect::<Vec<_>>().await.into_iter().collect::<Result<(), _>>()?;
        }
    }

    async fn take_next(&self, place: Place) -> Result<(), RunError> {
        let parts = &self.0.parts;
        let now = parts.clock.now();
        let until = now.plus(parts.settings.lease);
        match parts.db.take_run_of(place.tenant(), self.0.worker, now, until).await {
            Ok(Some(taken)) => {
                self.drive_in_background(taken, Beginning::Queued, place);
                Ok(())
            }
            Ok(None) => {
                place.missed();
                Ok(())
            }
            Err(error) => {
                place.missed();
                Err(error.into())
            }
        }
    }
}
