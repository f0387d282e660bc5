//! Lookups of the same thing, answered together: who asks while one is under way waits for the next, and so do all who
//! come meanwhile. A tenant that sends hundreds of requests at once looks up its key a few times, and the connections stay
//! free for others. An answer is never older than the question.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::DbError;

pub(crate) struct Lookups<K: Eq + Hash + Copy, V>(Mutex<HashMap<K, Arc<Lookup<V>>>>);

struct Lookup<V> {
    /// How many have begun.
    begun: AtomicU64,
    /// The last one that ended: its number, and what it found. `None`: it failed.
    ended: tokio::sync::Mutex<(u64, Option<V>)>,
}

impl<K: Eq + Hash + Copy, V> Default for Lookups<K, V> {
    fn default() -> Self {
        Lookups(Mutex::default())
    }
}

impl<K: Eq + Hash + Copy, V: Clone> Lookups<K, V> {
    /// What `look` finds, or what it found for another that began after this call.
    pub(crate) async fn together(&self, key: K, look: impl Future<Output = Result<V, DbError>>) -> Result<V, DbError> {
        let seat = self.seat(key);
        let before = seat.lookup.begun.load(Ordering::Acquire);
        let mut ended = seat.lookup.ended.lock().await;
        if ended.0 > before {
            // Each of hundreds would wait for a database that is away, one after the other.
            return Ok(ended.1.clone().ok_or(sqlx::Error::PoolTimedOut)?);
        }
        let number = seat.lookup.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let found = look.await;
        *ended = (number, found.as_ref().ok().cloned());
        found
    }

    fn seat(&self, key: K) -> Seat<'_, K, V> {
        let new = || Lookup { begun: AtomicU64::new(0), ended: tokio::sync::Mutex::new((0, None)) };
        let lookup = self.lookups().entry(key).or_insert_with(|| Arc::new(new())).clone();
        Seat { of: self, key, lookup }
    }
}

impl<K: Eq + Hash + Copy, V> Lookups<K, V> {
    /// The map stays whole whatever panicked while it was held.
    fn lookups(&self) -> MutexGuard<'_, HashMap<K, Arc<Lookup<V>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by who asks. The last one takes the lookup with it.
struct Seat<'l, K: Eq + Hash + Copy, V> {
    of: &'l Lookups<K, V>,
    key: K,
    lookup: Arc<Lookup<V>>,
}

impl<K: Eq + Hash + Copy, V> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut lookups = self.of.lookups();
        // The map's and this one.
        if Arc::strong_count(&self.lookup) == 2 {
            lookups.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn who_asks_at_once_is_answered_by_two_lookups() {
        let lookups: Arc<Lookups<u8, u32>> = Arc::default();
        let (asked, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (lookups, asked, gate) = (lookups.clone(), asked.clone(), gate.clone());
            async move {
                let look = async {
                    let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.acquire().await.map(drop).map_err(|_| sqlx::Error::PoolClosed)?;
                    Ok(number)
                };
                lookups.together(7, look).await.unwrap()
            }
        };
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(ask());
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        (0..100).for_each(|_| drop(tasks.spawn(ask())));
        // All of them have come while the first was looked up.
        while lookups.lookups().get(&7).map_or(0, Arc::strong_count) < 102 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(Semaphore::MAX_PERMITS);
        let mut numbers = tasks.join_all().await;
        numbers.sort_unstable();
        assert_eq!(numbers[..2], [1, 2], "who came first has the first answer alone");
        assert!(numbers[1..].iter().all(|number| *number == 2), "not what was looked up before it came");
        assert!(lookups.lookups().is_empty());
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_waited_for_it() {
        let lookups: Lookups<u8, u32> = Lookups::default();
        let fails = || lookups.together(7, async { Err(sqlx::Error::PoolTimedOut.into()) });
        let (first, second) = tokio::join!(fails(), fails());
        assert!(first.is_err() && second.is_err());
        assert_eq!(lookups.together(7, async { Ok(1) }).await.unwrap(), 1);
    }
}
