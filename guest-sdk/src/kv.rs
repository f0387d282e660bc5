//! The tenant's key-value store, in the namespaces that a grant names.
//!
//! What a call writes is kept when the call has answered, in one piece; a call that traps or runs into a limit leaves
//! nothing. A key has 1 to 512 bytes, a value at most 256 KiB.
//!
//! ```
//! use belljar_tool::{Result, kv, testing::Call, tool};
//!
//! /// Counts a visit of the end user.
//! #[tool]
//! fn visit() -> Result<u64> {
//!     Ok(kv::open("visits/{external_user_id}")?.increment("count", 1)?)
//! }
//!
//! let call = Call::new().key_value("visits/{external_user_id}");
//! assert_eq!(call.run(|| (visit().unwrap(), visit().unwrap())), (1, 2));
//! assert_eq!(call.entries("visits/{external_user_id}")["count"], b"2");
//!
//! // Without a grant:
//! assert_eq!(visit().unwrap_err().to_string(), "denied: add the namespace to the binding's key_value grants");
//! ```

use crate::host;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::VecDeque;
use std::fmt;

/// How a use of the store failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No grant names this namespace, or the grant is for reading and this was a write.
    Denied,
    /// No store has this name.
    NoSuchStore,
    /// In the host's words.
    Failed(String),
    /// The value is not what was asked for, or cannot be JSON.
    Unreadable(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Denied => f.write_str("denied: add the namespace to the binding's key_value grants"),
            Error::NoSuchStore => f.write_str("no key-value store has this name"),
            Error::Failed(words) => write!(f, "the key-value store failed: {words}"),
            Error::Unreadable(words) => write!(f, "the stored value cannot be read: {words}"),
        }
    }
}

impl std::error::Error for Error {}

/// Opens a namespace by the text of its grant, `{external_user_id}` and all. `""` opens the only one that is granted.
pub fn open(namespace: &str) -> Result<Store, Error> {
    host::open(namespace).map(Store)
}

/// A namespace, open.
#[derive(Debug)]
pub struct Store(host::Bucket);

impl Store {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.0.get(key)
    }

    /// The value of a key, as UTF-8.
    pub fn get_text(&self, key: &str) -> Result<Option<String>, Error> {
        let text = self.get(key)?.map(String::from_utf8).transpose();
        text.map_err(|_| Error::Unreadable(format!("`{key}` holds no UTF-8 text")))
    }

    /// The value of a key, from JSON.
    pub fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let value = self.get(key)?.map(|value| serde_json::from_slice(&value)).transpose();
        value.map_err(|error| Error::Unreadable(format!("`{key}`: {error}")))
    }

    /// The values of several keys, in their order, in one call of the host.
    pub fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.0.get_many(keys)
    }

    /// Sets a key.
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.0.set(key, value.as_ref())
    }

    /// Sets a key to a JSON value.
    pub fn set_json(&self, key: &str, value: &impl Serialize) -> Result<(), Error> {
        let value = serde_json::to_vec(value).map_err(|error| Error::Unreadable(format!("`{key}`: {error}")))?;
        self.set(key, value)
    }

    /// Deletes a key; one that is not there, too.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        self.0.delete(key)
    }

    /// Whether a key is there.
    pub fn exists(&self, key: &str) -> Result<bool, Error> {
        self.0.exists(key)
    }

    /// Adds to a key that holds a decimal number, 0 if it is not there, and answers what this call sees of the sum.
    /// Calls that add at the same time are all counted, so the answer may be behind.
    pub fn increment(&self, key: &str, delta: u64) -> Result<u64, Error> {
        self.0.increment(key, delta)
    }

    /// All keys, in order, page by page.
    ///
    /// ```
    /// use belljar_tool::{kv, testing::Call};
    ///
    /// let call = Call::new().key_value("notes").entry("notes", "b", "2").entry("notes", "a", "1");
    /// let keys = call.run(|| kv::open("notes")?.keys().collect::<Result<Vec<_>, _>>());
    /// assert_eq!(keys.unwrap(), ["a", "b"]);
    /// ```
    pub fn keys(&self) -> Keys<'_> {
        Keys { store: self, page: VecDeque::new(), next: Some(None) }
    }
}

/// The keys of a namespace. Ends after an error.
#[derive(Debug)]
pub struct Keys<'s> {
    store: &'s Store,
    page: VecDeque<String>,
    /// What the next page is asked with; none when there is no next page.
    next: Option<Option<u64>>,
}

impl Iterator for Keys<'_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() {
            let cursor = self.next.take()?;
            match self.store.0.keys(cursor) {
                Ok((keys, more)) => {
                    self.page = keys.into();
                    self.next = more.map(Some);
                }
                Err(error) => return Some(Err(error)),
            }
        }
        self.page.pop_front().map(Ok)
    }
}
