//! One tenant floods, another sends five runs a second: what the second one feels, what each gets of the process when both
//! want more than there is, and how fast a run is refused that is not taken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Place,
    figures::{ms, paced, percentile, unharmed},
    fleet::{Fleet, Setup, stop},
    server::{Answer, Tenant},
};

const ROUNDS: usize = 5;
/// Runs that the flood sends in a round, at least.
const FLOOD: usize = 2_000;
/// Connections that it sends them over: fewer than the requests that a tenant may have under way, so that what refuses
/// is the queue.
const FLOODERS: usize = 200;
/// The victim's runs in a round, one every `PACE`.
const RUNS: usize = 60;
const PACE: Duration = Duration::from_millis(200);
/// Within this time, a refused run is refused.
const REFUSED_WITHIN: Duration = Duration::from_millis(50);
/// Of its weighted fair share, what a tenant gets at least.
const SHARE: f64 = 0.9;
/// Places of the host. The demo model answers at once: its runs want processors, and more of them at once than these would
/// wait for each other where no schedule reaches.
const PLACES: usize = 16;
/// Runs at once that the plan of either gives.
const CONCURRENT_RUNS: usize = 32;
/// How long both want more than there is.
const CONTENTION: Duration = Duration::from_secs(15);
/// Runs at once that the plan of each gives then: more than the places, and both queues together are less than the host's of
/// all, so that each is refused by its own.
const CONTENDING_RUNS: usize = 200;
/// The weights of the two, then: the first floods as well.
const WEIGHTS: [u64; 2] = [3, 1];

