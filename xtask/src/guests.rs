//! Components: the example tools, and the guests of the tests.

mod languages;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    prerequisites::WASM_TARGET,
    workspace::{Workspace, output},
};

/// All components, those in other languages too.
pub(crate) fn build_all(workspace: &Workspace) -> Result<()> {
    build(workspace)?;
    languages::build(workspace)
}

/// All components in Rust.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    build_examples(workspace)?;
    build_in(workspace, "tests/guests")
}

/// Those that `belljar dev` begins with.
pub(crate) fn build_examples(workspace: &Workspace) -> Result<()> {
    build_in(workspace, "example-tools")
}

fn build_in(workspace: &Workspace, folder: &str) -> Result<()> {
    eprintln!("$ cargo build --release --target {WASM_TARGET}  (in {folder})");
    let messages = output(
        workspace
            .cargo()
            .args(["build", "--release", "--workspace", "--target", WASM_TARGET])
            .args(["--message-format", "json-render-diagnostics"])
            .arg("--manifest-path")
            .arg(workspace.root().join(folder).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(workspace.guests_target_dir()),
    )?;
    let components = components(&messages)?;
    if components.is_empty() {
        bail!("`{folder}` built no component");
    }
    let to = workspace.guests_dir();
    fs::create_dir_all(&to).with_context(|| format!("cannot create `{}`", to.display()))?;
    for component in components {
        put(&component, &to)?;
    }
    Ok(())
}

/// The components that cargo says it has made, or found made.
fn components(messages: &str) -> Result<Vec<PathBuf>> {
    let mut components = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo wrote a line that is not JSON")?;
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        components.extend(files.filter(|file| file.ends_with(".wasm")).map(PathBuf::from));
    }
    Ok(components)
}

/// Copies a component where its bytes differ: what is not new does not look new to the build scripts of tests.
fn put(component: &Path, to: &Path) -> Result<()> {
    let name = component.file_name().context("a component without a name")?;
    let target = to.join(name);
    let bytes = fs::read(component).with_context(|| format!("cannot read `{}`", component.display()))?;
    if fs::read(&target).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    // Moved into place: a test that reads it sees all of it.
    let unfinished = to.join(format!(".{}.new", name.to_string_lossy()));
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, &target))
        .with_context(|| format!("cannot write `{}`", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_components_are_taken() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","filenames":["/t/release/libserde.rlib"]}"#,
            "\n",
            r#"{"reason":"compiler-artifact","filenames":["/t/release/calc.wasm","/t/release/libcalc.rlib"]}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(components(messages).unwrap(), [PathBuf::from("/t/release/calc.wasm")]);
    }
}
