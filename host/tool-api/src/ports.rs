//! What an executor asks of whoever calls it, while it works.

use async_trait::async_trait;
use bytes::Bytes;

/// What cannot be known before a call begins. Reads see what is committed.
#[async_trait]
pub trait CallHost: Send + Sync {
    /// The value of a key of the tenant's store.
    async fn get(&self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError>;

    /// Keys in order, from the first one after `after`; at most `limit`.
    async fn keys(&self, namespace: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, HostError>;

    /// Tells whoever follows the call. Nobody may: then it is forgotten.
    fn progress(&self, progress: Progress);
}

/// How far a call has come, in the tool's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// 0 to 100.
    pub percent: Option<u8>,
    pub text: String,
}

/// The store could not be read. A tool is told no more than that.
#[derive(Debug, thiserror::Error)]
#[error("the key-value store cannot be read now; try again")]
pub struct HostError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A host with an empty store, for calls outside of a tenant.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHost;

#[async_trait]
impl CallHost for NoHost {
    async fn get(&self, _: &str, _: &str) -> Result<Option<Bytes>, HostError> {
        Ok(None)
    }

    async fn keys(&self, _: &str, _: Option<&str>, _: u32) -> Result<Vec<String>, HostError> {
        Ok(Vec::new())
    }

    fn progress(&self, _: Progress) {}
}

/// Where the bytes of a component come from, once its turn has come.
#[async_trait]
pub trait ComponentSource: Send + Sync {
    /// `None`: it was deleted meanwhile.
    async fn component(&self) -> Result<Option<Bytes>, HostError>;
}

#[async_trait]
impl ComponentSource for Bytes {
    async fn component(&self) -> Result<Option<Bytes>, HostError> {
        Ok(Some(self.clone()))
    }
}
