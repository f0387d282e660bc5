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

/// Logs at every level in turn, for ever.
#[tool]
fn by_level() {
    use log::Level::{Critical, Debug, Error, Info, Trace, Warn};
    let line = "flood ".repeat(20);
    for level in [Trace, Debug, Info, Warn, Error, Critical].into_iter().cycle() {
        log::log(level, "flood", &line);
    }
}

/// Logs nothing from a part with a long name, for ever.
#[tool]
fn context() {
    let context = "part ".repeat(200);
    loop {
        log::log(log::Level::Info, &context, "");
    }
}

/// Logs one line of 16 MiB.
#[tool]
fn one_line() -> String {
    log::log(log::Level::Error, &"c".repeat(1 << 20), &"x".repeat(16 << 20));
    "logged".into()
}

toolbox!(run, empty, by_level, context, one_line);
fn main() {}
