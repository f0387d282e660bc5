//! What the benches share: an executor with a directory of its own, `calc`, and figures.

#![allow(dead_code, clippy::allow_attributes, reason = "each bench uses some of it")]

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{CallGrants, CallId, Limits, SystemClock, TenantId};
use serde_json::{Value, json};
use tool_api::{
    ArtifactHash, CallContext, Finished, NoHost, Share, Status, ToolCall, ToolExecutor, ToolInspector, Upload,
};
use tool_executor::{CONCURRENCY_DEFAULT, Executor, Settings};
use uuid::Uuid;

pub(crate) const FUNCTION: &str = "evaluate";
const EXPRESSION: &str = "(19.99 * 3 - 5) / 4";

/// `calc.wasm`, whose path is the argument that is no option: cargo adds `--bench`.
pub(crate) fn calc() -> Bytes {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let path: PathBuf = path.expect("give the path of calc.wasm: `cargo xtask bench` does").into();
    fs::read(path).expect("calc.wasm can be read").into()
}

/// An executor, and the directory of its compiled code.
pub(crate) fn executor(memory_cache_bytes: u64) -> (Executor, tempfile::TempDir) {
    let cache = tempfile::tempdir().expect("a directory for compiled code");
    (executor_at(cache.path().into(), memory_cache_bytes), cache)
}

pub(crate) fn executor_at(cache_dir: PathBuf, memory_cache_bytes: u64) -> Executor {
    Executor::start(Settings {
        scratch_dir: cache_dir.join("scratch"),
        cache_dir,
        mac_key: [0; 32].into(),
        compile_command: vec![env!("CARGO_BIN_EXE_compile-component").into()],
        concurrency: CONCURRENCY_DEFAULT,
        memory_cache_bytes,
        clock: Arc::new(SystemClock),
        egress: egress::Egress::new(Vec::new()).expect("a way out"),
    })
    .expect("the executor starts")
}

pub(crate) async fn inspect(executor: &Executor, component: &Bytes) -> ArtifactHash {
    let artifact = ArtifactHash::of(component);
    let upload = Upload { tenant: tenant(), artifact, manifest: None, first: false };
    executor.inspect(upload, component).await.expect("calc is a tool").artifact
}

pub(crate) fn arguments() -> Value {
    json!({ "expression": EXPRESSION })
}

fn tenant() -> TenantId {
    TenantId::from(Uuid::from_u128(2))
}

/// A call of `calc`, with nothing granted.
pub(crate) fn call(artifact: ArtifactHash, arguments: &Value, grants: &Arc<CallGrants>) -> ToolCall {
    ToolCall {
        id: CallId::from(Uuid::from_u128(1)),
        tenant: tenant(),
        tool: "calc".parse().expect("a name"),
        artifact,
        function: FUNCTION.parse().expect("a name"),
        arguments: arguments.clone(),
        grants: Arc::clone(grants),
        secrets: Arc::default(),
        limits: Limits::DEFAULT,
        context: CallContext { idempotency_key: "bench".into(), attempt: 1, ..CallContext::default() },
        share: Share::default(),
        record: false,
    }
}

pub(crate) async fn sealed(executor: &Executor, call: ToolCall) -> Finished {
    let finished = executor.call(call, Arc::new(NoHost)).await.expect("a sealed call");
    assert!(finished.outcome.status == Status::Ok && finished.receipt.fuel_used > 0, "{:?}", finished.outcome);
    finished
}

/// The component with a custom section of its own: the same code under another hash.
pub(crate) fn variant(component: &[u8], n: u32) -> Bytes {
    // Section 0, its length, and a name of four bytes.
    let mut bytes = component.to_vec();
    bytes.extend_from_slice(&[0, 9, 4]);
    bytes.extend_from_slice(b"twin");
    bytes.extend_from_slice(&n.to_le_bytes());
    bytes.into()
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The value below which `percent` of all lie.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    micros(sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)])
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
