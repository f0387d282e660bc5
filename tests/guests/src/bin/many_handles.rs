//! Makes host resources and never gives them back.

use belljar_tool::{tool, toolbox};
use std::mem::forget;
use wasip2::{cli, clocks::monotonic_clock};

/// Makes pollables for ever.
#[tool]
fn run() {
    loop {
        forget(monotonic_clock::subscribe_duration(1_000_000_000_000));
    }
}

/// Opens standard output for ever.
#[tool]
fn streams() {
    loop {
        forget(cli::stdout::get_stdout());
    }
}

/// Waits for a great many pollables at once.
#[tool]
fn poll_many(pollables: usize) -> String {
    let all: Vec<_> = (0..pollables).map(|_| monotonic_clock::subscribe_duration(0)).collect();
    wasip2::io::poll::poll(&all.iter().collect::<Vec<_>>()).len().to_string()
}

toolbox!(run, streams, poll_many);
fn main() {}
