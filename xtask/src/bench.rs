//! Measurements.

use anyhow::Result;

use crate::{
    guests, prerequisites,
    workspace::{Workspace, run},
};

/// A fresh sealed call of `calc`, beside a bare call of the same component.
pub(crate) fn tool_call(workspace: &Workspace) -> Result<()> {
    prerequisites::wasm_target()?;
    guests::build_examples(workspace)?;
    run(workspace
        .cargo()
        .args(["bench", "--package", "tool-executor", "--bench", "tool_call", "--"])
        .arg(workspace.guests_dir().join("calc.wasm")))
}
