//! `belljar migrate`: the only command that connects as the owner, `dev` apart.

use std::process::ExitCode;

use domain::ExposeSecret;

use crate::{config, serve};

pub(crate) fn main(config: config::Migrate) -> anyhow::Result<ExitCode> {
    serve::runtime()?.block_on(async {
        let owner_url = config.owner_database_url.expose_secret();
        if config.check {
            let pending = tenancy::pending(owner_url).await?;
            if pending > 0 {
                println!("{pending} migrations are missing: run `belljar migrate`.");
                return Ok(ExitCode::FAILURE);
            }
            println!("The schema is at this program's version.");
            return Ok(ExitCode::SUCCESS);
        }
        let done = tenancy::migrate(owner_url).await?;
        println!("The schema went from version {} to {}.", done.from, done.to);
        Ok(ExitCode::SUCCESS)
    })
}
