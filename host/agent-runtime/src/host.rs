//! What a tenant's call asks of this process while it works: the tenant's key-value store, to note what it is about to
//! send, and to tell of its progress.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use agent_config::key_value;
use async_trait::async_trait;
use bytes::Bytes;
use domain::{CallId, nul};
use serde_json::json;
use tenancy::Tenant;
use tokio::sync::Semaphore;
use tool_api::{CallHost, Change, HostError, Intent, Operation, Progress};

use crate::{intents::Sending, teller::Teller};

/// Reads of tools from tenants' stores at the same moment, in one process: connections to the database are for everybody.
pub(crate) const READS_AT_ONCE: usize = 4;
/// Reads of one call: each is a transaction.
const READS_MAX: u32 = 10_000;
/// Progress that is told of one call; what comes later is dropped. It is numbered and stored like a run's other events,
/// so that a reader who comes back misses and repeats nothing.
pub(crate) const PROGRESS_TOLD_MAX: u32 = 20;
/// Bytes of one progress text: a line for people.
const PROGRESS_BYTES_MAX: usize = 1024;

/// The host of one try of one call.
pub(crate) struct TenantHost {
    tenant: Tenant,
    turns: Arc<Semaphore>,
    reads: AtomicU32,
    sending: Sending,
    earlier: Overlay,
    listener: Option<Listener>,
}

struct Listener {
    call: CallId,
    teller: Arc<Teller>,
    told: AtomicU32,
}

impl TenantHost {
    pub(crate) fn new(tenant: &Tenant, turns: &Arc<Semaphore>, sending: Sending) -> TenantHost {
        let (tenant, turns) = (tenant.clone(), turns.clone());
        TenantHost { tenant, turns, reads: AtomicU32::new(0), sending, earlier: Overlay::default(), listener: None }
    }

    /// Progress is told as events of a run.
    pub(crate) fn telling(self, teller: &Arc<Teller>) -> TenantHost {
        let call = self.sending.call;
        let listener = Listener { call, teller: teller.clone(), told: AtomicU32::new(0) };
        TenantHost { listener: Some(listener), ..self }
    }

    /// Reads see what earlier calls of the step have written and nobody has committed.
    pub(crate) fn over(self, earlier: Overlay) -> TenantHost {
        TenantHost { earlier, ..self }
    }

    /// One transaction for one read: nothing is held while the tool works.
    async fn stored(&self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        let _turn = self.turn().await?;
        let mut tx = self.tenant.begin().await.map_err(failed)?;
        key_value::read(&mut tx, namespace, key).await.map_err(failed)
    }

