//! The house is tidy: what each crate's header says is what its manifest does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    lexer,
    workspace::{Workspace, output},
};

/// Dependencies with a few homes, and those homes. `belljar` has sqlx to set up the database of `belljar dev`.
const HOMES: [(&str, &[&str]); 3] = [
    ("wasmtime", &["tool-executor"]),
    ("axum", &["belljar", "gateway"]),
    (
        "sqlx",
        &["agent-config", "agent-runtime", "belljar", "billing-meter", "conversation-store", "kit", "load", "tenancy"],
    ),
];
/// The one file that may say `unsafe`: it maps compiled code.
const UNSAFE_FILE: &str = "host/tool-executor/src/cache.rs";
/// A package of the workspace, as far as tidy looks.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// Names of dependencies that its library has.
    dependencies: BTreeSet<String>,
    /// And of those that its tests have.
    dev_dependencies: BTreeSet<String>,
}

impl Package {
    pub(crate) fn uses(&self, dependency: &str) -> bool {
        self.dependencies.contains(dependency)
    }

    fn is_host(&self, root: &Path) -> bool {
        self.folder.parent() == Some(root.join("host").as_path())
    }
}

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let text = output(workspace.cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let mut wrong = Vec::new();
    let packages = packages(&text)?;
    headers(workspace.root(), &packages, &mut wrong)?;
    homes(&packages, &mut wrong);
    sources(workspace.root(), &packages, &mut wrong)?;
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("the house is not tidy:\n  - {}", wrong.join("\n  - "))
}

/// Reads what `cargo metadata --no-deps` wrote.
pub(crate) fn packages(metadata: &str) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(metadata).context("`cargo metadata` did not write JSON")?;
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = array(&metadata["packages"]).into_iter().map(|package| {
        let of_kind = |kind: Value| {
            let all = array(&package["dependencies"]);
            all.iter().filter(|dependency| dependency["kind"] == kind).map(|found| text(&found["name"])).collect()
        };
        Package {
            name: text(&package["name"]),
            folder: Path::new(&text(&package["manifest_path"])).parent().unwrap_or(Path::new("")).to_owned(),
            dependencies: of_kind(Value::Null),
            dev_dependencies: of_kind("dev".into()),
        }
    });
    Ok(packages.collect())
}

/// `May use` equals the dependencies that are ours.
fn headers(root: &Path, packages: &[Package], wrong: &mut Vec<String>) -> Result<()> {
    let ours: BTreeSet<String> = packages.iter().map(|package| package.name.clone()).collect();
    for package in packages.iter().filter(|package| package.is_host(root) || package.name == "kit") {
        let path = package.folder.join("src/lib.rs");
        let source = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let has: BTreeSet<String> = package.dependencies.intersection(&ours).cloned().collect();
        match may_use(&source) {
            None => wrong.push(format!("`{}` has no line `//! May use: ...`", path.display())),
            Some(says) if says != has => {
                wrong.push(format!("{}: its header says {says:?}, its manifest {has:?}", package.name));
            }
            Some(_) => {}
        }
        for section in ["Owns", "Never", "Start at"] {
            if package.is_host(root) && !source.contains(&format!("//! {section}: ")) {
                wrong.push(format!("`{}` has no line `//! {section}: ...`", path.display()));
            }
        }
    }
    Ok(())
}

/// The names after `May use:`, up to the full stop, over as many lines as they take.
fn may_use(source: &str) -> Option<BTreeSet<String>> {
    let header: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let header = header.join(" ");
    let (names, _) = header.split_once("May use:")?.1.split_once('.')?;
    let names = names.split(',').map(str::trim).filter(|name| *name != "nothing");
    Some(names.map(str::to_owned).collect())
}

/// The engine, the server and the database are named where they live, and nowhere else.
fn homes(packages: &[Package], wrong: &mut Vec<String>) {
    for (dependency, homes) in HOMES {
        let users = packages.iter().filter(|package| package.uses(dependency)).map(|package| package.name.as_str());
        let (users, homes): (BTreeSet<&str>, BTreeSet<&str>) = (users.collect(), homes.iter().copied().collect());
        if users != homes {
            wrong.push(format!("`{dependency}` belongs in {homes:?} and is in {users:?}"));
        }
    }
    // A test that named the engine would have to build it.
    let engine_in_tests = packages
        .iter()
        .filter(|package| package.dev_dependencies.contains("wasmtime"))
        .map(|package| package.name.clone());
    wrong.extend(engine_in_tests.map(|name| format!("the tests of {name} name `wasmtime`; go through tool-executor")));
}

