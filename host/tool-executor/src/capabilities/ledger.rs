//! What a call did with its capabilities, for the receipt. Whatever a guest does, it stays small: the first uses are
//! told one by one, all are counted under names that this host chose.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::SecretName;
use tool_api::{HostCall, receipt::HOST_CALLS_TOLD_MAX};

/// Longest target, grant and error that is kept, in bytes: they are shown to people.
const WORDS_BYTES_MAX: usize = 300;

/// The ledger of one call. Clones are the same ledger: what outlives its host function (a body on its way) tells later.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    told: Vec<HostCall>,
    counts: BTreeMap<String, u64>,
    secrets: Vec<SecretName>,
}

impl Ledger {
    /// `interface` and `function` are the host's words, never the guest's.
    pub(crate) fn tell(&self, mut call: HostCall) {
        let mut entries = self.entries();
        let name = format!("{}.{}", call.interface, call.function);
        *entries.counts.entry(name).or_default() += 1;
        if entries.told.len() < HOST_CALLS_TOLD_MAX {
            for words in [&mut call.target, &mut call.grant, &mut call.error].into_iter().flatten() {
                words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
            }
            entries.told.push(call);
        }
    }

    /// A secret was read, or added to a request. Its name comes from a grant, so there are no more than grants.
    pub(crate) fn used(&self, secret: &SecretName) {
        let mut entries = self.entries();
        if !entries.secrets.contains(secret) {
            entries.secrets.push(secret.clone());
        }
    }

    /// Ends the ledger: what was told, what was counted, and the secrets that were used.
    pub(crate) fn finish(&self) -> (Vec<HostCall>, BTreeMap<String, u64>, Vec<SecretName>) {
        let Entries { told, counts, secrets } = std::mem::take(&mut *self.entries());
        (told, counts, secrets)
    }

    /// A panic of ours while the lock was held leaves a ledger that is still readable.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One use that begins now.
pub(crate) fn use_of(interface: &str, function: &str) -> HostCall {
    HostCall {
        interface: interface.to_owned(),
        function: function.to_owned(),
        target: None,
        bytes_in: 0,
        bytes_out: 0,
        duration_us: 0,
        grant: None,
        error: None,
    }
}

/// The time since `started`, as a receipt says it.
pub(crate) fn micros_since(started: Instant) -> u64 {
    micros(started.elapsed())
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_uses_are_told_and_all_are_counted() {
        let ledger = Ledger::default();
        for n in 0..HOST_CALLS_TOLD_MAX + 10 {
            let target = Some(format!("{n} {}", "ä".repeat(WORDS_BYTES_MAX)));
            ledger.clone().tell(HostCall { target, ..use_of("wasi:keyvalue", "get") });
        }
        ledger.tell(use_of("wasi:http", "send"));
        let secret: SecretName = "token".parse().unwrap();
        ledger.used(&secret);
        ledger.used(&secret);
        let (told, counts, secrets) = ledger.finish();
        assert_eq!(told.len(), HOST_CALLS_TOLD_MAX);
        assert!(told.iter().all(|call| call.target.as_ref().is_some_and(|target| target.len() <= WORDS_BYTES_MAX)));
        assert_eq!(counts, [("wasi:http.send".to_owned(), 1), ("wasi:keyvalue.get".to_owned(), 110)].into());
        assert_eq!(secrets, [secret]);
    }
}
