//! The example tools that are not in Rust. What compiles them comes from npm and PyPI, pinned by lock files, into a folder
//! beside the guests' build; a machine without Node.js or Python goes without them, and says so.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::workspace::{Workspace, installed, run};

/// An example tool in another language.
struct Tool {
    /// Of its folder in `example-tools`, and of its component.
    name: &'static str,
    /// The program that the machine must have.
    needs: &'static str,
    /// What is pinned; a change installs again.
    locks: &'static [&'static str],
    sources: &'static [&'static str],
    install: fn(&Path) -> Result<()>,
    /// In the first folder, from the sources in the second and the contract in the third, into the file.
    build: fn(&Path, &Path, &Path, &Path) -> Command,
}

const TOOLS: [Tool; 2] = [
    Tool {
        name: "js-slugify",
        needs: "npm",
        locks: &["package.json", "package-lock.json"],
        sources: &["slugify.js"],
        install: install_from_npm,
        build: build_javascript,
    },
    Tool {
        name: "py-stats",
        needs: "python3",
        locks: &["requirements.txt"],
        sources: &["app.py"],
        install: install_from_pypi,
        build: build_python,
    },
];

/// Why a tool was not built.
struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Builds them, and leaves `NAME.wasm` or, where that cannot be, `NAME.skipped` with the reason in it: a test of a tool
/// without either fails.
pub(super) fn build(workspace: &Workspace) -> Result<()> {
    let guests = workspace.guests_dir();
    for tool in &TOOLS {
        let reason = guests.join(format!("{}.skipped", tool.name));
        match build_one(workspace, tool)? {
            Ok(component) => {
                super::put(&component, &guests)?;
                absent(fs::remove_file(&reason)).with_context(|| format!("cannot remove `{}`", reason.display()))?;
            }
            Err(skipped) => {
                eprintln!("skipped: example-tools/{}: {skipped}", tool.name);
                absent(fs::remove_file(guests.join(format!("{}.wasm", tool.name))))?;
                fs::write(&reason, skipped.to_string())?;
            }
        }
    }
    Ok(())
}

fn build_one(workspace: &Workspace, tool: &Tool) -> Result<Result<PathBuf, Skipped>> {
    if !installed(tool.needs) {
        return Ok(Err(Skipped(format!("`{}` is not installed", tool.needs))));
    }
    let folder = workspace.guests_target_dir().join("languages").join(tool.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let from = workspace.root().join("example-tools").join(tool.name);
    let contract = workspace.root().join("wit");
    let locks = read(&from, tool.locks)?;
    for name in tool.locks {
        fs::copy(from.join(name), folder.join(name))?;
    }
    let made = once(&folder.join("installed"), &locks, || (tool.install)(&folder));
    if let Err(error) = made {
        return Ok(Err(Skipped(format!("what compiles it cannot be installed: {error:#}"))));
    }
    let component = folder.join(format!("{}.wasm", tool.name));
    let mut inputs = locks;
    inputs.extend(read(&from, tool.sources)?);
    inputs.extend(read(&contract, &wit_files(&contract)?)?);
    let compile = || run(&mut (tool.build)(&folder, &from, &contract, &component));
    once(&folder.join("built"), &inputs, compile)?;
    Ok(Ok(component))
}

/// Does something unless it was done for the same inputs before.
fn once(stamp: &Path, inputs: &[u8], make: impl FnOnce() -> Result<()>) -> Result<()> {
    if fs::read(stamp).is_ok_and(|before| before == inputs) {
        return Ok(());
    }
    absent(fs::remove_file(stamp))?;
    make()?;
    fs::write(stamp, inputs).with_context(|| format!("cannot write `{}`", stamp.display()))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read(folder: &Path, names: &[impl AsRef<Path>]) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for name in names {
        let path = folder.join(name);
        all.extend(fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?);
    }
    Ok(all)
}

/// The contract's files, in order.
fn wit_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() { &mut folders } else { &mut files }.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// No package runs a script of its own.
fn install_from_npm(folder: &Path) -> Result<()> {
    run(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder))
}

fn build_javascript(folder: &Path, from: &Path, contract: &Path, to: &Path) -> Command {
    let mut command = Command::new(folder.join("node_modules/.bin/componentize-js"));
    command.arg(from.join("slugify.js")).arg("--wit").arg(contract);
    command.args(["--world-name", "tool", "--out"]).arg(to);
    command
}

fn install_from_pypi(folder: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment(folder)))?;
    run(Command::new(environment(folder).join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"])
        .arg("--requirement")
        .arg(folder.join("requirements.txt")))
}

fn build_python(folder: &Path, from: &Path, contract: &Path, to: &Path) -> Command {
    let mut command = Command::new(environment(folder).join("bin/componentize-py"));
    // Packages of this environment only, not of one that the caller is in.
    command.env("VIRTUAL_ENV", environment(folder));
    command.arg("--wit-path").arg(contract).args(["--world", "tool", "componentize", "app", "--python-path"]);
    command.arg(from).arg("--output").arg(to);
    command
}

fn environment(folder: &Path) -> PathBuf {
    folder.join("environment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_inputs_are_built_once() {
        let folder = std::env::temp_dir().join(format!("belljar-once-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let stamp = folder.join("stamp");
        let mut made = 0;
        for inputs in [b"a", b"a", b"b"] {
            once(&stamp, inputs, || {
                made += 1;
                Ok(())
            })
            .unwrap();
        }
        assert!(once(&stamp, b"c", || anyhow::bail!("broken")).is_err());
        // What failed is tried again, also for inputs that were built before it.
        once(&stamp, b"b", || {
            made += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(made, 3);
        fs::remove_dir_all(&folder).unwrap();
    }
}
