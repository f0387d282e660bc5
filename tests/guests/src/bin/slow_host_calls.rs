//! Makes cheap host calls without end.

use belljar_tool::{config, context, tool, toolbox};

/// Asks for random numbers for ever.
#[tool]
fn run() {
    loop {
        std::hint::black_box(wasip2::random::random::get_random_u64());
    }
}

/// Asks for the time for ever.
#[tool]
fn clock() {
    loop {
        std::hint::black_box(wasip2::clocks::wall_clock::now());
    }
}

/// Asks who is calling for ever.
#[tool]
fn who() {
    loop {
        std::hint::black_box((context::get(), config::get_all()).0.attempt);
    }
}

toolbox!(run, clock, who);
fn main() {}
