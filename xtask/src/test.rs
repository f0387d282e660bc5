//! Every test.

use anyhow::Result;

use crate::{
    guests, postgres, prerequisites,
    workspace::{Workspace, installed, run},
};

/// `arguments` go to the runner of the host's tests; with some, only those run.
pub(crate) fn all(workspace: &Workspace, arguments: &[&str]) -> Result<()> {
    prerequisites::wasm_target()?;
    prerequisites::postgres()?;
    guests::build_all(workspace)?;
    // The programs too: tests start them. With the tests, so that both are built from the same dependencies.
    run(workspace.cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    let cluster = postgres::hold_test_cluster(workspace)?;
    let done = host(workspace, arguments);
    cluster.stop()?;
    done?;
    if arguments.is_empty() {
        run(workspace.cargo().args(["test", "--doc", "--package", "belljar-tool"]))?;
        run(workspace
            .cargo()
            .args(["test", "--workspace", "--manifest-path", "example-tools/Cargo.toml", "--target-dir"])
            .arg(workspace.guests_target_dir()))?;
    }
    Ok(())
}

fn host(workspace: &Workspace, arguments: &[&str]) -> Result<()> {
    let runner: &[&str] = if installed("cargo-nextest") { &["nextest", "run"] } else { &["test"] };
    run(workspace.cargo().args(runner).arg("--workspace").args(arguments))
}
