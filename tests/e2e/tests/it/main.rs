//! The whole product over HTTP: real Postgres as the application role, real components, a real client.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod agents;
mod app;
mod conversations;
mod isolation;
mod keys;
mod operator;
mod quiet;
mod surface;
mod usage;