pub(crate) async fn run(place: &Place) -> Result<()> {
    // Nobody is there: the demo model is asked.
    let setup = Setup::one_host("http://127.0.0.1:9".to_owned()).with("BELLJAR_CONCURRENT_RUNS", PLACES);
    let fleet = Fleet::start(place, setup).await?;
    let host = fleet.hosts[0].started().await?;
    // A rate limit would refuse the flood before any queue does.
    let unlimited = |more: Value| {
        let mut overrides = json!({"requests_per_minute": 100_000_000});
        if let (Some(all), Some(more)) = (overrides.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        overrides
    };
    let (victim, flooder) = (fleet.tenant("victim").await?, fleet.tenant("flooder").await?);
    for tenant in [&victim, &flooder] {
        override_plan(&fleet, tenant, unlimited(json!({"concurrent_runs": CONCURRENT_RUNS}))).await?;
        let agent = json!({"name": "clerk", "system_prompt": "You answer.", "model": "demo"});
        tenant.post("/v1/agents", agent).await?.made()?;
    }
    runs(&victim, 20).await?;

    let (mut quiet, mut loud, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let (mut accepted, mut seen) = (0, Seen::default());
    for _ in 0..ROUNDS {
        quiet.push(runs(&victim, RUNS).await?);
        let flood = Flood::default();
        let under_way = flood.begin(&flooder);
        // Its queue is full.
        tokio::time::sleep(Duration::from_secs(2)).await;
        loud.push(runs(&victim, RUNS).await?);
        seen.look(&fleet, &flooder).await?;
        flood.stop.store(true, Ordering::Relaxed);
        refused.extend(under_way.await?);
        accepted += flood.accepted.load(Ordering::Relaxed);
        drained(&fleet).await?;
    }

    let shares = contention(&fleet, [&flooder, &victim], unlimited).await?;
    stop(host).await?;
    fleet.end().await?;

    let unharmed = unharmed(&mut quiet, &mut loud);
    let (half, most) = (percentile(&mut refused, 50.0), percentile(&mut refused, 99.0));
    let slowest = refused.iter().max().copied().unwrap_or_default();
    println!("{ROUNDS} interleaved rounds of {RUNS} runs, five a second.");
    println!(
        "The flood: {accepted} runs accepted, {} refused; a refusal took p50 {} ms, p99 {} ms, {} ms at most. Its queue held \
         up to {} runs, class {}.",
        refused.len(),
        ms(half),
        ms(most),
        ms(slowest),
        seen.waiting,
        seen.class,
    );
    for (name, share) in ["flooder", "victim"].iter().zip(&shares) {
        println!("Both flood, {name}: {:.3} of the worker-seconds, {:.3} is fair.", share.got, share.fair);
    }
    ensure!(accepted >= FLOOD * ROUNDS, "the flood was no flood: {accepted} runs");
    ensure!(!refused.is_empty(), "nothing was refused: the queue has no end");
    ensure!(most <= REFUSED_WITHIN, "a refusal took {} ms", ms(most));
    ensure!(shares.iter().all(|share| share.got >= SHARE * share.fair), "a share is less than {SHARE} of what is fair");
    unharmed
}

async fn override_plan(fleet: &Fleet, tenant: &Tenant, overrides: Value) -> Result<()> {
    let id = tenant.get("/v1/tenant").await?.made()?["id"].as_str().unwrap_or_default().to_owned();
    let change = fleet.operator().request(Method::PATCH, &format!("/operator/v1/tenants/{id}"));
    Answer::of(change.json(&json!({"overrides": overrides}))).await?.made()?;
    Ok(())
}

async fn runs(tenant: &Tenant, runs: usize) -> Result<Vec<Duration>> {
    paced(runs, PACE, || {
        let tenant = tenant.clone();
        async move {
            let answer = tenant.post("/v1/agents/clerk/chat", json!({"message": "hello"})).await?.made()?;
            ensure!(answer["run"]["status"] == "completed", "the victim's run: {answer}");
            Ok(())
        }
    })
    .await
}

/// What the other tenant does meanwhile: as many runs in the background as are taken.
#[derive(Default, Clone)]
struct Flood {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

impl Flood {
    /// How long each refusal took.
    fn begin(&self, tenant: &Tenant) -> impl Future<Output = Result<Vec<Duration>>> + use<> {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..FLOODERS {
            let (flood, tenant) = (self.clone(), tenant.clone());
            tasks.spawn(async move {
                let mut refused = Vec::new();
                while !flood.stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let body = json!({"message": "hello", "background": true});
                    let answer = tenant.post("/v1/agents/clerk/chat", body).await?;
                    if answer.status == 429 {
                        refused.push(began.elapsed());
                        ensure!(answer.body["code"] == "run.queue_full", "{}", answer.body);
                        tokio::time::sleep(answer.retry_after).await;
                    } else {
                        answer.made()?;
                        flood.accepted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(refused)
            });
        }
        async move {
            let refused: Result<Vec<Vec<Duration>>> = tasks.join_all().await.into_iter().collect();
            Ok(refused?.concat())
        }
    }
}

/// What the operator is told of the flood.
#[derive(Default)]
struct Seen {
    waiting: u64,
    class: String,
}

impl Seen {
    async fn look(&mut self, fleet: &Fleet, flooder: &Tenant) -> Result<()> {
        let queue = queue_of(fleet, flooder).await?;
        self.waiting = self.waiting.max(queue["waiting"].as_u64().unwrap_or_default());
        self.class = queue["class"].as_str().unwrap_or("none").to_owned();
        Ok(())
    }
}

async fn queue_of(fleet: &Fleet, tenant: &Tenant) -> Result<Value> {
    let queues = fleet.operator().get("/operator/v1/queues").await?.made()?;
    let id = tenant.get("/v1/tenant").await?.made()?["id"].clone();
    let found = queues["data"].as_array().into_iter().flatten().find(|queue| queue["tenant"] == id);
    Ok(found.cloned().unwrap_or_default())
}

/// Waits until nothing is queued or driven any more.
async fn drained(fleet: &Fleet) -> Result<()> {
    loop {
        let queues = fleet.operator().get("/operator/v1/queues").await?.made()?;
        if queues["data"].as_array().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Share {
    got: f64,
    fair: f64,
}

/// Both flood, and each could take the whole process: the worker-seconds that each was given.
async fn contention(fleet: &Fleet, tenants: [&Tenant; 2], overrides: impl Fn(Value) -> Value) -> Result<Vec<Share>> {
    for (tenant, weight) in tenants.iter().zip(WEIGHTS) {
        override_plan(fleet, tenant, overrides(json!({"weight": weight, "concurrent_runs": CONTENDING_RUNS}))).await?;
    }
    let flood = Flood::default();
    let under_way = future::try_join_all(tenants.map(|tenant| flood.begin(tenant)));
    // Of the places that were free, whoever came first has taken what it could.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let given = || async {
        let queues = future::try_join_all(tenants.map(|tenant| queue_of(fleet, tenant))).await?;
        anyhow::Ok(
            queues.iter().map(|queue| queue["worker_seconds"].as_f64().unwrap_or_default()).collect::<Vec<f64>>(),
        )
    };
    let before = given().await?;
    tokio::time::sleep(CONTENTION).await;
    let after = given().await?;
    flood.stop.store(true, Ordering::Relaxed);
    under_way.await?;
    drained(fleet).await?;
    let given: Vec<f64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
    let (all, weights): (f64, u64) = (given.iter().sum(), WEIGHTS.iter().sum());
    let share = |(given, weight): (f64, u64)| Share { got: given / all, fair: weight as f64 / weights as f64 };
    Ok(given.into_iter().zip(WEIGHTS).map(share).collect())
}
