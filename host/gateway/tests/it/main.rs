//! The gateway over a real database as the application role, with a faked executor.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod app;
mod door;
mod once;
mod operator;
mod rates;
mod redis;
mod stream;
