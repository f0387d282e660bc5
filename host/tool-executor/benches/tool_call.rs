//! A sealed tool call beside what else one could do: `tool_call PATH/TO/calc.wasm`. Rounds alternate, so that all meet
//! the same machine. Prints tables for ARCHITECTURE.md.

#![expect(clippy::print_stdout, reason = "the tables are the result")]

mod common;

use std::{
    fs,
    hint::black_box,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{FUNCTION, calc, call, executor, inspect, median, percentile};
use domain::CallGrants;
use serde_json::Value;
use tool_api::ArtifactHash;
use tool_executor::{
    Executor,
    control::{BareCall, NaiveCall},
};

const ROUNDS: usize = 9;
const WARM_UP_CALLS: usize = 1_000;
/// Work of one burner: enough that starting a thread does not count.
const BURNER_STEPS: u64 = 100_000_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The same engine, component, fuel, memory limit and an empty WASI context, and nothing else.
    Bare,
    Sealed,
    /// Memory on demand, and linked anew for each call.
    Naive,
    /// A native process that does nothing.
    Process,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Bare, Kind::Sealed, Kind::Naive, Kind::Process];

    fn calls_per_round(self) -> usize {
        match self {
            Kind::Bare | Kind::Sealed => 4_000,
            Kind::Naive => 400,
            Kind::Process => 50,
        }
    }
}

/// A runtime of one or two threads, what it calls, and its rounds by kind.
struct Setup {
    threads: usize,
    runtime: tokio::runtime::Runtime,
    bench: Arc<Bench>,
    rounds: [Vec<Round>; 4],
}

struct Bench {
    executor: Executor,
    bare: BareCall,
    naive: NaiveCall,
    artifact: ArtifactHash,
    arguments: Value,
    arguments_text: String,
    grants: Arc<CallGrants>,
}

/// One round of one kind.
struct Round {
    latencies: Vec<Duration>,
    wall: Duration,
    faults: u64,
}

fn main() {
    let component = calc();
    let (executor, _cache) = executor(256 << 20);
    println!("| threads | call | p50 µs | p99 µs | calls/s | page faults a call | p50 against bare |");
    println!("|---|---|---|---|---|---|---|");
    let mut setups: Vec<Setup> = [1, 2].map(|threads| Setup::new(threads, &executor, &component)).into();
    let mut burners = Vec::new();
    for _ in 0..ROUNDS {
        for setup in &mut setups {
            for kind in Kind::ALL {
                let round = setup.runtime.block_on(round(&setup.bench, kind, setup.threads, kind.calls_per_round()));
                setup.rounds[kind as usize].push(round);
            }
        }
        burners.push(2.0 * burn(1).as_secs_f64() / burn(2).as_secs_f64());
    }
    let rates: Vec<[f64; 4]> = setups.iter().map(Setup::print).collect();
    println!("\n| two threads against one | bare | sealed | burners (the control) |\n|---|---|---|---|");
    println!(
        "| throughput | {:.2} | {:.2} | {:.2} |",
        rates[1][0] / rates[0][0],
        rates[1][1] / rates[0][1],
        median(burners.into_iter())
    );
}

impl Setup {
    fn new(threads: usize, executor: &Executor, component: &Bytes) -> Setup {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(threads).event_interval(1).enable_all().build().expect("a runtime");
        let bench = runtime.block_on(async {
            let (artifact, arguments) = (inspect(executor, component).await, common::arguments());
            Arc::new(Bench {
                executor: executor.clone(),
                bare: executor.bare(artifact).await.expect("calc is loaded"),
                naive: executor.naive(artifact).expect("calc is compiled"),
                artifact,
                arguments_text: arguments.to_string(),
                arguments,
                grants: Arc::default(),
            })
        });
        for kind in Kind::ALL {
            runtime.block_on(round(&bench, kind, threads, WARM_UP_CALLS.min(kind.calls_per_round())));
        }
        Setup { threads, runtime, bench, rounds: Default::default() }
    }

    /// Prints a row a kind; the calls a second of each.
    fn print(&self) -> [f64; 4] {
        let base = median(self.rounds[0].iter().map(|round| percentile(&round.latencies, 50)));
        Kind::ALL.map(|kind| print_row(self.threads, kind, &self.rounds[kind as usize], base))
    }
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
            Kind::Bare => assert!(self.bare.call(FUNCTION, &self.arguments_text).await.expect("a bare call")),
            Kind::Naive => assert!(self.naive.call(FUNCTION, &self.arguments_text).await.expect("a naive call")),
            Kind::Sealed => {
                common::sealed(&self.executor, call(self.artifact, &self.arguments, &self.grants)).await;
            }
            Kind::Process => {
                let status = Command::new("true").arg(&self.arguments_text).status().expect("a process");
                assert!(status.success());
            }
        }
    }
}

/// The longest of `threads` threads that each do the same plain work.
fn burn(threads: usize) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..BURNER_STEPS).fold(1_u64, |sum, n| black_box(sum.wrapping_mul(n | 1))));
        }
    });
    started.elapsed()
}

/// Minor page faults of this process so far: the tenth field of `/proc/self/stat`, the eighth behind the name.
fn page_faults() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    rest.split_whitespace().nth(7).and_then(|field| field.parse().ok()).expect("a count")
}

/// Prints a row; the calls a second.
fn print_row(threads: usize, kind: Kind, rounds: &[Round], base: f64) -> f64 {
    let p50 = median(rounds.iter().map(|round| percentile(&round.latencies, 50)));
    let p99 = median(rounds.iter().map(|round| percentile(&round.latencies, 99)));
    let rate = median(rounds.iter().map(|round| round.latencies.len() as f64 / round.wall.as_secs_f64()));
    let faults = median(rounds.iter().map(|round| round.faults as f64 / round.latencies.len() as f64));
    let name = format!("{kind:?}").to_lowercase();
    println!("| {threads} | {name} | {p50:.1} | {p99:.1} | {rate:.0} | {faults:.2} | {:.2} |", p50 / base);
    rate
}
