//! Logs without end, in long lines and in short ones.

use belljar_tool::{log, tool, toolbox};

/// Logs lines of 1 KiB for ever.
#[tool]
fn run() {
    let line = "flood ".repeat(171);
    loop {
        log::log(log::Level::Info, "flood", &line);
    }
}

/// Logs empty lines for ever.
#[tool]
fn empty() {
    loop {
        log::log(log::Level::Info, "", "");
    }
}

/// Logs one line of 16 MiB.
#[tool]
fn one_line() -> String {
    log::log(log::Level::Error, &"c".repeat(1 << 20), &"x".repeat(16 << 20));
    "logged".into()
}

toolbox!(run, empty, one_line);
fn main() {}
