//! Measurements and attacks on the whole product.

use anyhow::Result;

use crate::{
    guests, prerequisites,
    workspace::{Workspace, run},
};

/// A bench of the executor, over `calc`.
pub(crate) fn executor(workspace: &Workspace, bench: &str) -> Result<()> {
    prerequisites::wasm_target()?;
    guests::build_examples(workspace)?;
    run(workspace
        .cargo()
        .args(["bench", "--package", "tool-executor", "--bench", bench, "--"])
        .arg(workspace.guests_dir().join("calc.wasm")))
}

/// A command of the `load` program, against the product as it is released.
pub(crate) fn load(workspace: &Workspace, command: &str, more: &[&str]) -> Result<()> {
    load_of(workspace, &["--release"], "release", command, more)
}

/// Kills of hosts, against a test build: no other can be told where to end itself.
pub(crate) fn chaos(workspace: &Workspace, percent: &[&str]) -> Result<()> {
    load_of(workspace, &[], "debug", "chaos", percent)
}

fn load_of(workspace: &Workspace, flags: &[&str], folder: &str, command: &str, more: &[&str]) -> Result<()> {
    prerequisites::wasm_target()?;
    prerequisites::postgres_for_dev()?;
    guests::build(workspace)?;
    run(workspace.cargo().arg("build").args(flags).args(["--package", "belljar", "--package", "load"]))?;
    let programs = workspace.target_dir().join(folder);
    run(std::process::Command::new(programs.join("load"))
        .arg(command)
        .arg(programs.join("belljar"))
        .arg(workspace.guests_dir())
        .args(more))
}
