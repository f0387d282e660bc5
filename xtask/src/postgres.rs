//! Private clusters for tests and for checking SQL.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use private_postgres::{Binaries, Cluster, Durability, Options, SUPERUSER};

use crate::workspace::{Workspace, run};

/// The cluster that all test processes join (see `tests/kit`). While we hold it, it outlives each of them.
pub(crate) fn hold_test_cluster(workspace: &Workspace) -> Result<Cluster> {
    start(workspace.root().join("target/test-postgres"), Durability::Durable)
}

/// A cluster that nobody else uses.
pub(crate) fn throwaway(data_dir: PathBuf) -> Result<Cluster> {
    start(data_dir, Durability::Throwaway)
}

/// Fast, and not safe from a power cut. A throwaway server would die with whoever started it, and `tests/kit` would
/// not find it again.
fn start(data_dir: PathBuf, durability: Durability) -> Result<Cluster> {
    let settings =
        [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off"), ("max_connections", "400")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Ok(Cluster::start(Options { data_dir, durability, settings })?)
}

/// `psql`, as `role` in `database`, stopping at the first error. Whoever installs the server gets it too.
pub(crate) fn psql(cluster: &Cluster, role: &str, database: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(Binaries::find()?.folder().join("psql"));
    command.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname"]);
    run(command.arg(cluster.url(role, database)).args(arguments))
}

/// A database with every migration applied by a role that is not a superuser, as an operator's owner is not. Returns the
/// owner's URL, with the schema on its path.
///
/// Not by `tenancy::migrate`: its own SQL cannot be built before this has run.
pub(crate) fn migrated(workspace: &Workspace, cluster: &Cluster) -> Result<String> {
    const OWNER: &str = "belljar_owner";
    const DATABASE: &str = "belljar";
    for statement in [
        format!("CREATE ROLE {OWNER} LOGIN CREATEROLE"),
        format!("CREATE DATABASE {DATABASE} OWNER {OWNER}"),
        format!("ALTER DATABASE {DATABASE} SET search_path = belljar"),
    ] {
        psql(cluster, SUPERUSER, "postgres", &["--command", &statement])?;
    }
    psql(cluster, OWNER, DATABASE, &["--command", "CREATE SCHEMA belljar"])?;
    let mut files = std::fs::read_dir(workspace.root().join("migrations"))?
        .map(|file| Ok(file?.path().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.ends_with(".sql"));
    files.sort();
    for file in files {
        psql(cluster, OWNER, DATABASE, &["--single-transaction", "--file", &file])?;
    }
    Ok(cluster.url(OWNER, DATABASE))
}
