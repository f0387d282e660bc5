//! A quiet tenant's tool calls beside a loud one, over HTTP: alone, and beside 64 spinning calls and 20 compile bombs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    Place,
    figures::{paced, unharmed},
    server::{Server, Tenant, component},
};

const ROUNDS: usize = 5;
/// The victim's calls in a round, one every `PACE`.
const CALLS: usize = 400;
const PACE: Duration = Duration::from_millis(20);
const SPINNERS: usize = 64;
const BOMBS: usize = 20;
/// Between two tries of an attacker who was told to come back later.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn run(place: &Place) -> Result<()> {
    let server = Server::start(place, &[]).await?;
    let (victim, attacker) = (server.tenant("victim").await?, server.tenant("attacker").await?);
    victim.upload("calc", component(place, "calc")?).await?.made()?;
    attacker.upload("spin", component(place, "spin")?).await?.made()?;
    calls(&victim, 100).await?;

    let (mut quiet, mut loud) = (Vec::new(), Vec::new());
    // Made beforehand: making one takes as long as a call may.
    let attack =
        Attack { components: Arc::new((0..BOMBS as u32).map(kit::compile_bomb).collect()), ..Attack::default() };
    for _ in 0..ROUNDS {
        quiet.push(calls(&victim, CALLS).await?);
        let under_way = attack.begin(&attacker);
        // The spinners are in their places, and the first bomb compiles.
        tokio::time::sleep(Duration::from_secs(2)).await;
        loud.push(calls(&victim, CALLS).await?);
        attack.stop.store(true, Ordering::Relaxed);
        under_way.await?;
        attack.stop.store(false, Ordering::Relaxed);
    }
    server.stop().await?;

    let (spins, bombs) = (attack.spins.load(Ordering::Relaxed), attack.bombs.load(Ordering::Relaxed));
    println!("{ROUNDS} interleaved rounds of {CALLS} calls; {spins} spinning calls and {bombs} bombs ended meanwhile.");
    unharmed(&mut quiet, &mut loud)
}

async fn calls(victim: &Tenant, calls: usize) -> Result<Vec<Duration>> {
    paced(calls, PACE, || {
        let victim = victim.clone();
        async move {
            let body = json!({"function": "evaluate", "arguments": {"expression": "(19.99 * 3 - 5) / 4"}});
            let answer = victim.call("calc", body).await?.made()?;
            ensure!(answer["outcome"]["status"] == "ok", "the victim's call: {answer}");
            Ok(())
        }
    })
    .await
}

/// What the other tenant does meanwhile.
#[derive(Default, Clone)]
struct Attack {
    stop: Arc<AtomicBool>,
    spins: Arc<AtomicUsize>,
    bombs: Arc<AtomicUsize>,
    components: Arc<Vec<Vec<u8>>>,
}

impl Attack {
    fn begin(&self, attacker: &Tenant) -> impl Future<Output = Result<()>> + use<> {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..SPINNERS {
            let (attack, attacker) = (self.clone(), attacker.clone());
            tasks.spawn(async move {
                while !attack.stop.load(Ordering::Relaxed) {
                    // As long as a plan allows.
                    let limits = json!({"deadline_ms": 2_000, "fuel": 100_000_000_000_u64});
                    // Whether it is refused or ends at its deadline: it is tried again.
                    let answer = attacker.call("spin", json!({"function": "run", "limits": limits})).await?;
                    attack.spins.fetch_add(1, Ordering::Relaxed);
                    if answer.status != 200 {
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                }
                anyhow::Ok(())
            });
        }
        for bomb in 0..BOMBS {
            let (attack, attacker) = (self.clone(), attacker.clone());
            tasks.spawn(async move {
                while !attack.stop.load(Ordering::Relaxed) {
                    attack.bombs.fetch_add(1, Ordering::Relaxed);
                    let tool = format!("bomb-{bomb}");
                    let upload = attacker.upload(&tool, attack.components[bomb].clone());
                    tokio::select! {
                        answer = upload => {
                            if answer?.status != 422 {
                                tokio::time::sleep(REFUSED_PAUSE).await;
                            }
                        }
                        () = attack.stopped() => {}
                    }
                }
                anyhow::Ok(())
            });
        }
        async move {
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        }
    }

    async fn stopped(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
