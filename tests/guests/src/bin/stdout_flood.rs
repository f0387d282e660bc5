//! Prints without end.

use belljar_tool::{tool, toolbox};
use std::io::Write as _;

/// Prints to standard output for ever.
#[tool]
fn run() {
    loop {
        println!("flood");
    }
}

/// Prints to standard error for ever.
#[tool]
fn stderr() {
    loop {
        eprintln!("flood");
    }
}

/// Writes for ever, whatever the host answers.
#[tool]
fn stubborn() {
    let line = vec![b'x'; 4096];
    loop {
        let _ = std::io::stdout().write_all(&line);
        let _ = std::io::stdout().flush();
    }
}

toolbox!(run, stderr, stubborn);
fn main() {}
