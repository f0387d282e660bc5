//! Private clusters for tests and for checking SQL.

use std::{fs, io, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use private_postgres::{Binaries, Cluster, Durability, Options, SUPERUSER};

use crate::workspace::{Workspace, run};

/// The cluster that all test processes join (see `tests/kit`). While we hold it, it outlives each of them.
pub(crate) fn hold_test_cluster(workspace: &Workspace) -> Result<Cluster> {
    Ok(Cluster::start(Options::for_tests(workspace.root().join("target/test-postgres")))?)
}

/// A cluster that nobody else uses.
pub(crate) fn throwaway(data_dir: PathBuf) -> Result<Cluster> {
    Ok(Cluster::start(Options { durability: Durability::Throwaway, ..Options::for_tests(data_dir) })?)
}

/// A database with every migration applied by a role that is not a superuser, as an operator's owner is not. Returns the
/// owner's URL; the schema is on that database's path.
///
/// Not by `tenancy::migrate`: its own SQL cannot be built before this has run.
pub(crate) fn migrated(workspace: &Workspace, cluster: &Cluster) -> Result<String> {
    const OWNER: &str = "belljar_owner";
    const DATABASE: &str = "belljar";
    let statements = [
        format!("CREATE ROLE {OWNER} LOGIN CREATEROLE"),
        format!("CREATE DATABASE {DATABASE} OWNER {OWNER}"),
        format!("ALTER DATABASE {DATABASE} SET search_path = belljar"),
    ];
    psql(cluster, SUPERUSER, "postgres", statements.map(|statement| format!("--command={statement}")).into())?;
    let files = fs::read_dir(workspace.root().join("migrations"))?;
    let mut files = files
        .map(|file| Ok(format!("--file={}", file?.path().display())))
        .collect::<io::Result<Vec<_>>>()
        .context("cannot list the migrations")?;
    files.retain(|file| file.ends_with(".sql"));
    files.sort();
    files.insert(0, "--command=CREATE SCHEMA belljar".to_owned());
    psql(cluster, OWNER, DATABASE, files)?;
    Ok(cluster.url(OWNER, DATABASE))
}

/// `psql`, as `role` in `database`, stopping at the first error. Whoever installs the server gets it too.
fn psql(cluster: &Cluster, role: &str, database: &str, does: Vec<String>) -> Result<()> {
    let mut command = Command::new(Binaries::find()?.folder().join("psql"));
    command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]);
    run(command.arg(format!("--dbname={}", cluster.url(role, database))).args(does))
}
