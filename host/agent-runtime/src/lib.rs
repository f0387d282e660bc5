//! The agent loop: runs, steps and tool calls, each step one transaction.
//!
//! Owns: run, step, tool_call, run_event, recording.
//! May use: domain, tool-api, tenancy, agent-config, conversation-store, billing-meter, model-providers.
//! Never: names wasmtime or axum; holds a transaction across a model or a tool call.
//! Start at: `drive::drive`.

mod calls;
mod changes;
mod commit;
mod context;
mod direct;
mod drive;
pub mod events;
mod feed;
mod finish;
mod fit;
mod host;
mod load;
mod model;
pub mod recordings;
mod replay;
pub mod runs;
mod start;
mod step;
mod teller;
pub mod tool_calls;
mod worker;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{Clock, Ids, RunId};
use feed::Feed;
use model_providers::Providers;
use tenancy::{Db, seal::MasterKey};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tool_api::{ToolExecutor, ToolInspector};
use uuid::Uuid;

pub use direct::{DirectCall, DirectCallError};
pub use events::{EventCursor, RunEvent};
pub use recordings::RecordingError;
pub use runs::{Run, RunDetail, RunError, RunStatus, StopReason, Turn};
pub use start::{StartError, StartRun, Started};
pub use tool_calls::ToolCallRow;

/// How a process runs runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a run belongs to a process that does not renew: past it, another takes it over.
    pub lease: Duration,
    /// How often a process renews. Well under the lease.
    pub heartbeat: Duration,
    /// How often a process looks for queued and abandoned runs.
    pub poll: Duration,
    /// Runs that this process drives at once; more are queued.
    pub concurrent_runs: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(5),
            poll: Duration::from_secs(1),
            concurrent_runs: 256,
        }
    }
}

/// What the runtime is made of.
pub struct Parts {
    pub db: Db,
    pub executor: Arc<dyn ToolExecutor>,
    pub inspector: Arc<dyn ToolInspector>,
    pub providers: Arc<Providers>,
    pub master_key: MasterKey,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
    pub settings: Settings,
}

/// Starts runs, drives them, tells of them.
#[derive(Clone)]
pub struct AgentRuntime(Arc<Inner>);

struct Inner {
    parts: Parts,
    /// This process, as the lease names it.
    worker: Uuid,
    /// The runs that this process drives.
    live: Mutex<HashMap<RunId, Live>>,
    capacity: Arc<Semaphore>,
    /// Turns of tools that read their tenants' stores.
    store_reads: Arc<Semaphore>,
    tracker: TaskTracker,
}

/// A run that this process drives.
#[derive(Clone)]
struct Live {
    feed: Arc<Feed>,
    cancel: CancellationToken,
}

impl AgentRuntime {
    pub fn new(parts: Parts) -> Self {
        let worker = parts.ids.uuid();
        let capacity = Arc::new(Semaphore::new(parts.settings.concurrent_runs));
        let store_reads = Arc::new(Semaphore::new(host::READS_AT_ONCE));
        let (live, tracker) = (Mutex::default(), TaskTracker::new());
        Self(Arc::new(Inner { parts, worker, live, capacity, store_reads, tracker }))
    }

    fn live(&self) -> MutexGuard<'_, HashMap<RunId, Live>> {
        // The map stays whole whatever panicked while it was held.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live_run(&self, run: RunId) -> Option<Live> {
        self.live().get(&run).cloned()
    }
}
