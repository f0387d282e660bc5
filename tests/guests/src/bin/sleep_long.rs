//! Waits longer than anybody should: asleep, and awake.

use belljar_tool::{tool, toolbox};
use std::time::{Duration, Instant};

/// Sleeps for 60 s, or as long as it is told to.
#[tool]
fn run(seconds: Option<u64>) -> String {
    std::thread::sleep(Duration::from_secs(seconds.unwrap_or(60)));
    "slept".into()
}

/// Looks at the clock for 60 s.
#[tool]
fn busy_clock() -> String {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {}
    "waited".into()
}

toolbox!(run, busy_clock);
fn main() {}
