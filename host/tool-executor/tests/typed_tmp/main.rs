#![allow(clippy::unwrap_used, dead_code)]
mod jar;
mod typed;
