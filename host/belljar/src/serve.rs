//! Listening, working in the background, and an orderly end.

use std::{future::Future, io::IsTerminal, net::SocketAddr, pin::pin, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tenancy::keys::KeyKind;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cli::compile_command,
    config::{self, Log, Serve},
    wire::{self, App},
};

/// Longest wait for the head of a request, on a fresh connection or an idle one: connections are not for keeping.
const REQUEST_HEAD_SECONDS_MAX: u64 = 30;
/// Longest wait for a client to take the next bytes of its answer: until then they are kept for it.
const WRITE_SECONDS_MAX: u64 = 60;
/// Connections to one listener at the same time. Each holds a file and some kilobytes.
const CONNECTIONS_MAX: usize = 10_000;
/// Between two looks for uploads whose process died.
const RECOVERY_SECONDS: u64 = 5;
/// Longest time to give runs back: the database may be away.
const GIVING_BACK_MAX: Duration = Duration::from_secs(5);
/// After a failed `accept`, which says that this process has no files left: some are closed meanwhile.
const ACCEPT_PAUSE_MS: u64 = 100;
/// Stack of a worker thread, in bytes. Debug builds of deep handlers need more than the usual 2 MiB.
const WORKER_STACK_BYTES: usize = 4 << 20;

/// The two ways in.
pub struct Listeners {
    pub tenant: TcpListener,
    pub operator: TcpListener,
}

impl Listeners {
    pub async fn bind(tenant: SocketAddr, operator: SocketAddr) -> anyhow::Result<Listeners> {
        let bind = async |address: SocketAddr, flag: &str| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}; name another address with {flag}"))
        };
        Ok(Listeners { tenant: bind(tenant, "--listen").await?, operator: bind(operator, "--operator-listen").await? })
    }
}

/// `belljar serve`.
pub(crate) fn main(config: Serve) -> anyhow::Result<ExitCode> {
    start_log(&config.log)?;
    if let Some(fault) = config::fault() {
        agent_runtime::fault::arm(&fault, end_at_once)?;
    }
    runtime()?.block_on(Box::pin(async {
        let stop = stop_signal()?;
        let listeners = Listeners::bind(config.listen, config.operator_listen).await?;
        let app = wire::assemble(wire::Settings {
            database: config.database,
            master_key: config.master_key,
            cache_dir: config.cache_dir,
            compile_command: compile_command()?,
            key_kind: KeyKind::Live,
            operator_token: config.operator_token,
            concurrent_runs: config.concurrent_runs,
            concurrent_tool_calls: config.concurrent_tool_calls,
            allow_egress: config.allow_egress,
            redis_url: config.redis_url,
            platform: config.platform,
        })
        .await?;
        run(app, listeners, config.drain, stop).await?;
        Ok(ExitCode::SUCCESS)
    }))
}

/// As `kill -9` of this process, by itself.
fn end_at_once() {
    if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL) {
        tracing::error!(%error, "the process could not end itself");
    }
}

/// The runtime of everything that polls tools. It looks at timers and sockets after each task: a tool that spins yields
/// often, and between two looks there would otherwise be 61 such turns.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    raise_file_limit();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(2))
        .thread_stack_size(WORKER_STACK_BYTES)
        .event_interval(1)
        .enable_all()
        .build()
        .context("the runtime does not start")
}

/// Each connection holds a file: take as many as the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

pub(crate) fn start_log(log: &Log) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.filter).with_context(|| {
        format!("BELLJAR_LOG is `{}`: use a level, such as info, or target=level pairs", log.filter)
    })?;
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = if log.json { lines.json().try_init() } else { lines.with_target(false).try_init() };
    started.map_err(|error| anyhow::anyhow!("the log does not start: {error}"))
}

/// Completes at the first SIGTERM or SIGINT. The second one ends the process at once.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Serves until `stop`; then takes no more work, gives what runs until `drain`, and returns.
pub async fn run(
    app: App,
    listeners: Listeners,
    drain: Duration,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (work, stopping) = (app.background, app.shutdown);
    let (health, ended) = (TaskTracker::new(), CancellationToken::new());
    tracing::info!(
        tenant = %listeners.tenant.local_addr()?,
        operator = %listeners.operator.local_addr()?,
        "listening"
    );
    work.spawn(accept(listeners.tenant, app.tenant_router, stopping.clone(), work.clone()));
    // Health is told until the end: a supervisor that hears nothing kills what is still draining.
    health.spawn(accept(listeners.operator, app.operator_router, ended.clone(), health.clone()));
    let (runtime, token) = (app.runtime.clone(), stopping.clone());
    work.spawn(async move { runtime.work(token).await });
    let (webhooks, token) = (app.webhooks, stopping.clone());
    work.spawn(async move { webhooks.work(token).await });
    let (admission, db, token) = (app.admission, app.db, stopping.clone());
    work.spawn(async move {
        while token.run_until_cancelled(tokio::time::sleep(Duration::from_secs(RECOVERY_SECONDS))).await.is_some() {
            loop {
                match admission.recover_one(&db).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::error!(%error, "an upload that had stopped was not finished");
                        break;
                    }
                }
            }
        }
    });

    stop.await;
    tracing::info!(drain_seconds = drain.as_secs(), "stopping: no new work is taken");
    stopping.cancel();
    work.close();
    let again = stop_signal()?;
    tokio::select! {
        () = work.wait() => tracing::info!("all work has ended"),
        () = tokio::time::sleep(drain) => tracing::warn!("work is left that another process takes over"),
        () = again => tracing::warn!("told to stop again: ending at once"),
    }
    if tokio::time::timeout(GIVING_BACK_MAX, app.runtime.let_go()).await.is_err() {
        tracing::warn!("runs were not all given back; their leases run out");
    }
    ended.cancel();
    health.close();
    // Health checks are short; one that hangs is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(1), health.wait()).await;
    Ok(())
}

/// Takes connections until `stopping`, each as a task on `tracker`.
async fn accept(listener: TcpListener, router: Router, stopping: CancellationToken, tracker: TaskTracker) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some(Ok(place)) = stopping.run_until_cancelled(places.clone().acquire_owned()).await else { return };
        match stopping.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                tracker.spawn(async move {
                    connection(stream, router, stopping).await;
                    drop(place);
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}

/// Serves one connection. When the process stops, the answer that is under way is the last one.
async fn connection(stream: TcpStream, router: Router, stopping: CancellationToken) {
    // Small answers and events leave at once.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_secs(WRITE_SECONDS_MAX)));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(REQUEST_HEAD_SECONDS_MAX));
    let mut serving = pin!(http.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router)));
    let done = match stopping.run_until_cancelled(serving.as_mut()).await {
        Some(done) => done,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        tokio::time::pause();
        let router = Router::new().route("/", axum::routing::get(async || vec![b'x'; 64 << 20]));
        let began = tokio::time::Instant::now();
        let serving = connection(stream, router, CancellationToken::new());
        tokio::time::timeout(Duration::from_secs(600), serving).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), WRITE_SECONDS_MAX);
        drop(client);
    }
}
