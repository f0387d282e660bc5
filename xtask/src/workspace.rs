//! Where things are, and running commands.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout whose cargo started this. Not the one that this was built in: checkouts may share a target directory.
    pub(crate) fn find() -> Workspace {
        let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Workspace { root: Path::new(&own).parent().unwrap_or(Path::new("..")).to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The manifests of all workspaces: ours and those that are compiled to WebAssembly.
    pub(crate) fn manifests(&self) -> Vec<PathBuf> {
        [".", "example-tools", "tests/guests"].map(|folder| self.root.join(folder).join("Cargo.toml")).into()
    }

    /// Where cargo builds the host.
    pub(crate) fn target_dir(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// Where cargo builds guests. Apart from the host, whose build must not wait for theirs.
    pub(crate) fn guests_target_dir(&self) -> PathBuf {
        self.target_dir().join("guests-build")
    }

    /// Where finished components are. Always in this checkout: tests look for them here.
    pub(crate) fn guests_dir(&self) -> PathBuf {
        self.root.join("target/guests")
    }

    /// Cargo, in this workspace, with the SQL as it was last checked: no database is asked, whatever the environment
    /// names.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).env("SQLX_OFFLINE", "true");
        command
    }
}

/// Runs a command to its good end, and says which it is.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let words = words(command);
    eprintln!("$ {words}");
    let status = command.status().with_context(|| format!("cannot run `{words}`"))?;
    if !status.success() {
        bail!("`{words}` failed: {status}");
    }
    Ok(())
}

/// Runs a command to its good end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let words = words(command);
    let done = command.stderr(std::process::Stdio::inherit()).output();
    let done = done.with_context(|| format!("cannot run `{words}`"))?;
    if !done.status.success() {
        bail!("`{words}` failed: {}", done.status);
    }
    String::from_utf8(done.stdout).with_context(|| format!("`{words}` did not write text"))
}

fn words(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(name).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Whether a program of this name is in PATH.
pub(crate) fn installed(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}
