//! Hostile calls and hostile uploads in a loop, and what they leave of the host: nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::{
    Place,
    figures::Chance,
    process::{Watch, held},
    server::{Server, Tenant, component, components},
};

const CALLS: usize = 10_000;
const UPLOADS: usize = 500;
/// Calls in flight, and the memory each may have.
const CALLS_AT_ONCE: usize = 16;
const MEMORY_BYTES: u64 = 64 << 20;
const DEADLINE_MS: u64 = 500;
/// Past the deadline, a call has to have ended after this.
const GRACE: Duration = Duration::from_millis(250);
const UPLOADS_AT_ONCE: usize = 4;
/// Sets of grants that each function is called with.
const GRANTS: usize = 4;
/// Uploads that are compile bombs: each takes the child's whole allowance.
const BOMBS: usize = 10;
/// Beyond the memory of its guests: what a call may cost the host, and what the host may keep.
const PER_CALL_BYTES: u64 = 16 << 20;
const SLACK_BYTES: u64 = 128 << 20;
const LEFT_BYTES: u64 = 64 << 20;
/// How long the host has to come back to its size.
const REST: Duration = Duration::from_secs(60);
/// Descriptors and threads that may be more afterwards: connections of the pool, a thread that still idles.
const LEFT_OVER: u64 = 16;

/// A function to be called, with arguments that fit its schema.
struct Target {
    tool: String,
    function: String,
    arguments: Value,
}

#[derive(Default)]
struct Seen {
    outcomes: Mutex<BTreeMap<String, usize>>,
    late: Mutex<Vec<String>>,
    longest: Mutex<Duration>,
}

/// `percent` of the whole, for a short form.
pub(crate) async fn run(place: &Place, percent: usize) -> Result<()> {
    let (calls, uploads) = ((CALLS * percent / 100).max(1), (UPLOADS * percent / 100).max(1));
    let server = Server::start(place, &[]).await?;
    let pid = server.pid()?;
    let mallory = server.tenant("mallory").await?;
    let targets = Arc::new(targets(place, &mallory).await?);
    println!("{} functions of hostile tools; {calls} calls, {uploads} uploads", targets.len());

    // Everything once, so that the baseline has what stays mapped: code, connections, threads, the pool's warm memories.
    let warm = Arc::new(Seen::default());
    call_all(&mallory, &targets, targets.len() * GRANTS, &warm).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let baseline = held(pid)?;
    let watch = Watch::start(pid);
    let seen = Arc::new(Seen::default());
    let began = Instant::now();
    let eve = server.tenant("eve").await?;
    let (called, uploaded) =
        tokio::join!(call_all(&mallory, &targets, calls, &seen), upload_all(place, &eve, uploads, &seen));
    called?;
    let accepted = uploaded?;
    let took = began.elapsed();
    let peak = watch.peak_rss_bytes();

    let rested = Instant::now();
    let fits = |now: crate::process::Held| {
        now.rss_bytes <= baseline.rss_bytes + LEFT_BYTES
            && now.descriptors <= baseline.descriptors + LEFT_OVER
            && now.threads <= baseline.threads + LEFT_OVER
    };
    let after = loop {
        let now = held(pid)?;
        if fits(now) || rested.elapsed() > REST {
            break now;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let log = server.log()?;
    let panics = log.lines().filter(|line| line.contains("panicked")).count();
    // The host still works.
    let clean = server.tenant("clean").await?;
    clean.upload("calc", component(place, "calc")?).await?.made()?;
    let answer =
        clean.call("calc", json!({"function": "evaluate", "arguments": {"expression": "6 * 7"}})).await?.made()?;
    ensure!(answer["outcome"]["status"] == "ok", "after all this: {answer}");
    server.stop().await?;

    let bound = baseline.rss_bytes + CALLS_AT_ONCE as u64 * (MEMORY_BYTES + PER_CALL_BYTES) + SLACK_BYTES;
    let mib = |bytes: u64| bytes >> 20;
    println!("outcomes:");
    for (outcome, count) in seen.outcomes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("  {count:6}  {outcome}");
    }
    let late = seen.late.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let longest = *seen.longest.lock().unwrap_or_else(PoisonError::into_inner);
    println!("| figure | value | bound |\n|---|---|---|");
    println!("| time | {:.0} s | |", took.as_secs_f64());
    println!("| uploads accepted of {uploads} | {accepted} | |");
    println!("| panics | {panics} | 0 |");
    println!("| calls over deadline + {} ms | {} | 0 |", GRACE.as_millis(), late.len());
    println!("| longest call | {} ms | {} |", longest.as_millis(), DEADLINE_MS + GRACE.as_millis() as u64);
    println!(
        "| RSS baseline / peak / after | {} / {} / {} MiB | peak {} MiB, after {} MiB |",
        mib(baseline.rss_bytes),
        mib(peak),
        mib(after.rss_bytes),
        mib(bound),
        mib(baseline.rss_bytes + LEFT_BYTES)
    );
    println!("| descriptors before / after | {} / {} | +{LEFT_OVER} |", baseline.descriptors, after.descriptors);
    println!("| threads before / after | {} / {} | +{LEFT_OVER} |", baseline.threads, after.threads);
    println!("| seconds until back | {:.0} | {} |", rested.elapsed().as_secs_f64(), REST.as_secs());
    ensure!(panics == 0, "the host panicked {panics} times");
    ensure!(late.is_empty(), "late: {}", late.join(", "));
    ensure!(peak <= bound, "the host grew to {} MiB", mib(peak));
    ensure!(fits(after), "the host did not come back: {after:?}, baseline {baseline:?}");
    Ok(())
}

/// Uploads every component; each of its functions becomes a target.
async fn targets(place: &Place, tenant: &Tenant) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (name, bytes) in components(place)? {
        let tool = format!("t-{}", name.to_lowercase().replace(['_', '.'], "-"));
        let tool: String = tool.chars().take(30).collect();
        let answer = tenant.upload(&tool, bytes).await?;
        for function in answer.body["functions"].as_array().into_iter().flatten() {
            targets.push(Target {
                tool: tool.clone(),
                function: function["name"].as_str().unwrap_or_default().into(),
                arguments: filled(&function["input_schema"]),
            });
        }
    }
    ensure!(targets.len() > 20, "only {} functions: build the guests", targets.len());
    Ok(targets)
}

