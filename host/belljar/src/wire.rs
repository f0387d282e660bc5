//! Which implementation stands behind which trait; nothing else.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, sync::Arc};

use agent_config::Admission;
use agent_runtime::{
    AgentRuntime, Parts, Relay,
    webhooks::{SenderParts, WebhookSender},
};
use anyhow::Context;
use axum::Router;
use billing_meter::prices;
use domain::{Clock, Ids, SecretString, SystemClock, SystemIds};
use egress::Egress;
use gateway::{Gateway, RedisUrl};
use model_providers::Providers;
use tenancy::{
    Db, DbSettings,
    keys::{KeyHasher, KeyKind},
    seal::MasterKey,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tool_executor::Executor;

use crate::{config::Platform, private_file};

/// Compiled tools that stay mapped, in bytes. Code that falls out is mapped again from the disk.
const MAPPED_CODE_BYTES_MAX: u64 = 1 << 30;

/// What a whole product is made of.
pub struct Settings {
    pub database: DbSettings,
    pub master_key: MasterKey,
    /// Where compiled tools are kept.
    pub cache_dir: PathBuf,
    /// Starts a process that runs `tool_executor::compile::child_main`.
    pub compile_command: Vec<OsString>,
    /// Of the API keys that are made here.
    pub key_kind: KeyKind,
    /// `None` closes the operator's API.
    pub operator_token: Option<SecretString>,
    pub concurrent_runs: usize,
    pub concurrent_tool_calls: u32,
    pub allow_egress: Vec<SocketAddr>,
    /// What replicas share. `None`: each is on its own.
    pub redis_url: Option<SecretString>,
    pub platform: Platform,
}

/// The product, not yet listening.
pub struct App {
    pub db: Db,
    pub executor: Executor,
    pub admission: Arc<Admission>,
    pub runtime: AgentRuntime,
    pub webhooks: WebhookSender,
    pub key_hasher: KeyHasher,
    pub tenant_router: Router,
    pub operator_router: Router,
    /// What a request left behind.
    pub background: TaskTracker,
    /// Cancelled when the process stops.
    pub shutdown: CancellationToken,
}

pub async fn assemble(settings: Settings) -> anyhow::Result<App> {
    let (clock, ids): (Arc<dyn Clock>, Arc<dyn Ids>) = (Arc::new(SystemClock), Arc::new(SystemIds));
    let db = Db::connect(&settings.database).await?;
    let mut tx = db.global().await?;
    prices::install_default(&mut tx, clock.now()).await?;
    tx.commit().await?;
    let egress = Egress::new(settings.allow_egress)?;
    let executor = executor(ExecutorSettings {
        cache_dir: settings.cache_dir,
        mac_key: settings.master_key.derive("belljar compiled code 1"),
        compile_command: settings.compile_command,
        concurrency: settings.concurrent_tool_calls,
        egress: egress.clone(),
    })?;
    let providers = Arc::new(Providers::new(egress.clone(), settings.platform));
    let admission = Arc::new(Admission::new(Arc::new(executor.clone()), clock.clone(), ids.clone()));
    let relay = settings.redis_url.as_ref().map(|url| Relay::new(url, ids.uuid())).transpose()?;
    let runtime = AgentRuntime::new(Parts {
        db: db.clone(),
        executor: Arc::new(executor.clone()),
        inspector: Arc::new(executor.clone()),
        providers: providers.clone(),
        master_key: settings.master_key.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        settings: agent_runtime::Settings { concurrent_runs: settings.concurrent_runs, relay, ..Default::default() },
    });
    let webhooks = WebhookSender::new(SenderParts {
        db: db.clone(),
        egress: egress.clone(),
        master_key: settings.master_key.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
    });
    let key_hasher = KeyHasher::new(&settings.master_key);
    let (shutdown, background) = (CancellationToken::new(), TaskTracker::new());
    let metrics = gateway::metrics::install()?;
    background.spawn(gateway::metrics::upkeep(metrics.clone(), shutdown.clone()));
    background.spawn(gateway::idempotency::sweep(db.clone(), clock.clone(), shutdown.clone()));
    let gateway = Gateway::new(gateway::Parts {
        db: db.clone(),
        runtime: runtime.clone(),
        admission: admission.clone(),
        master_key: settings.master_key,
        key_kind: settings.key_kind,
        operator_token: match settings.operator_token {
            Some(token) => token,
            None => {
                tracing::warn!("the operator's API is closed: BELLJAR_OPERATOR_TOKEN opens it");
                private_file::random()?
            }
        },
        clock,
        ids,
        check_provider_url: Arc::new(move |url| match egress.check_url(url) {
            Ok(_) => Ok(()),
            Err(error) => Err(Box::new(error)),
        }),
        platform_providers: providers.platform_names(),
        metrics,
        background: background.clone(),
        shutdown: shutdown.clone(),
        redis: settings.redis_url.as_ref().map(RedisUrl::new).transpose().context("the Redis URL is none")?,
    });
    Ok(App {
        db,
        executor,
        admission,
        runtime,
        webhooks,
        key_hasher,
        tenant_router: gateway::tenant_router(gateway.clone()),
        operator_router: gateway::operator_router(gateway),
        background,
        shutdown,
    })
}

/// What differs between one executor and another.
pub(crate) struct ExecutorSettings {
    pub(crate) cache_dir: PathBuf,
    pub(crate) mac_key: zeroize::Zeroizing<[u8; 32]>,
    pub(crate) compile_command: Vec<OsString>,
    pub(crate) concurrency: u32,
    /// The way out of tools.
    pub(crate) egress: Egress,
}

pub(crate) fn executor(settings: ExecutorSettings) -> anyhow::Result<Executor> {
    let cache_dir = settings.cache_dir.clone();
    Executor::start(tool_executor::Settings {
        scratch_dir: settings.cache_dir.join("scratch"),
        cache_dir: settings.cache_dir,
        mac_key: settings.mac_key,
        compile_command: settings.compile_command,
        concurrency: settings.concurrency,
        memory_cache_bytes: MAPPED_CODE_BYTES_MAX,
        clock: Arc::new(SystemClock),
        egress: settings.egress,
    })
    .with_context(|| format!("the tool executor does not start; compiled code belongs in `{}`", cache_dir.display()))
}
