//! Fuzzing: every target for a while, one after the other.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, installed, run};

/// Ten minutes for each target.
const SECONDS_DEFAULT: u32 = 600;

/// Builds all targets, then runs each for `seconds`. What a target finds is kept beside the build; a crash is under
/// `fuzz/artifacts`, and ends the command.
pub(crate) fn run_all(workspace: &Workspace, seconds: &[&str]) -> Result<()> {
    let seconds = match seconds {
        [] => SECONDS_DEFAULT,
        [seconds] => seconds.parse().context("say for how many seconds each target is run")?,
        _ => bail!("say for how many seconds each target is run, and nothing else"),
    };
    if !installed("rustup") {
        bail!("fuzzing needs a nightly compiler; install Rust with rustup");
    }
    if !installed("cargo-fuzz") {
        run(Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]))?;
    }
    run(&mut cargo_fuzz(workspace, "build"))?;
    for target in targets(&workspace.root().join("fuzz/fuzz_targets"))? {
        let found = workspace.target_dir().join("fuzz-corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("cannot create `{}`", found.display()))?;
        run(cargo_fuzz(workspace, "run")
            .arg(&target)
            // The first folder is written to; the committed one is only read.
            .arg(&found)
            .arg(workspace.root().join("fuzz/corpus").join(&target))
            .args(["--", &format!("-max_total_time={seconds}"), "-print_final_stats=1"]))?;
    }
    Ok(())
}

/// Without a sanitizer: the host has no unsafe code but one line, and the engine is built in a fraction of the time.
fn cargo_fuzz(workspace: &Workspace, command: &str) -> Command {
    let mut cargo = Command::new("rustup");
    cargo
        .current_dir(workspace.root())
        .args(["run", "nightly", "cargo", "fuzz", command, "--sanitizer", "none", "--target-dir"])
        .arg(workspace.target_dir().join("fuzz-build"));
    cargo
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        targets.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}
