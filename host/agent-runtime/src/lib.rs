//! The agent loop: runs, steps and tool calls, each step one transaction.
//!
//! Owns: run, step, tool_call, run_event, recording, intent, approval, summary.
//! May use: domain, tool-api, tenancy, agent-config, conversation-store, billing-meter, model-providers, egress.
//! Never: names wasmtime or axum; holds a transaction across a model or a tool call.
//! Start at: `drive::drive`.

pub mod approvals;
mod awaited;
mod calls;
mod changes;
mod commit;
mod configured;
mod context;
mod direct;
mod drive;
pub mod events;
pub mod fault;
mod feed;
mod finish;
mod fit;
mod follow;
mod host;
mod intents;
mod line;
mod load;
mod model;
mod output;
mod pending;
mod places;
mod queues;
pub mod recordings;
mod relay;
mod replay;
mod request_key;
pub mod runs;
mod scheduler;
mod spending;
mod start;
mod step;
mod summary;
mod teller;
pub mod timeline;
pub mod tool_calls;
mod trace;
pub mod webhooks;
mod worker;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use awaited::Awaited;
use configured::Known;
use domain::{Clock, Ids, RunId};
use feed::Feed;
use model_providers::Providers;
use places::Places;
use tenancy::{Db, Tenant, seal::MasterKey};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tool_api::{ToolExecutor, ToolInspector};
use uuid::Uuid;

pub use direct::{Called, DirectCall, DirectCallError};
pub use events::{EventCursor, RunEvent};
pub use queues::Queue;
pub use recordings::RecordingError;
pub use relay::{BadRedisUrl, Relay};
pub use runs::{Run, RunError, RunStatus, StopReason, Turn};
pub use scheduler::Class;
pub use spending::Unpaid;
pub use start::{StartError, StartOnce, StartRun, Started};
pub use timeline::RunDetail;
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
    /// Runs of all tenants that may be queued; more are refused.
    pub queued_runs: usize,
    /// To the other processes, where one is configured.
    pub relay: Option<Relay>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(5),
            poll: Duration::from_secs(1),
            concurrent_runs: 256,
            queued_runs: 16_384,
            relay: None,
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
    awaited: Arc<Awaited>,
    /// In which runs are driven, and the runs that wait for one.
    places: Arc<Places>,
    /// Turns of tools that read their tenants' stores.
    store_reads: Arc<Semaphore>,
    known: Known,
    tracker: TaskTracker,
}

/// A run that this process drives.
#[derive(Clone)]
struct Live {
    tenant: Tenant,
    feed: Arc<Feed>,
    cancel: CancellationToken,
    lease: Lease,
}

/// What a process writes a run under: its own name and the number of the taking. Another process that takes the run
/// counts one more, and from then on nothing is written under this one.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) worker: Uuid,
    fence: Arc<AtomicI64>,
}

impl Lease {
    pub(crate) fn new(worker: Uuid, fence: i64) -> Lease {
        Lease { worker, fence: Arc::new(AtomicI64::new(fence)) }
    }

    pub(crate) fn fence(&self) -> i64 {
        self.fence.load(Ordering::Acquire)
    }

    /// This process, late to renew, has taken its own run again.
    pub(crate) fn taken_again(&self, fence: i64) {
        self.fence.fetch_max(fence, Ordering::AcqRel);
    }
}

impl AgentRuntime {
    pub fn new(parts: Parts) -> Self {
        let worker = parts.ids.uuid();
        let settings = &parts.settings;
        let places = Places::new(settings.concurrent_runs, settings.queued_runs, parts.clock.clone());
        let store_reads = Arc::new(Semaphore::new(host::READS_AT_ONCE));
        let (live, awaited, known, tracker) = (Mutex::default(), Arc::default(), Known::new(), TaskTracker::new());
        let runtime = Self(Arc::new(Inner { parts, worker, live, awaited, places, store_reads, known, tracker }));
        runtime.0.parts.settings.relay.iter().for_each(Relay::start);
        runtime
    }

    fn live(&self) -> MutexGuard<'_, HashMap<RunId, Live>> {
        // The map stays whole whatever panicked while it was held.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live_run(&self, run: RunId) -> Option<Live> {
        self.live().get(&run).cloned()
    }
}
