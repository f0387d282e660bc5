//! `wasi:keyvalue`: granted namespaces of the tenant's store. A call reads what is committed, under what it has written
//! itself; what it has written leaves with its outcome and is committed with the step. Nothing is written from here.

mod bucket;
mod overlay;

use std::collections::VecDeque;

use bytes::Bytes;
use tool_api::{Change, HostError};
use wasmtime::component::{HasSelf, Linker};

#[expect(unreachable_pub, reason = "the generated bindings export it again")]
pub use bucket::Bucket;
use overlay::{Local, Overlay, Refusal};

use crate::{
    bindings::wasi::keyvalue::{atomics, batch, store},
    sandbox::Sandbox,
};

/// Keys of one page.
const PAGE_KEYS_MAX: u32 = 100;
/// Places in listings that are remembered. Older ones are forgotten: a listing goes forward.
const CURSORS_MAX: usize = 100;
/// Keys of one `get-many`, and the bytes of their values: the host holds them until the tool has taken them.
const BATCH_KEYS_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// The store as one call sees it.
#[derive(Default)]
pub(crate) struct KeyValue {
    overlay: Overlay,
    cursors: Cursors,
}

impl KeyValue {
    /// What the call leaves, by namespace and key.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.overlay.into_changes()
    }
}

/// Places in listings. A tool is given a number for each.
#[derive(Default)]
struct Cursors {
    /// The number of the first place that is remembered.
    first: u64,
    /// A namespace, and the key that a page ended with.
    places: VecDeque<(String, String)>,
}

impl Cursors {
    fn remember(&mut self, namespace: &str, after: String) -> u64 {
        if self.places.len() >= CURSORS_MAX {
            self.places.pop_front();
            self.first += 1;
        }
        self.places.push_back((namespace.to_owned(), after));
        self.first + self.places.len() as u64 - 1
    }

    fn find(&self, namespace: &str, cursor: u64) -> Option<&str> {
        let index = usize::try_from(cursor.checked_sub(self.first)?).ok()?;
        self.places.get(index).filter(|(of, _)| of == namespace).map(|(_, after)| after.as_str())
    }
}

/// Why the store does not do what a tool asks.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("not granted")]
    Denied,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("this is no cursor of this listing, or an old one; list from the start")]
    NoCursor,
    #[error("a batch reads at most {BATCH_KEYS_MAX} keys and {BATCH_BYTES_MAX} bytes; read fewer")]
    BatchTooLarge,
}

impl From<Failure> for store::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Denied => store::Error::AccessDenied,
            failure => store::Error::Other(failure.to_string()),
        }
    }
}

impl Sandbox {
    /// What is committed under a key.
    async fn committed(&mut self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        self.call.inputs.key_value_get(namespace, key, self.host.get(namespace, key)).await
    }

    /// What the call finds under a key.
    async fn value(&mut self, namespace: &str, key: &str) -> Result<Option<Bytes>, Failure> {
        let delta = match self.key_value.overlay.local(namespace, key)? {
            Local::Known(value) => return Ok(value),
            Local::Committed => None,
            Local::Added(delta) => Some(delta),
        };
        let committed = self.committed(namespace, key).await?;
        self.key_value.overlay.saw(namespace, key, committed.as_deref())?;
        match delta {
            None => Ok(committed),
            Some(delta) => Ok(Some(overlay::added(committed.as_deref(), delta)?)),
        }
    }

    /// Adds to the number under a key. The sum may be stale when the step commits; what is added is not.
    async fn increment(&mut self, namespace: &str, key: &str, delta: u64) -> Result<u64, Failure> {
        let committed = match self.key_value.overlay.local(namespace, key)? {
            Local::Known(_) => None,
            Local::Committed | Local::Added(_) => self.committed(namespace, key).await?,
        };
        Ok(self.key_value.overlay.increment(namespace, key, committed.as_deref(), delta)?)
    }

    /// The keys of a namespace from a cursor on: a page, and the cursor of the next.
    async fn keys(&mut self, namespace: &str, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), Failure> {
        let place = cursor.map(|cursor| self.key_value.cursors.find(namespace, cursor).ok_or(Failure::NoCursor));
        let mut after = place.transpose()?.map(str::to_owned);
        loop {
            let (from, limit) = (after.as_deref(), PAGE_KEYS_MAX);
            let read = self.host.keys(namespace, from, limit);
            let committed = self.call.inputs.key_value_keys(namespace, from, limit, read).await?;
            let page = self.key_value.overlay.page(namespace, from, committed, limit as usize);
            // The call may have deleted a whole page; an empty one would look like the end.
            if page.keys.is_empty() && page.after.is_some() {
                after = page.after;
                continue;
            }
            let next = page.after.map(|after| self.key_value.cursors.remember(namespace, after));
            return Ok((page.keys, next));
        }
    }

    /// What the call finds under several keys.
    async fn values(&mut self, namespace: &str, keys: &[String]) -> Result<Vec<Option<Bytes>>, Failure> {
        if keys.len() > BATCH_KEYS_MAX {
            return Err(Failure::BatchTooLarge);
        }
        let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let value = self.value(namespace, key).await?;
            bytes += value.as_ref().map_or(0, Bytes::len);
            if bytes > BATCH_BYTES_MAX {
                return Err(Failure::BatchTooLarge);
            }
            values.push(value);
        }
        Ok(values)
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    store::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;
    atomics::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;
    batch::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_places_of_one_listing_and_few() {
        let mut cursors = Cursors::default();
        let first = cursors.remember("notes", "a".into());
        assert_eq!(cursors.find("notes", first), Some("a"));
        assert_eq!(cursors.find("other", first), None);
        assert_eq!(cursors.find("notes", first + 1), None);
        assert_eq!(cursors.find("notes", u64::MAX), None);
        let last = (0..CURSORS_MAX).map(|n| cursors.remember("notes", n.to_string())).last().unwrap();
        assert_eq!(cursors.find("notes", first), None, "forgotten");
        assert_eq!(cursors.find("notes", last), Some("99"));
        assert_eq!(cursors.places.len(), CURSORS_MAX);
    }
}
