//! A jar without a server, and the host that a tool finds around it.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::bail;
use async_trait::async_trait;
use bytes::Bytes;
use domain::{FunctionName, SystemIds, TenantId};
use egress::Egress;
use tempfile::TempDir;
use tool_api::{
    ArtifactHash, CallHost, Function, HostError, Inspection, Intent, Manifest, Progress, ToolInspector as _, Upload,
};
use tool_executor::Executor;

use crate::{
    cli::compile_command,
    private_file,
    wire::{self, ExecutorSettings},
};

/// An executor that forgets everything when it is dropped.
pub(super) struct Jar {
    pub(super) executor: Executor,
    pub(super) tenant: TenantId,
    _compiled: TempDir,
}

impl Jar {
    pub(super) fn start(egress: Egress) -> anyhow::Result<Jar> {
        let compiled = tempfile::tempdir()?;
        let executor = wire::executor(ExecutorSettings {
            cache_dir: compiled.path().to_owned(),
            mac_key: private_file::random_bytes()?,
            compile_command: compile_command()?,
            concurrency: 1,
            egress,
        })?;
        Ok(Jar { executor, tenant: TenantId::new(&SystemIds), _compiled: compiled })
    }

    /// Compiles a component and says what it is.
    pub(super) async fn inspect(&self, component: Bytes, manifest: Option<Manifest>) -> anyhow::Result<Inspection> {
        let upload = Upload { tenant: self.tenant, artifact: ArtifactHash::of(&component), manifest, first: false };
        Ok(self.executor.inspect(upload, &component).await?)
    }
}

/// The function of this name, if the component has one.
pub(super) fn function<'i>(inspection: &'i Inspection, name: &str) -> anyhow::Result<&'i Function> {
    match inspection.functions.iter().find(|function| function.name.as_str() == name) {
        Some(function) => Ok(function),
        None => {
            let names: Vec<&str> =
                inspection.functions.iter().map(|function| FunctionName::as_str(&function.name)).collect();
            bail!("the component has no function `{name}`; it has {}", names.join(", "));
        }
    }
}

type Entries = BTreeMap<(String, String), Bytes>;

/// A key-value store in memory. Progress goes to standard error.
#[derive(Default)]
pub(super) struct MemoryHost(Mutex<Entries>);

impl MemoryHost {
    pub(super) fn new(entries: Entries) -> MemoryHost {
        MemoryHost(Mutex::new(entries))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CallHost for MemoryHost {
    async fn get(&self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        Ok(self.entries().get(&(namespace.to_owned(), key.to_owned())).cloned())
    }

    async fn keys(&self, namespace: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, HostError> {
        let from = match after {
            Some(after) => Bound::Excluded((namespace.to_owned(), after.to_owned())),
            None => Bound::Included((namespace.to_owned(), String::new())),
        };
        let entries = self.entries();
        let keys = entries.range((from, Bound::Unbounded)).take_while(|((of, _), _)| of == namespace);
        Ok(keys.map(|((_, key), _)| key.clone()).take(limit as usize).collect())
    }

    async fn sending(&self, _: Intent) -> Result<(), HostError> {
        Ok(())
    }

    fn progress(&self, progress: Progress) {
        let percent = progress.percent.map(|percent| format!("{percent} % ")).unwrap_or_default();
        eprintln!("progress {percent}{}", progress.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_paged_within_their_namespace() {
        let entry = |namespace: &str, key: &str| ((namespace.to_owned(), key.to_owned()), Bytes::from_static(b"v"));
        let host = MemoryHost::new(Entries::from([entry("a", "z"), entry("b", "1"), entry("b", "2"), entry("c", "1")]));
        assert_eq!(host.keys("b", None, 10).await.unwrap(), ["1", "2"]);
        assert_eq!(host.keys("b", None, 1).await.unwrap(), ["1"]);
        assert_eq!(host.keys("b", Some("1"), 10).await.unwrap(), ["2"]);
        assert_eq!(host.get("c", "1").await.unwrap().as_deref(), Some(&b"v"[..]));
        assert_eq!(host.get("c", "2").await.unwrap(), None);
    }
}
