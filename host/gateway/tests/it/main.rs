//! The gateway over a real database as the application role, with a faked executor.

mod app;
mod day;
mod door;
mod operator;
mod walls;
