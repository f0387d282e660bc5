//! A cancellation: how long it takes until the run has ended and that is stored, while its model speaks and while its tool
//! spins.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::{
    Place,
    figures::{ms, percentile},
    fleet::{Fleet, Setup, stop, text},
    server::{Tenant, component},
    upstream::{Manner, Upstream},
};

/// Runs of each kind that are cancelled, one after the other.
const RUNS: usize = 50;
/// From the request to the answer that says `cancelled`.
const WITHIN: Duration = Duration::from_millis(50);
/// Longest wait for a run to be where it is cancelled.
const THERE_MAX: Duration = Duration::from_secs(10);
/// Until a tool that has begun is in its loop.
const MOMENT: Duration = Duration::from_millis(5);
/// What a spinning tool may take: it is cancelled long before.
const SPINS_MS: u64 = 30_000;

pub(crate) async fn run(place: &Place) -> Result<()> {
    let upstream = Upstream::start(Manner::default()).await?;
    let setup = Setup::one_host(upstream.base_url());
    let fleet = Fleet::start(place, setup).await?;
    let host = fleet.hosts[0].started().await?;
    let tenant = fleet.tenant("canceller").await?;
    tenant.upload("spin", component(place, "spin")?).await?.made()?;
    let limits = json!({"fuel": 50_000_000_000_u64, "deadline_ms": SPINS_MS});
    let tools = json!([{"tool": "spin", "version": "latest", "limits": limits}]);
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "openai/gpt-4o-mini", "tools": tools});
    tenant.post("/v1/agents", agent).await?.made()?;

    let mut slowest = Duration::ZERO;
    println!("| cancelled while | p50 ms | p99 ms | most ms |\n|---|---|---|---|");
    for (what, sign, shown) in
        [("hang", "message.delta", "the model speaks"), ("spin", "tool_call.started", "a tool spins")]
    {
        let mut took = Vec::with_capacity(RUNS);
        for number in 0..RUNS {
            let body = json!({"message": format!("op-{number} {what}"), "background": true});
            let run = text(&tenant.post("/v1/agents/clerk/chat", body).await?.made()?["run"], "id");
            there(&tenant, &run, sign).await?;
            let began = Instant::now();
            let ended = tenant.post(&format!("/v1/runs/{run}/cancel"), json!({})).await?.made()?;
            took.push(began.elapsed());
            ensure!(ended["status"] == "cancelled", "a run that was cancelled: {ended}");
        }
        let most = took.iter().max().copied().unwrap_or_default();
        println!(
            "| {shown} | {} | {} | {} |",
            ms(percentile(&mut took, 50.0)),
            ms(percentile(&mut took, 99.0)),
            ms(most)
        );
        slowest = slowest.max(most);
    }
    stop(host).await?;
    fleet.end().await?;
    ensure!(slowest <= WITHIN, "a cancellation took {} ms, more than {}", ms(slowest), WITHIN.as_millis());
    Ok(())
}

/// Waits until an event of this kind was told of the run.
async fn there(tenant: &Tenant, run: &str, sign: &str) -> Result<()> {
    let request = tenant.request(reqwest::Method::GET, &format!("/v1/runs/{run}/events"));
    let mut response = request.timeout(THERE_MAX).send().await?;
    let mut told = String::new();
    while let Some(bytes) = response.chunk().await? {
        told.push_str(&String::from_utf8_lossy(&bytes));
        if told.contains(&format!("event: {sign}")) {
            // What was told has begun; a tool is given a moment to be in its loop.
            tokio::time::sleep(MOMENT).await;
            return Ok(());
        }
    }
    bail!("the run has ended before `{sign}`: {told}")
}
