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
    prerequisites::wasm_target()?;
    prerequisites::postgres_for_dev()?;
    guests::build(workspace)?;
    run(workspace.cargo().args(["build", "--release", "--package", "belljar", "--package", "load"]))?;
    let programs = workspace.target_dir().join("release");
    run(std::process::Command::new(programs.join("load"))
        .arg(command)
        .arg(programs.join("belljar"))
        .arg(workspace.guests_dir())
        .args(more))
}
