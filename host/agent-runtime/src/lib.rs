//! The agent loop: runs, steps and tool calls, each step one transaction.
//!
//! Owns: run, step, tool_call, run_event.
//! May use: domain, tool-api, egress, tenancy, agent-config, conversation-store, billing-meter, model-providers.
//! Never: names wasmtime or axum.
//! Start at: `drive::drive`.
