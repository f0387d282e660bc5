//! What one call has written, laid over what is committed. Pure: whoever drives it reads the store.

use std::{
    collections::{BTreeMap, btree_map},
    ops::Bound::{Excluded, Included, Unbounded},
};

use bytes::Bytes;
use tool_api::{Change, Operation, Seen};

/// Longest key, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes: it passes between a tool and the host in one call.
pub(crate) const VALUE_BYTES_MAX: usize = 256 << 10;
/// Keys that one call writes, and their bytes with their values: they are held until the step commits.
const WRITTEN_KEYS_MAX: usize = 1_000;
const WRITTEN_BYTES_MAX: usize = 4 << 20;
/// Keys that one call reads or writes: what it saw of each is held until it ends.
const KNOWN_KEYS_MAX: usize = 10_000;

/// Why a key cannot be read or written, in words for the tool's author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes; use another one")]
    BadKey,
    #[error("a value has at most {VALUE_BYTES_MAX} bytes; store less, or under several keys")]
    ValueTooLarge,
    #[error("a call writes at most {WRITTEN_KEYS_MAX} keys; write fewer")]
    TooManyKeys,
    #[error("a call writes at most {WRITTEN_BYTES_MAX} bytes; write less")]
    TooManyBytes,
    #[error("a call reads at most {KNOWN_KEYS_MAX} keys; read fewer")]
    TooManyReads,
    #[error("the value is not a decimal number from 0 to {max}; set the key first", max = u64::MAX)]
    NotANumber,
    #[error("the number would be larger than {max}; set the key to a smaller one", max = u64::MAX)]
    NumberTooLarge,
}

/// What a call finds of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Local {
    /// The call wrote it: no need to ask the store.
    Known(Option<Bytes>),
    /// What is committed.
    Committed,
    /// What is committed and so much more.
    Added(u64),
}

/// A part of a namespace's keys, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) keys: Vec<String>,
    /// Where the next page begins, when there may be one.
    pub(crate) after: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// By namespace, then by key.
    spaces: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Entries of all namespaces; those that were written; the bytes of these.
    known: usize,
    written: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Entry {
    /// What the first read found. When a later one finds something else, the commit finds it too: a conflict.
    read: Option<Seen>,
    /// What was read before the last write.
    seen: Option<Seen>,
    operation: Option<Operation>,
}

impl Overlay {
    pub(crate) fn local(&self, namespace: &str, key: &str) -> Result<Local, Refusal> {
        check_key(key)?;
        let entry = self.spaces.get(namespace).and_then(|space| space.get(key));
        Ok(match entry.and_then(|entry| entry.operation.as_ref()) {
            None => Local::Committed,
            Some(Operation::Set(value)) => Local::Known(Some(value.clone())),
            Some(Operation::Delete) => Local::Known(None),
            Some(Operation::Add(delta)) => Local::Added(*delta),
        })
    }

    /// The call reads what is committed; what it writes to this key from now on depends on it.
    pub(crate) fn saw(&mut self, namespace: &str, key: &str, committed: Option<&[u8]>) -> Result<(), Refusal> {
        let entry = self.entry(namespace, key)?;
        entry.read.get_or_insert_with(|| Seen::of(committed));
        Ok(())
    }

