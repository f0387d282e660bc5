//! The host functions of `wasi:keyvalue`: each asks for its grant, does its work, and tells the receipt.

use std::{sync::Arc, time::Instant};

use domain::{
    CallGrants,
    grants::{Access, OpenNamespace},
};
use tool_api::HostCall;
use wasmtime::component::Resource;

use super::Failure;
use crate::{
    bindings::wasi::keyvalue::{atomics, batch, store},
    capabilities::{
        denied::Grant,
        ledger::{micros_since, use_of},
    },
    sandbox::Sandbox,
};

/// A namespace that was opened.
#[expect(unreachable_pub, reason = "the generated bindings export it again")]
pub struct Bucket {
    /// Its place among the call's grants.
    grant: usize,
}

type Answer<T> = wasmtime::Result<Result<T, store::Error>>;

/// One use of an open namespace.
struct Use {
    function: &'static str,
    grants: Arc<CallGrants>,
    grant: usize,
    target: String,
    bytes_in: usize,
    started: Instant,
}

impl Use {
    fn namespace(&self) -> &str {
        &self.grants.key_value[self.grant].namespace
    }
}

/// The grant that opens a namespace for a tool that calls it `name`. Of several, one that lets it write.
fn find<'a>(grants: &'a [OpenNamespace], name: &str) -> Option<(usize, &'a OpenNamespace)> {
    let named = |grant: &&OpenNamespace| grant.granted == name || grant.namespace == name;
    let found = grants.iter().enumerate().filter(|(_, grant)| named(grant));
    let found = found.max_by_key(|(index, grant)| (grant.access == Access::Write, std::cmp::Reverse(*index)));
    match (found, grants) {
        (None, [only]) if matches!(name, "" | "default") => Some((0, only)),
        (found, _) => found,
    }
}

impl Sandbox {
    /// Begins a use of a bucket; `Err` when its grant does not go so far.
    fn use_bucket(
        &mut self,
        function: &'static str,
        bucket: &Resource<Bucket>,
        about: About<'_>,
        access: Access,
        bytes_in: usize,
    ) -> wasmtime::Result<Result<Use, store::Error>> {
        let started = Instant::now();
        let grant = self.table.get(bucket)?.grant;
        let grants = Arc::clone(&self.call.grants);
        let open = &grants.key_value[grant];
        let allowed = access == Access::Read || open.access == Access::Write;
        let target = match about {
            About::Key(key) => format!("{}/{key}", open.namespace),
            About::Keys(count) => format!("{} ({count} keys)", open.namespace),
            About::Namespace => open.namespace.clone(),
        };
        self.meter.handled(bytes_in);
        let used = Use { function, grants, grant, target, bytes_in, started };
        if allowed {
            return Ok(Ok(used));
        }
        self.denials.note(Grant::KeyValue);
        Ok(self.told::<Use>(used, Err(Failure::Denied), |_| 0))
    }

    /// Ends a use: tells the receipt, and answers in the interface's words.
    fn told<T>(
        &mut self,
        used: Use,
        answer: Result<T, Failure>,
        bytes_out: impl FnOnce(&T) -> usize,
    ) -> Result<T, store::Error> {
        let bytes_out = answer.as_ref().map_or(0, bytes_out);
        self.meter.handled(bytes_out);
        let denied = matches!(answer, Err(Failure::Denied));
        self.ledger.tell(HostCall {
            bytes_in: used.bytes_in as u64,
            bytes_out: bytes_out as u64,
            duration_us: micros_since(used.started),
            grant: (!denied).then(|| format!("key_value {}", used.grants.key_value[used.grant].granted)),
            error: answer.as_ref().err().map(ToString::to_string),
            target: Some(used.target),
            ..use_of("wasi:keyvalue", used.function)
        });
        answer.map_err(store::Error::from)
    }
}

/// What a use is about.
#[derive(Clone, Copy)]
enum About<'a> {
    Key(&'a str),
    Keys(usize),
    Namespace,
}

impl store::Host for Sandbox {
    fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        let started = Instant::now();
        self.meter.handled(identifier.len());
        let grants = Arc::clone(&self.call.grants);
        let found = find(&grants.key_value, &identifier);
        let bucket = match found {
            Some((grant, _)) => Ok(self.table.push(Bucket { grant })?),
            None => {
                self.denials.note(Grant::KeyValue);
                Err(Failure::Denied)
            }
        };
        self.ledger.tell(HostCall {
            bytes_in: identifier.len() as u64,
            duration_us: micros_since(started),
            grant: found.map(|(_, open)| format!("key_value {}", open.granted)),
            error: bucket.as_ref().err().map(ToString::to_string),
            target: Some(found.map_or(identifier, |(_, open)| open.namespace.clone())),
            ..use_of("wasi:keyvalue", "open")
        });
        Ok(bucket.map_err(store::Error::from))
    }
}

