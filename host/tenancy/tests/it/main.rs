//! Invariant 1, in the database: walls that hold whatever the application does.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

mod catalog;
mod keys;
mod once;
mod rotate;
mod share;
mod walls;
