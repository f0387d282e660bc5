//! What a call leaves in the tenant's key-value store: data, applied in the step's transaction.

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// One key that a call has written. A call has at most one for each key: what it came to in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub namespace: String,
    pub key: String,
    pub operation: Operation,
    /// What the call saw of the key before it wrote it. `None`: it wrote without looking. When the store holds something
    /// else by the time of the commit, the change is a conflict.
    pub seen: Option<Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Set(Bytes),
    Delete,
    /// Added to a decimal number; an absent key is 0. Never a conflict: its order does not matter.
    Add(u64),
}

/// What was read of a key, by content: an entry that was changed and changed back is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Absent,
    /// SHA-256 of the value.
    Value([u8; 32]),
}

impl Seen {
    pub fn of(value: Option<&[u8]>) -> Seen {
        match value {
            None => Seen::Absent,
            Some(value) => Seen::Value(Sha256::digest(value).into()),
        }
    }
}
