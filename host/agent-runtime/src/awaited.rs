//! Those who wait for a run that nobody drives yet: they hear at once when it begins in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::RunId;
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Awaited(Mutex<HashMap<RunId, Arc<Notify>>>);

impl Awaited {
    /// The map stays whole whatever panicked while it was held.
    fn seats(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seat(self: &Arc<Self>, run: RunId) -> Seat {
        Seat { of: self.clone(), run, begun: self.seats().entry(run).or_default().clone() }
    }

    /// To be told when the run is driven here.
    pub(crate) fn begun(&self, run: RunId) {
        self.seats().get(&run).into_iter().for_each(|begun| begun.notify_waiters());
    }
}

/// Held by who waits. The last one takes the entry with it.
pub(crate) struct Seat {
    of: Arc<Awaited>,
    run: RunId,
    begun: Arc<Notify>,
}

impl Seat {
    /// What `look` finds. Where that is nothing: waits for so long, or until the run begins here, also when that was while
    /// it looked.
    pub(crate) async fn look<T>(&self, look: impl Future<Output = Option<T>>, longest: Duration) -> Option<T> {
        // From here on it hears: also what is told before it is asked.
        let begun = self.begun.notified();
        let found = look.await;
        if found.is_none() {
            // Late or in time, it is looked again.
            tokio::time::timeout(longest, begun).await.ok();
        }
        found
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.of.seats();
        // The map's and this one.
        if Arc::strong_count(&self.begun) == 2 {
            seats.remove(&self.run);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::{Ids, SystemIds};
    use tokio::time::Instant;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_a_beginning_also_of_one_while_it_looked() {
        let awaited: Arc<Awaited> = Arc::default();
        let (run, other) = (RunId::from(SystemIds.uuid()), RunId::from(SystemIds.uuid()));
        let seats = [awaited.seat(run), awaited.seat(run)];
        let began = Instant::now();
        let waits = async |seat: &Seat| {
            let look = async {
                awaited.begun(run);
                None::<()>
            };
            seat.look(look, HOUR).await
        };
        tokio::join!(waits(&seats[0]), waits(&seats[1]));
        assert_eq!(began.elapsed(), Duration::ZERO);
        // A run that nobody waits for, and the longest wait where nothing begins.
        awaited.begun(other);
        seats[0].look(async { None::<()> }, HOUR).await;
        assert_eq!(began.elapsed(), HOUR);
        assert_eq!(seats[0].look(async { Some(1) }, HOUR).await, Some(1));
        drop(seats);
        assert!(awaited.seats().is_empty());
    }
}
