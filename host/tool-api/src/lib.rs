//! The seam between the agent loop and the place where tools run: traits and plain data.
//!
//! Owns: no table.
//! May use: domain.
//! Never: names wasmtime, sqlx or HTTP; does I/O.
//! Start at: `call::ToolCall`.

pub mod artifact;
pub mod call;
pub mod inspection;
pub mod key_value;
pub mod ports;
pub mod receipt;
pub mod recorded;
pub mod recording;
pub mod schema;

use std::sync::Arc;

use async_trait::async_trait;

pub use artifact::ArtifactHash;
pub use call::{CallContext, CallError, Finished, OpenSecret, Outcome, Share, Status, ToolCall, Trap};
pub use inspection::{Function, InspectError, Inspection, Manifest, Rejection, Upload};
pub use key_value::{Change, Operation, Seen};
pub use ports::{CallHost, ComponentSource, HostError, Intent, NoHost, Progress};
pub use receipt::{HostCall, LogLine, Receipt};
pub use recorded::{Given, RecordedCall, Replay};
pub use recording::{Recording, Replayed};

/// Runs tool calls.
#[async_trait]
pub trait ToolExecutor: Send + Sync {
    /// Runs one call in a store of its own. Whatever the tool does is an `Outcome`; `CallError` means that the call did
    /// not begin. Dropping the future ends the call and frees what it held.
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError>;

    /// Runs a call on what a recording holds, and on nothing else: no request is sent, no entry is read.
    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError>;
}

/// Turns uploaded bytes into something that can be called.
#[async_trait]
pub trait ToolInspector: Send + Sync {
    /// Checks, compiles and describes a component. Afterwards calls of this artifact begin at once on this host. Waits
    /// its turn among the tenants' uploads, and asks for the bytes only then. Bytes that were compiled before cost no
    /// second compilation.
    async fn inspect(&self, upload: Upload, component: &dyn ComponentSource) -> Result<Inspection, InspectError>;
}
