//! The loop against real Postgres, with the demo model and without an engine.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod capabilities;
mod entries;
mod house;
mod loops;
mod recordings;
mod strangers;
