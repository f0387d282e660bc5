//! The product as a process of its own, under load, under attack and under the axe: `load COMMAND BELLJAR GUESTS`, with
//! the program and the folder of components. Talks to loopback only, for a bounded number of calls. `cargo xtask` builds
//! both first.

#![expect(clippy::print_stdout, reason = "tables are the result")]

mod cancel;
pub mod chaos;
mod effects;
mod figures;
mod fleet;
mod flood;
mod http;
mod machine;
mod process;
mod script;
mod server;
mod stream;
mod torture;
mod turn;
mod upstream;
mod victim;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What every command is given.
pub struct Place {
    pub belljar: PathBuf,
    pub guests: PathBuf,
}

/// Runs the command that the arguments name.
pub async fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let command = arguments.next().context("give a command: cancel, chaos, flood, stream, torture, turn or victim")?;
    let belljar = arguments.next().context("give the path of the belljar program")?.into();
    let guests = arguments.next().context("give the folder of built components")?.into();
    let place = Place { belljar, guests };
    let scale = arguments.next().map(|text| text.parse()).transpose().context("the scale is a number of percent")?;
    match command.as_str() {
        "cancel" => cancel::run(&place).await,
        "chaos" => chaos::run(&place, chaos::Scale::percent(scale.unwrap_or(100))).await,
        "flood" => flood::run(&place).await,
        "stream" => stream::run(&place, scale.unwrap_or(100)).await,
        "torture" => torture::run(&place, scale.unwrap_or(100)).await,
        "turn" => turn::run(&place, scale.unwrap_or(100)).await,
        "victim" => victim::run(&place).await,
        other => bail!("no such command: {other}"),
    }
}