    async fn stored_keys(&self, namespace: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, HostError> {
        let _turn = self.turn().await?;
        let mut tx = self.tenant.begin().await.map_err(failed)?;
        key_value::keys(&mut tx, namespace, after, limit).await.map_err(failed)
    }

    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, HostError> {
        if self.reads.fetch_add(1, Ordering::SeqCst) >= READS_MAX {
            return Err(failed(format!("a call has read more than {READS_MAX} times")));
        }
        self.turns.acquire().await.map_err(failed)
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
    HostError(error.into())
}

#[async_trait]
impl CallHost for TenantHost {
    async fn get(&self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        Ok(self.earlier.value(namespace, key, self.stored(namespace, key).await?))
    }

    async fn keys(&self, namespace: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, HostError> {
        let mut found = BTreeSet::new();
        let mut from = after.map(str::to_owned);
        loop {
            let page = self.stored_keys(namespace, from.as_deref(), limit).await?;
            let until = (page.len() >= limit as usize).then(|| page.last().cloned()).flatten();
            self.earlier.lay_over(&mut found, page, namespace, from.as_deref(), until.as_deref());
            // Deleted keys make a page shorter, and a short page says that it is the last one.
            if until.is_none() || found.len() >= limit as usize {
                return Ok(found.into_iter().take(limit as usize).collect());
            }
            from = until;
        }
    }

    async fn sending(&self, intent: Intent) -> Result<(), HostError> {
        self.sending.note(&self.tenant, intent).await
    }

    fn progress(&self, progress: Progress) {
        let Some(Listener { call, teller, told }) = &self.listener else { return };
        if told.fetch_add(1, Ordering::SeqCst) >= PROGRESS_TOLD_MAX {
            return;
        }
        let mut text = nul::replaced(progress.text);
        text.truncate(text.floor_char_boundary(PROGRESS_BYTES_MAX));
        let mut data = json!({"id": call, "text": text});
        if let Some(percent) = progress.percent {
            data["percent"] = percent.min(100).into();
        }
        teller.event("tool_call.progress", data);
    }
}

/// Changes that lie over the stored entries.
#[derive(Default)]
pub(crate) struct Overlay(BTreeMap<(String, String), Vec<Operation>>);

impl Overlay {
    pub(crate) fn of<'c>(changes: impl IntoIterator<Item = &'c Change>) -> Overlay {
        let mut overlay = Overlay::default();
        for Change { namespace, key, operation, .. } in changes {
            overlay.0.entry((namespace.clone(), key.clone())).or_default().push(operation.clone());
        }
        overlay
    }

    fn value(&self, namespace: &str, key: &str, stored: Option<Bytes>) -> Option<Bytes> {
        let operations = self.0.get(&(namespace.to_owned(), key.to_owned()));
        operations.into_iter().flatten().fold(stored, |value, operation| match operation {
            Operation::Set(value) => Some(value.clone()),
            Operation::Delete => None,
            Operation::Add(delta) => added(value, *delta),
        })
    }

    /// The page of keys after `from` and up to `until`, as it is over these changes.
    fn lay_over(
        &self,
        found: &mut BTreeSet<String>,
        page: Vec<String>,
        namespace: &str,
        from: Option<&str>,
        until: Option<&str>,
    ) {
        found.extend(page);
        for ((of, key), operations) in &self.0 {
            let outside = of != namespace
                || from.is_some_and(|from| key.as_str() <= from)
                || until.is_some_and(|until| key.as_str() > until);
            match operations.last() {
                _ if outside => {}
                Some(Operation::Delete) => {
                    found.remove(key);
                }
                _ => {
                    found.insert(key.clone());
                }
            }
        }
    }
}

/// A value that is no number stays: the call that added to it will not be applied either.
fn added(value: Option<Bytes>, delta: u64) -> Option<Bytes> {
    let number = match &value {
        None => Some(0),
        Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok()),
    };
    number.and_then(|number| number.checked_add(delta)).map(|sum| Bytes::from(sum.to_string())).or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(changes: &[(&str, Operation)]) -> Overlay {
        let changes: Vec<Change> = changes
            .iter()
            .map(|(key, operation)| Change {
                namespace: "n".into(),
                key: (*key).into(),
                operation: operation.clone(),
                seen: None,
            })
            .collect();
        Overlay::of(&changes)
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn set(text: &'static str) -> Operation {
        Operation::Set(bytes(text))
    }

    #[test]
    fn a_value_is_what_earlier_calls_made_of_it() {
        for (operations, stored, expected) in [
            (vec![], Some("a"), Some("a")),
            (vec![set("b")], Some("a"), Some("b")),
            (vec![set("b"), Operation::Delete], Some("a"), None),
            (vec![Operation::Delete, set("c")], None, Some("c")),
            (vec![Operation::Add(2), Operation::Add(3)], None, Some("5")),
            (vec![Operation::Add(2)], Some("40"), Some("42")),
            (vec![set("7"), Operation::Add(1)], Some("x"), Some("8")),
            (vec![Operation::Add(1)], Some("x"), Some("x")),
            (vec![Operation::Add(u64::MAX)], Some("1"), Some("1")),
        ] {
            let changes: Vec<_> = operations.iter().map(|operation| ("k", operation.clone())).collect();
            let stored = stored.map(bytes);
            let expected = expected.map(bytes);
            assert_eq!(overlay(&changes).value("n", "k", stored.clone()), expected, "{operations:?}");
            assert_eq!(overlay(&changes).value("n", "other", stored.clone()), stored);
            assert_eq!(overlay(&changes).value("other", "k", stored.clone()), stored);
        }
    }

    #[test]
    fn a_page_of_keys_is_laid_over() {
        let over = overlay(&[("a", set("")), ("c", Operation::Delete), ("e", Operation::Add(1)), ("z", set(""))]);
        for (page, from, until, expected) in [
            (vec!["b", "c", "d"], None, None, vec!["a", "b", "d", "e", "z"]),
            (vec!["b", "c", "d"], Some("a"), Some("d"), vec!["b", "d"]),
            (vec![], Some("e"), None, vec!["z"]),
        ] {
            let mut found = BTreeSet::new();
            let page = page.into_iter().map(str::to_owned).collect();
            over.lay_over(&mut found, page, "n", from, until);
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
        }
    }
}
