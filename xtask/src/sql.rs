//! `.sqlx/`: what the database said of each checked statement, so that a build needs no database.

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{
    postgres, tidy,
    workspace::{self, Workspace, output},
};

/// The macros that ask the database what a statement gives.
const MACROS: [&str; 3] = ["query!(", "query_as!(", "query_scalar!("];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    Check,
}

pub(crate) fn run(workspace: &Workspace, mode: Mode) -> Result<()> {
    crate::prerequisites::postgres()?;
    let scratch = workspace.root().join("target/sql");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove `{}`", scratch.display()))?;
    }
    let fresh = scratch.join("sqlx");
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create `{}`", fresh.display()))?;
    let cluster = postgres::throwaway(scratch.join("postgres"))?;
    let checked = ask(workspace, &postgres::migrated(workspace, &cluster)?, &fresh);
    cluster.stop()?;
    checked?;
    let kept = workspace.root().join(".sqlx");
    let (before, after) = (records(&kept)?, records(&fresh)?);
    if after.is_empty() {
        bail!("no statement was checked");
    }
    match mode {
        Mode::Write => replace(&kept, &before, &after),
        Mode::Check if before == after => Ok(()),
        Mode::Check => bail!("`.sqlx` is not what the migrations and the statements say; run `cargo xtask sql`"),
    }
}

/// Lets the macros ask a live database: they write a record for each statement that they expand. Only a crate that is
/// compiled anew expands its macros, and cargo looks at times to decide.
fn ask(workspace: &Workspace, database_url: &str, records: &Path) -> Result<()> {
    let packages = packages_with_sql(workspace)?;
    let mut check = workspace.cargo();
    check.args(["check", "--all-targets"]);
    for (name, root) in &packages {
        touch(root)?;
        check.args(["--package", name]);
    }
    workspace::run(
        check.env("DATABASE_URL", database_url).env("SQLX_OFFLINE", "false").env("SQLX_OFFLINE_DIR", records),
    )?;
    // The next build must not take these for compiled from `.sqlx`.
    packages.iter().try_for_each(|(_, root)| touch(root))
}

/// Name and library source of the packages with checked statements.
fn packages_with_sql(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let text = output(workspace.cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let mut found = Vec::new();
    for package in tidy::packages(&text)? {
        let mut files = BTreeMap::new();
        tidy::rust_files(&package.folder, &mut files)?;
        if package.uses("sqlx") && files.values().any(|text| MACROS.iter().any(|name| text.contains(name))) {
            found.push((package.name, package.folder.join("src/lib.rs")));
        }
    }
    Ok(found)
}

#[expect(clippy::disallowed_methods, reason = "the time of a file, not of a row")]
fn touch(file: &Path) -> Result<()> {
    let now = FileTimes::new().set_modified(SystemTime::now());
    File::options()
        .append(true)
        .open(file)
        .and_then(|file| file.set_times(now))
        .with_context(|| format!("cannot touch `{}`", file.display()))
}

/// The records of a folder, by file name.
fn records(folder: &Path) -> Result<BTreeMap<String, String>> {
    if !folder.exists() {
        return Ok(BTreeMap::new());
    }
    let mut records = BTreeMap::new();
    for file in fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        records.insert(name, text);
    }
    Ok(records)
}

fn replace(folder: &Path, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Result<()> {
    fs::create_dir_all(folder)?;
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        fs::remove_file(folder.join(name))?;
    }
    for (name, text) in after.iter().filter(|(name, text)| before.get(*name) != Some(text)) {
        fs::write(folder.join(name), text)?;
    }
    eprintln!("{} statements are in .sqlx", after.len());
    Ok(())
}
