//! The product as a process of its own, under load and under attack: `load COMMAND BELLJAR GUESTS`, with the program
//! and the folder of components. Talks to loopback only, for a bounded number of calls. `cargo xtask` builds both first.

#![expect(clippy::print_stdout, reason = "tables are the result")]

mod figures;
mod process;
mod server;
mod torture;
mod victim;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};

/// What every command is given.
struct Place {
    belljar: PathBuf,
    guests: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().context("give a command: torture or victim")?;
    let belljar = arguments.next().context("give the path of the belljar program")?.into();
    let guests = arguments.next().context("give the folder of built components")?.into();
    let place = Place { belljar, guests };
    let scale = arguments.next().map(|text| text.parse()).transpose().context("the scale is a number of percent")?;
    match command.as_str() {
        "torture" => torture::run(&place, scale.unwrap_or(100)).await,
        "victim" => victim::run(&place).await,
        other => bail!("no such command: {other}"),
    }
}
