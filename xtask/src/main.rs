//! The chores of this repository: `cargo xtask COMMAND`.
//!
//! May use: private-postgres. Nothing that is slow to build or that has checked SQL: this must run before they do.

mod bench;
mod fuzz;
mod guests;
mod lexer;
mod postgres;
mod prerequisites;
mod sql;
mod test;
mod tidy;
mod workspace;

use std::{os::unix::process::CommandExt, process::ExitCode};

use anyhow::Result;

use crate::workspace::Workspace;

const HELP: &str = "\
cargo xtask COMMAND

  dev [ARGS]         install what is missing, build tools and host, and run `belljar dev ARGS`
  test [ARGS]        install what is missing, build everything, and run every test (ARGS go to the test runner)
  ci                 fmt, tidy, sql --check, clippy, test
  guests [--all]     build the example tools and the tests' guests into target/guests; with --all, those in
                     JavaScript and Python too
  tidy               compare crate headers with manifests, and look for what has no place where it is
  sql [--check]      write .sqlx again from the migrations; with --check, fail where it differs
  bench tool-call    measure a fresh sealed call of `calc` beside other ways to run it
  bench cold         measure a call of a tool that is compiled and not loaded
  bench density      measure the memory of two thousand loaded tools
  bench victim       measure one tenant's calls beside the attack of another, over HTTP
  bench cancel       measure until a run that is cancelled has ended, while its model speaks and while its tool spins
  bench flood        measure one tenant's runs beside the flood of another, over HTTP
  bench turn         measure a durable turn with one tool call, alone and at saturation
  bench stream       measure the first token through the product, and two thousand silent streams
  chaos [PERCENT]    three hundred kills of hosts and twenty of Postgres under a real load, or a part of them
  fuzz [SECONDS]     run every fuzz target, ten minutes each or as long as it says (needs a nightly compiler)
  torture [PERCENT]  ten thousand hostile calls and five hundred hostile uploads, or a part of them
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    let workspace = Workspace::find();
    match arguments {
        ["dev", arguments @ ..] => dev(&workspace, arguments),
        ["test", arguments @ ..] => test::all(&workspace, arguments),
        ["ci"] => ci(&workspace),
        ["guests"] => {
            prerequisites::wasm_target()?;
            guests::build(&workspace)
        }
        ["guests", "--all"] => {
            prerequisites::wasm_target()?;
            guests::build_all(&workspace)
        }
        ["tidy"] => tidy::run(&workspace),
        ["sql"] => sql::run(&workspace, sql::Mode::Write),
        ["sql", "--check"] => sql::run(&workspace, sql::Mode::Check),
        ["bench", "tool-call"] => bench::executor(&workspace, "tool_call"),
        ["bench", "cold"] => bench::executor(&workspace, "cold"),
        ["bench", "density"] => bench::executor(&workspace, "density"),
        ["bench", "victim"] => bench::load(&workspace, "victim", &[]),
        ["bench", "cancel"] => bench::load(&workspace, "cancel", &[]),
        ["bench", "flood"] => bench::load(&workspace, "flood", &[]),
        ["bench", "turn", percent @ ..] => bench::load(&workspace, "turn", percent),
        ["bench", "stream", percent @ ..] => bench::load(&workspace, "stream", percent),
        ["chaos", percent @ ..] => bench::chaos(&workspace, percent),
        ["fuzz", seconds @ ..] => fuzz::run_all(&workspace, seconds),
        ["torture", percent @ ..] => bench::load(&workspace, "torture", percent),
        [] | ["help" | "--help" | "-h"] => {
            eprint!("{HELP}");
            Ok(())
        }
        _ => anyhow::bail!("no such command: {}\n\n{HELP}", arguments.join(" ")),
    }
}

/// Becomes `belljar dev`: a signal to this process is one to the server.
fn dev(workspace: &Workspace, arguments: &[&str]) -> Result<()> {
    prerequisites::wasm_target()?;
    prerequisites::postgres_for_dev()?;
    guests::build_examples(workspace)?;
    workspace::run(workspace.cargo().args(["build", "--package", "belljar"]))?;
    let error = std::process::Command::new(workspace.target_dir().join("debug/belljar"))
        .arg("dev")
        .arg("--tools-dir")
        .arg(workspace.guests_dir())
        .args(arguments)
        .exec();
    Err(error.into())
}

/// The cheapest first.
fn ci(workspace: &Workspace) -> Result<()> {
    for manifest in workspace.manifests() {
        workspace::run(workspace.cargo().args(["fmt", "--all", "--check", "--manifest-path"]).arg(manifest))?;
    }
    tidy::run(workspace)?;
    // Before the builds: it makes cargo build the crates with SQL again.
    sql::run(workspace, sql::Mode::Check)?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    workspace::run(workspace.cargo().args(clippy))?;
    // All that is wrong is told at once.
    test::all(workspace, &["--no-fail-fast"])
}