/// No SQL that leaves a tenant's transaction, and no `unsafe`, but where they belong.
fn sources(root: &Path, packages: &[Package], wrong: &mut Vec<String>) -> Result<()> {
    let mut files = BTreeMap::new();
    for folder in ["host", "tests/kit", "tests/e2e", "xtask"] {
        rust_files(&root.join(folder), &mut files)?;
    }
    let sql_folders: Vec<PathBuf> = packages
        .iter()
        .filter(|package| package.is_host(root) && package.uses("sqlx") && package.name != "tenancy")
        .map(|package| package.folder.join("src"))
        .collect();
    for (path, text) in &files {
        let source = lexer::read(text);
        let shown = path.strip_prefix(root).unwrap_or(path).display();
        if lexer::has_word(&source.code, "unsafe") && !path.ends_with(UNSAFE_FILE) {
            wrong.push(format!("`{shown}` says `unsafe`; only `{UNSAFE_FILE}` may"));
        }
        let host_outside_tenancy = path.starts_with(root.join("host")) && !path.starts_with(root.join("host/tenancy"));
        if host_outside_tenancy && source.strings.iter().any(|string| string.to_lowercase().contains("set_config(")) {
            wrong.push(format!("`{shown}` calls `set_config`; only tenancy sets a tenant"));
        }
        let in_sql_folder = sql_folders.iter().any(|folder| path.starts_with(folder));
        if in_sql_folder && source.strings.iter().any(|string| forbidden_statement(string)) {
            wrong.push(format!("`{shown}` begins or ends a transaction, or sets something in one; only tenancy does"));
        }
    }
    Ok(())
}

/// Whether a text holds a statement that changes the tenant of a transaction, or begins or ends one. Words for people
/// may begin with the same verbs.
fn forbidden_statement(text: &str) -> bool {
    text.split(';').any(|statement| {
        let lower = statement.to_lowercase().replace('=', " = ");
        let words: Vec<&str> = lower.split_whitespace().collect();
        matches!(
            words.as_slice(),
            ["set", "local" | "session" | "role" | "transaction" | "constraints", ..]
                | ["set", _, "=" | "to", ..]
                | ["reset", _]
                | ["start", "transaction", ..]
                | ["begin" | "commit" | "rollback" | "abort"]
                | ["begin" | "commit" | "rollback" | "abort", "transaction" | "work" | "isolation" | "to" | "and", ..]
        )
    })
}

/// The text of every Rust file below a folder.
pub(crate) fn rust_files(folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            files.insert(path, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        run(&Workspace::find()).unwrap();
    }

    #[test]
    fn a_header_names_what_it_uses() {
        let of = |text: &str| may_use(text).map(|names| names.into_iter().collect::<Vec<_>>().join(" "));
        assert_eq!(of("//! X.\n//! May use: domain,\n//! tenancy. Not more.\n").as_deref(), Some("domain tenancy"));
        assert_eq!(of("//! May use: nothing.\n").as_deref(), Some(""));
        assert_eq!(of("//! X.\n"), None);
        assert_eq!(of("use a;\n//! May use: b.\n"), None);
    }

    #[test]
    fn a_statement_that_leaves_the_tenant_is_found() {
        for (text, found) in [
            ("SET LOCAL belljar.tenant = 'x'", true),
            ("set search_path=other", true),
            ("\n  commit", true),
            ("SELECT 1; ROLLBACK", true),
            ("ROLLBACK TO SAVEPOINT a", true),
            ("UPDATE agent SET name = $1", false),
            ("set `name` to something else", true),
            ("set a name of your own", false),
            ("start with a letter", false),
            ("settings", false),
        ] {
            assert_eq!(forbidden_statement(text), found, "{text}");
        }
    }
}
