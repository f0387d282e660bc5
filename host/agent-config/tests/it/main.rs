//! What a tenant sets up, on a real Postgres as the application role.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod agents;
mod house;
mod key_value;
mod provider_keys;
mod secrets;
mod tools;