    pub(crate) fn set(&mut self, namespace: &str, key: &str, value: Bytes) -> Result<(), Refusal> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(Refusal::ValueTooLarge);
        }
        self.write(namespace, key, Operation::Set(value))
    }

    pub(crate) fn delete(&mut self, namespace: &str, key: &str) -> Result<(), Refusal> {
        self.write(namespace, key, Operation::Delete)
    }

    /// Adds to a number and tells the sum. `committed` is looked at where `local` does not know the value.
    pub(crate) fn increment(
        &mut self,
        namespace: &str,
        key: &str,
        committed: Option<&[u8]>,
        delta: u64,
    ) -> Result<u64, Refusal> {
        let (sum, operation) = match self.local(namespace, key)? {
            Local::Known(value) => {
                let sum = plus(number(value.as_deref())?, delta)?;
                (sum, Operation::Set(Bytes::from(sum.to_string())))
            }
            Local::Committed => (plus(number(committed)?, delta)?, Operation::Add(delta)),
            Local::Added(before) => {
                let delta = plus(before, delta)?;
                (plus(number(committed)?, delta)?, Operation::Add(delta))
            }
        };
        self.write(namespace, key, operation)?;
        Ok(sum)
    }

    /// A page of keys: `committed` are the first ones after `after`, at most `limit`, which is at least 1.
    pub(crate) fn page(&self, namespace: &str, after: Option<&str>, committed: Vec<String>, limit: usize) -> Page {
        let end = (committed.len() >= limit).then(|| committed.last().cloned()).flatten();
        let mut keys = committed;
        if let Some(space) = self.spaces.get(namespace) {
            let operation = |key: &str| space.get(key).and_then(|entry| entry.operation.as_ref());
            keys.retain(|key| operation(key).is_none());
            let range = (after.map_or(Unbounded, Excluded), end.as_deref().map_or(Unbounded, Included));
            if after.zip(end.as_deref()).is_none_or(|(after, end)| after < end) {
                let written = space.range::<str, _>(range);
                let present =
                    written.filter(|(_, entry)| matches!(entry.operation, Some(Operation::Set(_) | Operation::Add(_))));
                keys.extend(present.map(|(key, _)| key.clone()));
                keys.sort_unstable();
            }
        }
        let mut after = end;
        if keys.len() > limit {
            keys.truncate(limit);
            after = keys.last().cloned();
        }
        Page { keys, after }
    }

    /// What the call leaves, by namespace and key.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.written);
        for (namespace, space) in self.spaces {
            for (key, entry) in space {
                if let Some(operation) = entry.operation {
                    changes.push(Change { namespace: namespace.clone(), key, operation, seen: entry.seen });
                }
            }
        }
        changes
    }

    fn write(&mut self, namespace: &str, key: &str, operation: Operation) -> Result<(), Refusal> {
        let (written, bytes) = (self.written, self.bytes);
        let entry = self.entry(namespace, key)?;
        let old = entry.operation.as_ref().map(|operation| size(key, operation));
        let written = written + usize::from(old.is_none());
        let bytes = bytes - old.unwrap_or(0) + size(key, &operation);
        if written > WRITTEN_KEYS_MAX {
            return Err(Refusal::TooManyKeys);
        }
        if bytes > WRITTEN_BYTES_MAX {
            return Err(Refusal::TooManyBytes);
        }
        entry.operation = Some(operation);
        entry.seen = entry.seen.or(entry.read);
        (self.written, self.bytes) = (written, bytes);
        Ok(())
    }

    fn entry(&mut self, namespace: &str, key: &str) -> Result<&mut Entry, Refusal> {
        check_key(key)?;
        let space = self.spaces.entry(namespace.to_owned()).or_default();
        match space.entry(key.to_owned()) {
            btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            btree_map::Entry::Vacant(_) if self.known >= KNOWN_KEYS_MAX => Err(Refusal::TooManyReads),
            btree_map::Entry::Vacant(place) => {
                self.known += 1;
                Ok(place.insert(Entry::default()))
            }
        }
    }
}

/// The text of a number that was read and added to.
pub(crate) fn added(committed: Option<&[u8]>, delta: u64) -> Result<Bytes, Refusal> {
    Ok(plus(number(committed)?, delta)?.to_string().into())
}

/// A number is decimal ASCII digits; an absent key is 0.
fn number(value: Option<&[u8]>) -> Result<u64, Refusal> {
    let Some(value) = value else { return Ok(0) };
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or(Refusal::NotANumber)
}

fn plus(number: u64, delta: u64) -> Result<u64, Refusal> {
    number.checked_add(delta).ok_or(Refusal::NumberTooLarge)
}

fn check_key(key: &str) -> Result<(), Refusal> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) { Ok(()) } else { Err(Refusal::BadKey) }
}

fn size(key: &str, operation: &Operation) -> usize {
    key.len()
        + match operation {
            Operation::Set(value) => value.len(),
            Operation::Delete => 0,
            Operation::Add(_) => size_of::<u64>(),
        }
}

#[cfg(test)]
mod tests;