impl store::HostBucket for Sandbox {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        let used = match self.use_bucket("get", &bucket, About::Key(&key), Access::Read, key.len())? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let value = self.value(used.namespace(), &key).await;
        let value = value.map(|value| value.map(Vec::from));
        Ok(self.told(used, value, |value| value.as_ref().map_or(0, Vec::len)))
    }

    fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        let bytes = key.len() + value.len();
        let used = match self.use_bucket("set", &bucket, About::Key(&key), Access::Write, bytes)? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let done = self.key_value.overlay.set(used.namespace(), &key, value.into());
        Ok(self.told(used, done.map_err(Failure::from), |()| 0))
    }

    fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        let used = match self.use_bucket("delete", &bucket, About::Key(&key), Access::Write, key.len())? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let done = self.key_value.overlay.delete(used.namespace(), &key);
        Ok(self.told(used, done.map_err(Failure::from), |()| 0))
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        let used = match self.use_bucket("exists", &bucket, About::Key(&key), Access::Read, key.len())? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let value = self.value(used.namespace(), &key).await;
        Ok(self.told(used, value.map(|value| value.is_some()), |_| 1))
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<store::KeyResponse> {
        let used = match self.use_bucket("list_keys", &bucket, About::Namespace, Access::Read, 0)? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let page = self.keys(used.namespace(), cursor).await;
        let page = page.map(|(keys, cursor)| store::KeyResponse { keys, cursor });
        Ok(self.told(used, page, |page| page.keys.iter().map(String::len).sum()))
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Sandbox {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        let used = match self.use_bucket("increment", &bucket, About::Key(&key), Access::Write, key.len())? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let sum = Sandbox::increment(self, used.namespace(), &key, delta).await;
        Ok(self.told(used, sum, |_| size_of::<u64>()))
    }
}

impl batch::Host for Sandbox {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let bytes = keys.iter().map(String::len).sum();
        let used = match self.use_bucket("get_many", &bucket, About::Keys(keys.len()), Access::Read, bytes)? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let values = self.values(used.namespace(), &keys).await.map(|values| {
            let pairs = keys.into_iter().zip(values);
            pairs.map(|(key, value)| value.map(|value| (key, value.into()))).collect::<Vec<_>>()
        });
        let bytes_out = |pairs: &Vec<Option<(String, Vec<u8>)>>| {
            pairs.iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
        };
        Ok(self.told(used, values, bytes_out))
    }

    /// In order, up to the first that is refused.
    fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let bytes = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let used = match self.use_bucket("set_many", &bucket, About::Keys(pairs.len()), Access::Write, bytes)? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let (namespace, overlay) = (used.namespace(), &mut self.key_value.overlay);
        let done = pairs.into_iter().try_for_each(|(key, value)| overlay.set(namespace, &key, value.into()));
        Ok(self.told(used, done.map_err(Failure::from), |()| 0))
    }

    /// In order, up to the first that is refused.
    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        let bytes = keys.iter().map(String::len).sum();
        let used = match self.use_bucket("delete_many", &bucket, About::Keys(keys.len()), Access::Write, bytes)? {
            Ok(used) => used,
            Err(error) => return Ok(Err(error)),
        };
        let (namespace, overlay) = (used.namespace(), &mut self.key_value.overlay);
        let done = keys.iter().try_for_each(|key| overlay.delete(namespace, key));
        Ok(self.told(used, done.map_err(Failure::from), |()| 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(granted: &str, namespace: &str, access: Access) -> OpenNamespace {
        OpenNamespace { granted: granted.into(), namespace: namespace.into(), access }
    }

    #[test]
    fn a_namespace_is_opened_by_its_names_and_no_other() {
        let user = open("notes/{external_user_id}", "notes/ada", Access::Read);
        let one = [user.clone()];
        for name in ["notes/{external_user_id}", "notes/ada", "", "default"] {
            assert_eq!(find(&one, name), Some((0, &one[0])), "{name}");
        }
        for name in ["notes", "notes/bob", "notes/", "notes/ada/x", "NOTES/ADA"] {
            assert_eq!(find(&one, name), None, "{name}");
        }
        let many = [user, open("notes/ada", "notes/ada", Access::Write), open("log", "log", Access::Write)];
        assert_eq!(find(&many, "notes/ada").map(|(index, _)| index), Some(1), "the one that may write");
        assert_eq!(find(&many, "notes/{external_user_id}").map(|(index, _)| index), Some(0));
        assert_eq!(find(&many, "default"), None, "which one?");
        assert_eq!(find(&[], "default"), None);
    }
}
