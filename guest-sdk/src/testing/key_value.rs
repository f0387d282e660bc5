//! A key-value store in a test's memory.

use super::{Call, current};
use crate::kv::Error;

/// A page has few keys, so that a test's handful takes several.
const PAGE_KEYS: usize = 2;

#[derive(Debug)]
pub(crate) struct Bucket {
    call: Call,
    namespace: String,
}

pub(crate) fn open(namespace: &str) -> Result<Bucket, Error> {
    let call = current();
    let granted = match (namespace, call.namespaces.keys().collect::<Vec<_>>().as_slice()) {
        ("", [only]) => Some((*only).clone()),
        _ => Some(namespace.to_owned()).filter(|namespace| call.namespaces.contains_key(namespace)),
    };
    granted.map(|namespace| Bucket { call, namespace }).ok_or(Error::Denied)
}

impl Bucket {
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.call.entries.borrow().get(&self.namespace).and_then(|entries| entries.get(key)).cloned())
    }

    pub(crate) fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.may_write()?;
        self.call.entries.borrow_mut().entry(self.namespace.clone()).or_default().insert(key.into(), value.into());
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        self.may_write()?;
        self.call.entries.borrow_mut().entry(self.namespace.clone()).or_default().remove(key);
        Ok(())
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, Error> {
        Ok(self.get(key)?.is_some())
    }

    pub(crate) fn increment(&self, key: &str, delta: u64) -> Result<u64, Error> {
        let text = self.get(key)?.map(String::from_utf8).transpose();
        let no_number = || Error::Failed(format!("`{key}` holds no decimal number"));
        let number = text.ok().map(|text| text.unwrap_or("0".into())).and_then(|text| text.parse::<u64>().ok());
        let sum = number.and_then(|number| number.checked_add(delta)).ok_or_else(no_number)?;
        self.set(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    pub(crate) fn keys(&self, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), Error> {
        let begin = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let entries = self.call.entries.borrow();
        let all = entries.get(&self.namespace).map(|entries| entries.len()).unwrap_or(0);
        let keys = entries.get(&self.namespace).into_iter().flat_map(|entries| entries.keys());
        let end = begin.saturating_add(PAGE_KEYS);
        Ok((keys.skip(begin).take(PAGE_KEYS).cloned().collect(), (end < all).then_some(end as u64)))
    }

    fn may_write(&self) -> Result<(), Error> {
        if self.call.namespaces[&self.namespace] { Ok(()) } else { Err(Error::Denied) }
    }
}
