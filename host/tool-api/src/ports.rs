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

    /// The call is about to connect. Awaited first: nothing leaves when it fails. Told of the first request, and of the
    /// first one without the call's idempotency key.
    async fn sending(&self, intent: Intent) -> Result<(), HostError>;

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

/// A request that is about to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub method: String,
    /// `https://host/path`: no query, no secret.
    pub target: String,
    /// The request carries the call's idempotency key in the header that its grant names.
    pub idempotency_header: bool,
}

/// The host could not do what was asked: a tool is told that its store cannot be read. Other uses have their own words.
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

    async fn sending(&self, _: Intent) -> Result<(), HostError> {
        Ok(())
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
