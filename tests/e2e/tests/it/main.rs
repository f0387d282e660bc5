//! The whole product over HTTP: real Postgres as the application role, real components, a real client.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod agents;
mod app;
mod chat;
mod conversations;
mod isolation;
mod keys;
mod operator;
mod providers;
mod quiet;
mod sealed;
mod surface;
mod tools;
mod usage;
