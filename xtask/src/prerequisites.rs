//! What a fresh machine lacks: installed where we may, named where we may not.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use private_postgres::{Binaries, PostgresError};

use crate::workspace::{installed, output, run};

pub(crate) const WASM_TARGET: &str = "wasm32-wasip2";

/// The Rust target of tools.
pub(crate) fn wasm_target() -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(WASM_TARGET).is_dir() {
        return Ok(());
    }
    if !installed("rustup") {
        bail!("Rust's target {WASM_TARGET} is missing; install it with your package manager, or Rust with rustup");
    }
    run(Command::new("rustup").args(["target", "add", WASM_TARGET]))
}

/// `belljar dev` needs no Postgres here when it is told of one.
pub(crate) fn postgres_for_dev() -> Result<()> {
    if std::env::var_os("DATABASE_URL").is_some() { Ok(()) } else { postgres() }
}

/// Postgres 15 or newer.
pub(crate) fn postgres() -> Result<()> {
    match Binaries::find() {
        Ok(_) => return Ok(()),
        Err(error @ (PostgresError::NotInstalled | PostgresError::TooOld { .. })) if !may_install() => {
            return Err(error.into());
        }
        Err(PostgresError::NotInstalled | PostgresError::TooOld { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // The package's name says the newest version of the distribution; its list may be older than the servers'.
    if apt(&["install", "-y", "postgresql"]).is_err() {
        apt(&["update"])?;
        apt(&["install", "-y", "postgresql"])?;
    }
    Binaries::find().map(drop).context("Postgres was installed and is not found")
}

/// As root on Debian and its kin.
fn may_install() -> bool {
    let root = output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0");
    root && Path::new("/etc/debian_version").exists() && installed("apt-get")
}

fn apt(arguments: &[&str]) -> Result<()> {
    run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}
