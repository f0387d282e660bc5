//! What a tenant has set up: agents, their revisions, tools, versions, provider keys, secrets, webhooks; what its tools
//! stored; and what its webhooks are to be told.
//!
//! Owns: agent, agent_revision, binding, tool, tool_version, artifact, provider_key, secret, kv_entry, kv_usage,
//! webhook, delivery.
//! May use: domain, tenancy, tool-api.
//! Never: commits a transaction, but for the state of an uploaded version; compiles wasm.
//! Start at: `agents::create`.

pub mod admission;
pub mod agents;
pub mod artifacts;
pub mod bindings;
mod json;
pub mod key_value;
pub mod page;
pub mod provider_keys;
pub mod requires;
pub mod revisions;
mod schemas;
pub mod secrets;
pub mod tools;
pub mod webhooks;

pub use admission::{Accepted, Admission};
pub use agents::{Agent, AgentError, AgentRef, AgentSpec};
pub use bindings::{Binding, BindingSpec, BoundFunction};
pub use tools::{Tool, ToolError, ToolVersion, VersionRef, VersionStatus};

/// A stored value that this release cannot read: a broken promise of our own.
fn unreadable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
