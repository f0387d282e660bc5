//! The seam between the agent loop and the place where tools run: traits and plain data.
//!
//! Owns: no table.
//! May use: domain.
//! Never: names wasmtime, sqlx or HTTP; does I/O.
//! Start at: `call::ToolCall`.

pub mod artifact;
pub mod call;
pub mod inspection;
pub mod receipt;
pub mod schema;

use async_trait::async_trait;
use bytes::Bytes;

pub use artifact::ArtifactHash;
pub use call::{CallContext, CallError, Finished, Outcome, Status, ToolCall, Trap};
pub use inspection::{Function, InspectError, Inspection, Rejection};
pub use receipt::{LogLine, Receipt};

/// Runs tool calls.
#[async_trait]
pub trait ToolExecutor: Send + Sync {
    /// Runs one call in a store of its own. Whatever the tool does is an `Outcome`; `CallError` means that the call did
    /// not begin. Dropping the future ends the call and frees what it held.
    async fn call(&self, call: ToolCall) -> Result<Finished, CallError>;
}

/// Turns uploaded bytes into something that can be called.
#[async_trait]
pub trait ToolInspector: Send + Sync {
    /// Checks, compiles and describes a component. Afterwards calls of this artifact begin at once on this host. Costs
    /// no second compilation for bytes that were compiled before.
    async fn inspect(&self, component: Bytes) -> Result<Inspection, InspectError>;
}