/// Something that fits a simple schema.
fn filled(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Value::Object(
                required.map(|name| (name.into(), filled(&schema["properties"][name]))).collect::<Map<_, _>>(),
            )
        }
        Some("array") => json!([]),
        Some("integer") => json!(schema["minimum"].as_i64().unwrap_or(1_000)),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        _ => json!("x"),
    }
}

async fn call_all(tenant: &Tenant, targets: &Arc<Vec<Target>>, calls: usize, seen: &Arc<Seen>) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CALLS_AT_ONCE {
        let (tenant, targets, next, seen) = (tenant.clone(), Arc::clone(targets), Arc::clone(&next), Arc::clone(seen));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= calls {
                    return anyhow::Ok(());
                }
                let target = &targets[n % targets.len()];
                let body = json!({
                    "function": target.function,
                    "arguments": target.arguments,
                    "grants": grants(n / targets.len()),
                    "limits": {"deadline_ms": DEADLINE_MS, "memory_bytes": MEMORY_BYTES},
                    "external_user_id": "eve",
                });
                let answer = tenant.call(&target.tool, body).await.context("the host does not answer")?;
                seen.note(target, &answer.body, answer.status);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// None, all, or some: `GRANTS` different ones.
fn grants(round: usize) -> Value {
    let key_value = json!([{"namespace": "torture/{external_user_id}", "access": "write"}]);
    let http = json!([{"host": "127.0.0.1:9", "plain_http": true, "methods": ["GET", "POST", "PUT"]},
                      {"host": "*.example.com"}]);
    match round % GRANTS {
        0 => json!({}),
        1 => json!({"key_value": key_value, "http": http, "scratch_bytes": 1 << 20, "config": {"a": "b"}}),
        2 => json!({"key_value": key_value}),
        _ => json!({"scratch_bytes": 1 << 16, "http": http}),
    }
}

impl Seen {
    fn note(&self, target: &Target, body: &Value, status: u16) {
        let outcome = &body["outcome"];
        let name = match outcome["status"].as_str() {
            Some(status) => format!("{status} {}", outcome["code"].as_str().unwrap_or("")),
            None => format!("HTTP {status} {}", body["code"].as_str().unwrap_or("")),
        };
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        let took = Duration::from_micros(body["receipt"]["total_us"].as_u64().unwrap_or(0));
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = took.max(*longest);
        if took > Duration::from_millis(DEADLINE_MS) + GRACE {
            let words = format!("{}/{} {} ms", target.tool, target.function, took.as_millis());
            self.late.lock().unwrap_or_else(PoisonError::into_inner).push(words);
        }
    }
}

/// Uploads damaged and hostile components; how many were accepted.
async fn upload_all(place: &Place, tenant: &Tenant, uploads: usize, seen: &Arc<Seen>) -> Result<usize> {
    let good: Arc<Vec<Vec<u8>>> = Arc::new(
        components(place)?.into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes.len() < 1 << 20).collect(),
    );
    let (next, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..UPLOADS_AT_ONCE {
        let (tenant, good, next, accepted, seen) =
            (tenant.clone(), Arc::clone(&good), Arc::clone(&next), Arc::clone(&accepted), Arc::clone(seen));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= uploads {
                    return anyhow::Ok(());
                }
                let bytes = hostile(n, uploads, &good);
                let answer =
                    tenant.upload(&format!("u-{}", n % 50), bytes).await.context("the host does not answer")?;
                if (200..300).contains(&answer.status) {
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
                let code = answer.body["code"].as_str().unwrap_or("");
                let name = format!("upload {} {code}", answer.status);
                *seen.outcomes.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
                ensure!(
                    answer.status < 500 || answer.status == 503,
                    "an upload was answered with {}: {}",
                    answer.status,
                    answer.body
                );
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(accepted.load(Ordering::Relaxed))
}

/// The n-th hostile upload: a bomb, noise, or a good component that is cut, spliced or flipped.
fn hostile(n: usize, all: usize, good: &[Vec<u8>]) -> Vec<u8> {
    if n.is_multiple_of((all / BOMBS).max(1)) {
        return kit::compile_bomb(n as u32);
    }
    let mut chance = Chance::new(n as u64);
    let mut bytes = good[chance.below(good.len())].clone();
    match n % 5 {
        0 => bytes.truncate(chance.below(bytes.len())),
        1 => (0..200 + chance.below(2_000)).map(|_| chance.below(256) as u8).collect::<Vec<_>>().clone_into(&mut bytes),
        2 => {
            let other = &good[chance.below(good.len())];
            bytes.truncate(chance.below(bytes.len()));
            bytes.extend_from_slice(&other[chance.below(other.len())..]);
        }
        _ => {
            for _ in 0..1 + chance.below(16) {
                let at = chance.below(bytes.len());
                bytes[at] ^= 1 << chance.below(8);
            }
        }
    }
    bytes
}
