//! The whole product over HTTP: real Postgres as the application role, real components, a real client.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod agents;
mod app;
mod approvals;
mod budgets;
mod capabilities;
mod chat;
mod configured;
mod conversations;
mod isolation;
mod key_value;
mod keys;
mod once;
mod operator;
mod outputs;
mod outside;
mod providers;
mod quiet;
mod sealed;
mod secrets;
mod surface;
mod tools;
mod usage;
mod webhooks;
