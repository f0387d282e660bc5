//! What a call finds around it: a tenant's store, and somebody who follows it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use tool_api::{CallHost, HostError, Intent, Progress};

#[derive(Default)]
pub(crate) struct Host {
    /// By namespace and key.
    pub(crate) entries: BTreeMap<(String, String), Vec<u8>>,
    /// The store cannot be read.
    pub(crate) is_broken: bool,
    /// Each read waits so often until it answers.
    pub(crate) waits: usize,
    /// How often the store was read.
    pub(crate) reads: AtomicUsize,
    pub(crate) progress: Mutex<Vec<Progress>>,
    /// Requests that were about to leave.
    pub(crate) intents: Mutex<Vec<Intent>>,
}

impl Host {
    pub(crate) fn with(entries: &[(&str, &str, &str)]) -> Host {
        let entry = |(namespace, key, value): &(&str, &str, &str)| {
            (((*namespace).to_owned(), (*key).to_owned()), value.as_bytes().to_vec())
        };
        Host { entries: entries.iter().map(entry).collect(), ..Host::default() }
    }

    /// What was told of the call's progress.
    pub(crate) fn told(&self) -> Vec<(Option<u8>, String)> {
        self.progress.lock().unwrap().iter().map(|progress| (progress.percent, progress.text.clone())).collect()
    }

    async fn read(&self) -> Result<(), HostError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for _ in 0..self.waits {
            tokio::task::yield_now().await;
        }
        if self.is_broken { Err(HostError("the database is away".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl CallHost for Host {
    async fn get(&self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        self.read().await?;
        Ok(self.entries.get(&(namespace.to_owned(), key.to_owned())).cloned().map(Bytes::from))
    }

    async fn keys(&self, namespace: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, HostError> {
        self.read().await?;
        let keys = self.entries.keys().filter(|(of, key)| of == namespace && after.is_none_or(|after| &**key > after));
        Ok(keys.take(limit as usize).map(|(_, key)| key.clone()).collect())
    }

    async fn sending(&self, intent: Intent) -> Result<(), HostError> {
        self.intents.lock().unwrap().push(intent);
        if self.is_broken { Err(HostError("the database is away".into())) } else { Ok(()) }
    }

    fn progress(&self, progress: Progress) {
        self.progress.lock().unwrap().push(progress);
    }
}
