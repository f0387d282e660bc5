//! The loop against real Postgres, with the demo model and without an engine.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod approvals;
mod budgets;
mod capabilities;
mod durable;
mod entries;
mod following;
mod house;
mod landing;
mod late;
mod loops;
mod once;
mod outputs;
mod puppet;
mod queues;
mod recordings;
mod relay;
mod spending;
mod strangers;
mod summaries;
mod webhooks;
mod wire;
