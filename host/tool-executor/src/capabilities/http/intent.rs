//! What a call is about to send is told before it connects: once, and once more for the first request that does not carry
//! the call's idempotency key. Requests that are allowed meanwhile wait for the same word.

use std::sync::Arc;

use tokio::sync::OnceCell;
use tool_api::{CallHost, HostError, Intent};

/// The intents of one call. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Intents(Arc<Told>);

#[derive(Default)]
struct Told {
    with_key: OnceCell<()>,
    without_key: OnceCell<()>,
}

impl Intents {
    /// Returns when the request may leave.
    pub(super) async fn tell(&self, host: &dyn CallHost, intent: Intent) -> Result<(), HostError> {
        let told = match intent.idempotency_header {
            // What was sent without the key is the graver of the two.
            true if self.0.without_key.initialized() => return Ok(()),
            true => &self.0.with_key,
            false => &self.0.without_key,
        };
        told.get_or_try_init(|| host.sending(intent)).await.map(drop)
    }
}
