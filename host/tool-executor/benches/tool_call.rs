//! A sealed tool call beside a bare one: `tool_call PATH/TO/calc.wasm`. Rounds alternate, so that both meet the same
//! machine. Prints a table for ARCHITECTURE.md.

#![expect(clippy::print_stdout, reason = "the table is the result")]

use std::{
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{CallId, Grants, Limits, SystemClock, TenantId};
use serde_json::{Value, json};
use tool_api::{ArtifactHash, CallContext, Status, ToolCall, ToolExecutor, ToolInspector};
use tool_executor::{BareCall, CONCURRENCY_DEFAULT, Executor, Settings};
use uuid::Uuid;

const FUNCTION: &str = "evaluate";
const EXPRESSION: &str = "(19.99 * 3 - 5) / 4";
const ROUNDS: usize = 9;
const CALLS_PER_ROUND: usize = 4_000;
const WARM_UP_CALLS: usize = 1_000;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sealed,
    Bare,
}

struct Bench {
    executor: Executor,
    bare: BareCall,
    artifact: ArtifactHash,
    arguments: Value,
    arguments_text: String,
    grants: Arc<Grants>,
}

/// One round of one kind.
struct Round {
    latencies: Vec<Duration>,
    wall: Duration,
    faults: u64,
}

fn main() {
    // Cargo adds `--bench`; the path is whatever else is there.
    let Some(path) = env::args().skip(1).find(|argument| !argument.starts_with("--")) else {
        println!("give the path of calc.wasm: `cargo xtask bench tool-call` does");
        return;
    };
    let component = fs::read(&path).expect("calc.wasm can be read");
    let cache = tempfile::tempdir().expect("a directory for compiled code");
    let settings = Settings {
        cache_dir: cache.path().into(),
        mac_key: [0; 32].into(),
        compile_command: vec![env!("CARGO_BIN_EXE_compile-component").into()],
        concurrency: CONCURRENCY_DEFAULT,
        memory_cache_bytes: 256 << 20,
        clock: Arc::new(SystemClock),
    };
    let executor = Executor::start(settings).expect("the executor starts");

    println!("| threads | call | p50 µs | p99 µs | calls/s | page faults a call | p50 against bare |");
    println!("|---|---|---|---|---|---|---|");
    for threads in [1, 2] {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(threads).event_interval(1).enable_all().build().expect("a runtime");
        let bench = runtime.block_on(prepare(&executor, component.clone()));
        let rounds = |kind| runtime.block_on(round(&bench, kind, threads, CALLS_PER_ROUND));
        runtime.block_on(round(&bench, Kind::Sealed, threads, WARM_UP_CALLS));
        runtime.block_on(round(&bench, Kind::Bare, threads, WARM_UP_CALLS));
        let (mut sealed, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            sealed.push(rounds(Kind::Sealed));
            bare.push(rounds(Kind::Bare));
        }
        let base = median(bare.iter().map(|round| percentile(round, 50)));
        print_row(threads, "bare", &bare, base);
        print_row(threads, "sealed", &sealed, base);
    }
}

async fn prepare(executor: &Executor, component: Vec<u8>) -> Arc<Bench> {
    let inspection = executor.inspect(component.into()).await.expect("calc is a tool");
    let arguments = json!({ "expression": EXPRESSION });
    Arc::new(Bench {
        executor: executor.clone(),
        bare: executor.bare(inspection.artifact).await.expect("calc is loaded"),
        artifact: inspection.artifact,
        arguments_text: arguments.to_string(),
        arguments,
        grants: Arc::default(),
    })
}

/// `calls` calls, shared by as many tasks as there are threads.
async fn round(bench: &Arc<Bench>, kind: Kind, threads: usize, calls: usize) -> Round {
    let faults = page_faults();
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..threads {
        let (bench, next) = (Arc::clone(bench), Arc::clone(&next));
        tasks.spawn(async move {
            let mut latencies = Vec::with_capacity(calls);
            while next.fetch_add(1, Ordering::Relaxed) < calls {
                let started = Instant::now();
                bench.call(kind).await;
                latencies.push(started.elapsed());
            }
            latencies
        });
    }
    let mut latencies = tasks.join_all().await.concat();
    let wall = started.elapsed();
    let faults = page_faults() - faults;
    latencies.sort_unstable();
    Round { latencies, wall, faults }
}

impl Bench {
    async fn call(&self, kind: Kind) {
        match kind {
            Kind::Bare => {
                assert!(self.bare.call(FUNCTION, &self.arguments_text).await.expect("a bare call"));
            }
            Kind::Sealed => {
                let call = ToolCall {
                    id: CallId::from(Uuid::from_u128(1)),
                    tenant: TenantId::from(Uuid::from_u128(2)),
                    tool: "calc".parse().expect("a name"),
                    artifact: self.artifact,
                    function: FUNCTION.parse().expect("a name"),
                    arguments: self.arguments.clone(),
                    grants: Arc::clone(&self.grants),
                    limits: Limits::DEFAULT,
                    context: CallContext { idempotency_key: "bench".into(), attempt: 1, ..CallContext::default() },
                };
                let finished = self.executor.call(call).await.expect("a sealed call");
                assert!(finished.outcome.status == Status::Ok && finished.receipt.fuel_used > 0);
            }
        }
    }
}

/// Minor page faults of this process so far: the tenth field of `/proc/self/stat`, the eighth behind the name.
fn page_faults() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    rest.split_whitespace().nth(7).and_then(|field| field.parse().ok()).expect("a count")
}

fn percentile(round: &Round, percent: usize) -> f64 {
    let at = (round.latencies.len() * percent / 100).min(round.latencies.len() - 1);
    round.latencies[at].as_secs_f64() * 1e6
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_row(threads: usize, name: &str, rounds: &[Round], base: f64) {
    let p50 = median(rounds.iter().map(|round| percentile(round, 50)));
    let p99 = median(rounds.iter().map(|round| percentile(round, 99)));
    let rate = median(rounds.iter().map(|round| round.latencies.len() as f64 / round.wall.as_secs_f64()));
    let faults = median(rounds.iter().map(|round| round.faults as f64 / round.latencies.len() as f64));
    println!("| {threads} | {name} | {p50:.1} | {p99:.1} | {rate:.0} | {faults:.2} | {:.2} |", p50 / base);
}
