//! What is counted of requests, and how it is read.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{Method, StatusCode};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// Upper bounds of the buckets of every duration, in seconds: from a cheap read to a chat that waits a minute.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];
/// How often samples are folded into their buckets: until then each takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes this process count, the first time; afterwards gives the same handle.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = PrometheusBuilder::new().set_buckets(&DURATION_BUCKETS)?.build_recorder();
    let handle = installed.insert(recorder.handle()).clone();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("this process counts for somebody else already: /metrics stays empty");
    }
    Ok(handle)
}

/// Keeps the memory of what is counted bounded, also when nobody reads it. Returns on shutdown.
pub async fn upkeep(handle: PrometheusHandle, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

pub(crate) fn request(method: &Method, route: &str, status: StatusCode, duration: Duration) {
    // Any other method is a text of the client's, and each text would be a series of its own.
    let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    let method = if known { method.to_string() } else { "OTHER".to_owned() };
    let labels = [("method", method), ("route", route.to_owned()), ("status", status.as_u16().to_string())];
    metrics::counter!("belljar_http_requests_total", &labels).increment(1);
    metrics::histogram!("belljar_http_request_duration_seconds", &labels).record(duration.as_secs_f64());
}

pub(crate) fn render(handle: &PrometheusHandle) -> String {
    handle.run_upkeep();
    handle.render()
}
