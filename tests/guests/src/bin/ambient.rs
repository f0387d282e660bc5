//! Looks for what programs usually find around them, and fails on whatever is there.

use belljar_tool::{tool, toolbox};
use std::io::Read as _;

/// Looks everywhere: an error names what was found.
#[tool]
fn run() -> Result<String, String> {
    let found = [
        ("environment", std::env::vars().count()),
        ("arguments", std::env::args().count()),
        ("working directory", wasip2::cli::environment::initial_cwd().into_iter().count()),
        ("standard input", std::io::stdin().read(&mut [0; 64]).unwrap_or(0)),
        ("directories", wasip2::filesystem::preopens::get_directories().len()),
        ("terminals", wasip2::cli::terminal_stdout::get_terminal_stdout().into_iter().count()),
        ("processes", std::process::Command::new("sh").spawn().into_iter().count()),
        ("threads", std::thread::Builder::new().spawn(|| ()).into_iter().count()),
    ];
    match found.into_iter().find(|(_, count)| *count > 0) {
        None => Ok("nothing".into()),
        Some((what, count)) => Err(format!("{count} of {what}")),
    }
}

/// Reads its empty standard input for ever.
#[tool]
fn read_on() {
    loop {
        let _ = std::hint::black_box(std::io::stdin().read(&mut [0; 64]));
    }
}

toolbox!(run, read_on);
fn main() {}
