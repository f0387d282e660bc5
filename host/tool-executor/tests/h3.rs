#![allow(clippy::all, dead_code, reason = "temporary")]
#[path = "it/host.rs"]
mod host;
#[path = "it/jar.rs"]
mod jar;
#[path = "it/replay.rs"]
mod replay;
#[path = "it/scratch.rs"]
mod scratch;
