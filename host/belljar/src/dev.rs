//! `belljar dev`: a database, a tenant, tools and agents to begin with, and the product.

mod database;
mod seed;
mod state;

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use domain::{ExposeSecret, Limits};
use tenancy::{DbSettings, keys::KeyKind};

use crate::{
    cli::{self, compile_command},
    config::Dev,
    dev::{seed::Seeded, state::Owned},
    private_file, serve,
    shown::grouped,
    wire::{self, App},
};

pub(crate) use state::DevFile;

pub(crate) const DATA_DIR_DEFAULT: &str = ".belljar";
/// In the data directory: what scripts need.
pub(crate) const DEV_FILE: &str = "dev.json";
/// Connections of a development server: its Postgres allows 200, and tests start several servers.
const DATABASE_CONNECTIONS: u32 = 16;
/// What running work is given on Ctrl-C.
const DRAIN_SECONDS: u64 = 10;

pub(crate) fn main(config: Dev) -> anyhow::Result<ExitCode> {
    serve::start_log(&config.log)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .with_context(|| format!("cannot create `{}`", config.data_dir.display()))?;
    serve::runtime()?.block_on(Box::pin(async {
        // From here on a signal ends the start in order, with Postgres stopped.
        let mut stop = Box::pin(serve::stop_signal()?);
        let listeners = serve::Listeners::bind(config.listen, config.operator_listen).await?;
        let mut database = database::start(&config).await?;
        let served = tokio::select! {
            () = &mut stop => Ok(()),
            prepared = prepare(&config, &database, &listeners) => match prepared {
                Err(error) => Err(error),
                Ok(app) => serve::run(app, listeners, Duration::from_secs(DRAIN_SECONDS), stop).await,
            },
        };
        let stopped = database.stop().await;
        served.and(stopped)?;
        Ok(ExitCode::SUCCESS)
    }))
}

/// Everything between a running Postgres and an open door.
async fn prepare(config: &Dev, database: &database::Database, listeners: &serve::Listeners) -> anyhow::Result<App> {
    let Owned { master_key, operator_token } = Owned::load(&config.data_dir)?;
    let urls = database.migrate(&master_key).await?;
    let app = wire::assemble(wire::Settings {
        database: DbSettings { url: urls.application.clone(), connections: DATABASE_CONNECTIONS },
        master_key,
        cache_dir: config.data_dir.join("compiled"),
        compile_command: compile_command()?,
        key_kind: KeyKind::Test,
        operator_token: Some(operator_token.clone()),
        concurrent_runs: 256,
        concurrent_tool_calls: tool_executor::CONCURRENCY_DEFAULT,
        allow_egress: config.allow_egress.clone(),
        redis_url: config.redis_url.clone(),
        platform: config.platform.clone(),
    })
    .await?;

    let path = config.data_dir.join(DEV_FILE);
    let previous = DevFile::read(&path);
    let tenant = seed::tenant(&app, previous.as_ref()).await?;
    let seeded = match config.seed {
        true => seed::tools_and_agents(&app, &tenant.tenant, &config.tools_dirs, &config.platform).await?,
        false => Seeded::default(),
    };
    let file = DevFile {
        base_url: format!("http://{}", state::reachable(listeners.tenant.local_addr()?)),
        operator_url: format!("http://{}", state::reachable(listeners.operator.local_addr()?)),
        api_key: tenant.key,
        operator_token: operator_token.expose_secret().to_owned(),
        tenant_id: tenant.tenant.id(),
        database_url: urls.application.expose_secret().to_owned(),
        owner_database_url: urls.owner.expose_secret().to_owned(),
        superuser_database_url: urls.superuser.map(|url| url.expose_secret().to_owned()),
    };
    private_file::write(&path, &format!("{}\n", serde_json::to_string_pretty(&file)?))?;
    println!("{}", greeting(&file, &path, &seeded, config, tenant.limits));
    Ok(app)
}

/// What to try next. The lines work as they are printed, in the folder in which the server was started.
fn greeting(file: &DevFile, path: &Path, seeded: &Seeded, config: &Dev, limits: Limits) -> String {
    let DevFile { base_url, operator_url, .. } = file;
    let path = path.display();
    let model = match seed::platform_model(&config.platform) {
        None => {
            "the built-in demo model (OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY brings a real one)".into()
        }
        Some(found) => format!("{}, with your {}", found.model, found.variable),
    };
    let mut text = format!(
        "\nBelljar is ready.\n\n  \
         API       {base_url}  (documentation: {base_url}/openapi.json)\n  \
         operator  {operator_url}  (health: {operator_url}/healthz)\n  \
         model     {model}\n  \
         state     {path}  (the key and every URL, for scripts)\n"
    );
    for note in &seeded.notes {
        text += &format!("\n  note: {note}\n");
    }
    text += &format!(
        "\nTry, in this folder:\n\n  \
         KEY=$(sed -n 's/.*\"api_key\": \"\\(.*\\)\".*/\\1/p' {path})\n"
    );
    let json = "-H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json'";
    if seeded.agents.iter().any(|agent| agent == "assistant") {
        text += &format!(
            "  curl -s {base_url}/v1/agents/assistant/chat {json} -d '{{\"message\": \"What is 12.50 * 3 + 4.2?\"}}'\n  \
             curl -sN {base_url}/v1/agents/assistant/chat {json} -d '{{\"message\": \"/calc__evaluate \
             {{\\\"expression\\\": \\\"(19.99 * 3) / 2\\\"}}\", \"stream\": true}}'\n"
        );
    }
    text += &format!(
        "  curl -s {base_url}/v1/tools -H \"Authorization: Bearer $KEY\"\n  \
         curl -s {base_url}/v1/usage -H \"Authorization: Bearer $KEY\"\n  \
         {} tool new my-tool    # then follow its README\n",
        cli::me()
    );
    text += &format!(
        "\nA tool call may use, when nobody says otherwise: {} fuel (about a second of plain work), {} MiB of memory, {} s,\n\
         {} KiB of output, {} KiB of logs, {} host calls, {} requests and {} MiB over \
         HTTP.\n\nCtrl-C stops everything; the data stays in {}.\n",
        grouped(limits.fuel),
        limits.memory_bytes >> 20,
        limits.deadline_ms / 1000,
        limits.output_bytes >> 10,
        limits.log_bytes >> 10,
        grouped(limits.host_calls),
        limits.http_requests,
        limits.http_bytes >> 20,
        config.data_dir.display(),
    );
    text
}
