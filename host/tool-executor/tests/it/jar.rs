//! An executor with guests in it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use domain::{CallGrants, CallId, Limits, SystemClock, TenantId, Timestamp};
use egress::Egress;
use serde_json::{Value, json};
use tool_api::{
    ArtifactHash, CallContext, CallError, Finished, InspectError, Inspection, NoHost, Outcome, Rejection, Share,
    ToolCall, ToolExecutor, ToolInspector, Upload,
};
use tool_executor::{Executor, Settings};
use uuid::Uuid;

/// The compile child of this package.
pub(crate) const COMPILE_CHILD: &str = env!("CARGO_BIN_EXE_compile-component");

/// A guest that the workspace built: its component.
pub(crate) fn guest(name: &str) -> Bytes {
    let path = guests_dir().join(format!("{name}.wasm"));
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}; run `cargo xtask guests`", path.display()),
    }
}

/// Where `cargo xtask guests` leaves components.
pub(crate) fn guests_dir() -> PathBuf {
    let dir = std::env::var_os("BELLJAR_GUESTS").map(PathBuf::from);
    dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"))
}

/// A guest that is written by hand.
pub(crate) fn wat(name: &str) -> Bytes {
    wat::parse_str(wat_text(name)).unwrap().into()
}

pub(crate) fn wat_text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/guests/wat/{name}.wat"));
    std::fs::read_to_string(path).unwrap()
}

pub(crate) fn settings(cache_dir: PathBuf) -> Settings {
    Settings {
        scratch_dir: cache_dir.join("scratch"),
        cache_dir,
        mac_key: [7; 32].into(),
        compile_command: vec![COMPILE_CHILD.into()],
        concurrency: 4,
        memory_cache_bytes: 256 << 20,
        clock: Arc::new(SystemClock),
        egress: Egress::new(Vec::new()).unwrap(),
    }
}

pub(crate) struct Jar {
    pub(crate) executor: Executor,
}

impl Jar {
    /// Shares compiled code with all tests.
    pub(crate) fn new() -> Jar {
        Jar::at(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests"))
    }

    pub(crate) fn at(cache_dir: PathBuf) -> Jar {
        Jar { executor: Executor::start(settings(cache_dir)).unwrap() }
    }

    pub(crate) async fn inspect(&self, component: Bytes) -> Inspection {
        self.try_inspect(component).await.unwrap()
    }

    pub(crate) async fn try_inspect(&self, component: Bytes) -> Result<Inspection, InspectError> {
        self.executor.inspect(upload(&component), &component).await
    }

    pub(crate) async fn rejection(&self, component: impl Into<Bytes>) -> Rejection {
        match self.try_inspect(component.into()).await {
            Err(InspectError::Rejected(rejection)) => rejection,
            other => panic!("not rejected: {other:?}"),
        }
    }

    /// A guest that can be called.
    pub(crate) async fn load(&self, name: &str) -> ArtifactHash {
        self.inspect(guest(name)).await.artifact
    }

    pub(crate) async fn call(&self, call: ToolCall) -> Finished {
        self.try_call(call).await.unwrap()
    }

    /// A call outside of a tenant: its store is empty, nobody follows it.
    pub(crate) async fn try_call(&self, call: ToolCall) -> Result<Finished, CallError> {
        self.executor.call(call, Arc::new(NoHost)).await
    }

    pub(crate) async fn outcome(&self, artifact: ArtifactHash, function: &str, arguments: Value) -> Outcome {
        self.call(call(artifact, function, arguments)).await.outcome
    }

    /// Something that every host must keep doing.
    pub(crate) async fn answers(&self, calc: ArtifactHash) -> Result<(), CallError> {
        let finished = self.try_call(call(calc, "evaluate", json!({"expression": "6 * 7"}))).await?;
        assert_eq!(finished.outcome.for_model(), "42", "{finished:?}");
        Ok(())
    }
}

pub(crate) fn call(artifact: ArtifactHash, function: &str, arguments: Value) -> ToolCall {
    ToolCall {
        id: CallId::from(Uuid::from_u128(1)),
        tenant: TenantId::from(Uuid::from_u128(2)),
        tool: "guest".parse().unwrap(),
        artifact,
        function: function.parse().unwrap(),
        arguments,
        grants: Arc::new(CallGrants::default()),
        secrets: Arc::default(),
        limits: Limits { deadline_ms: 60_000, ..Limits::DEFAULT },
        context: CallContext { idempotency_key: "key".into(), attempt: 1, ..CallContext::default() },
        share: Share::default(),
        record: false,
    }
}

/// An upload of a component that its tenant has had before.
pub(crate) fn upload(component: &Bytes) -> Upload {
    Upload {
        tenant: TenantId::from(Uuid::from_u128(2)),
        artifact: ArtifactHash::of(component),
        manifest: None,
        first: false,
    }
}

/// Memory of this process that is in use, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    status_bytes("self", "VmRSS:").unwrap()
}

/// A size from `/proc/<pid>/status`.
pub(crate) fn status_bytes(pid: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

pub(crate) fn unix_now_ms() -> u64 {
    use domain::Clock;
    let now: Timestamp = SystemClock.now();
    now.unix_ms()
}
