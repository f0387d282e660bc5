//! A namespace over `wasi:keyvalue`.

use super::generated::wasi::keyvalue::{atomics, batch, store};
use crate::kv::Error;

#[derive(Debug)]
pub(crate) struct Bucket(store::Bucket);

pub(crate) fn open(namespace: &str) -> Result<Bucket, Error> {
    store::open(namespace).map(Bucket).map_err(error)
}

impl Bucket {
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.0.get(key).map_err(error)
    }

    /// The answers come with their keys, and need not be in the order of asking.
    pub(crate) fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let names: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let found = batch::get_many(&self.0, &names).map_err(error)?;
        let value = |key: &&str| found.iter().flatten().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        Ok(keys.iter().map(value).collect())
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.0.set(key, value).map_err(error)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        self.0.delete(key).map_err(error)
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, Error> {
        self.0.exists(key).map_err(error)
    }

    pub(crate) fn increment(&self, key: &str, delta: u64) -> Result<u64, Error> {
        atomics::increment(&self.0, key, delta).map_err(error)
    }

    /// A page, and what the next one is asked with.
    pub(crate) fn keys(&self, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), Error> {
        self.0.list_keys(cursor).map(|page| (page.keys, page.cursor)).map_err(error)
    }
}

fn error(error: store::Error) -> Error {
    match error {
        store::Error::AccessDenied => Error::Denied,
        store::Error::NoSuchStore => Error::NoSuchStore,
        store::Error::Other(words) => Error::Failed(words),
    }
}
