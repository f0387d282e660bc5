//! What a tenant has set up: agents, their revisions, tools, versions, provider keys.
//!
//! Owns: agent, agent_revision, binding, tool, tool_version, artifact, provider_key.
//! May use: domain, tenancy, tool-api.
//! Never: commits a transaction, but for the state of an uploaded version; compiles wasm.
//! Start at: `agents::create`.
