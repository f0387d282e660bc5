//! `belljar keys rotate`: the tenants' data keys are sealed anew, while servers run.

use std::process::ExitCode;

use tenancy::{Db, rotate};

use crate::{config, serve};

pub(crate) fn rotate(config: config::Rotate) -> anyhow::Result<ExitCode> {
    serve::start_log(&config.log)?;
    serve::runtime()?.block_on(async {
        let db = Db::connect(&config.database).await?;
        let done = rotate::rotate(&db, &config.master_key, |so_far| {
            tracing::info!(rewrapped = so_far.rewrapped, already = so_far.already, "data keys are sealed anew");
        })
        .await?;
        println!(
            "{} data keys were sealed under the present key-encryption key, {} were so already. The previous keys can go.",
            done.rewrapped, done.already
        );
        Ok(ExitCode::SUCCESS)
    })
}
