//! A durable turn with one tool call, everything on this machine: alone against its commits, and as many as there is
//! room for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::{
    Place,
    figures::{median, ms, percentile},
    fleet::{Fleet, Setup, stop},
    machine,
    process::{cpu, cpu_with_children},
    server::{Tenant, component},
    upstream::{Manner, Upstream},
};

const ROUNDS: usize = 7;
/// Turns before anything is measured, and by how many clients.
const WARM: usize = 2_000;
const WARM_CLIENTS: usize = 16;
/// Turns of a round, one after the other.
const TURNS: usize = 200;
/// Clients of a round that send as fast as they are answered, and for how long.
const CROWDS: [usize; 4] = [8, 16, 32, 64];
const CROWD_TIME: Duration = Duration::from_secs(3);
/// Postgres tells its counters at the latest so long after the last change.
const COUNTERS_LAG: Duration = Duration::from_secs(11);
/// What a turn may take beyond its commits, when it is alone.
const BEYOND_COMMITS: Duration = Duration::from_millis(2);
const TURNS_PER_SECOND_GOAL: f64 = 500.0;

/// Everything that is counted up.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    host: Duration,
    postgres: Duration,
    ours: Duration,
    /// Transactions that wrote.
    writes: u64,
    /// All transactions.
    transactions: u64,
    flushes: u64,
}

struct Counters {
    host: u32,
    postmaster: u32,
    superuser_url: String,
}

pub(crate) async fn run(place: &Place, percent: usize) -> Result<()> {
    let rounds = (ROUNDS * percent / 100).max(1);
    let upstream = Upstream::start(Manner::default()).await?;
    let setup = Setup::one_host(upstream.base_url());
    let fleet = Fleet::start(place, setup).await?;
    let host = fleet.hosts[0].started().await?;
    let (postmaster, data) = fleet.postgres()?;
    let counters = Counters {
        host: host.id().context("the host has ended")?,
        postmaster: postmaster.cast_unsigned(),
        superuser_url: fleet.superuser_url().to_owned(),
    };
    let tenant = fleet.tenant("turns").await?;
    tenant.upload("calc", component(place, "calc")?).await?.made()?;
    let tools = json!([{"tool": "calc", "version": "latest"}]);
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "openai/gpt-4o-mini", "tools": tools});
    tenant.post("/v1/agents", agent).await?.made()?;
    let next = Arc::new(AtomicU64::new(1));
    warm(&tenant, &next).await?;
    // As Postgres does by itself within a minute: plans that were made for empty tables are made anew.
    machine::analyze(fleet.superuser_url()).await?;
    warm(&tenant, &next).await?;

    let counts = counted(&counters, &tenant, &next).await?;
    let (mut alone, mut disks, mut commits, mut burners) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut crowds = CROWDS.map(|clients| Crowd {
        clients,
        rates: Vec::new(),
        rounds: Vec::new(),
        took: Counted::default(),
        turns: 0,
    });
    for _ in 0..rounds {
        disks.push(machine::fdatasync(&data)?);
        commits.push(machine::commit(fleet.superuser_url()).await?);
        alone.push(one_after_the_other(&tenant, &next, TURNS).await?);
        for crowd in &mut crowds {
            crowd.round(&counters, &tenant, &next).await?;
        }
        burners.push(machine::two_burners());
    }
    stop(host).await?;
    fleet.end().await?;
    drop(upstream);

    let disk = median(&mut disks);
    let bound = disk * (counts.writes_per_turn.round() as u32) + BEYOND_COMMITS;
    let mut at = |percent| median(&mut alone.iter_mut().map(|round| percentile(round, percent)).collect::<Vec<_>>());
    let (p50, p99) = (at(50.0), at(99.0));
    println!(
        "{rounds} interleaved rounds, medians of rounds; {TURNS} turns alone, {} s for each crowd",
        CROWD_TIME.as_secs()
    );
    println!("| of this machine | |\n|---|---|");
    println!("| fdatasync of 8 kB | {} ms |", ms(disk));
    println!("| a commit of one row | {} ms |", ms(median(&mut commits)));
    burners.sort_by(f64::total_cmp);
    println!("| two burners do, of one | {:.2} |", burners[burners.len() / 2]);
    println!("\n| a turn alone | |\n|---|---|");
    println!("| p50 / p99 | {} / {} ms |", ms(p50), ms(p99));
    println!("| bound of p50: commits x fdatasync + {} ms | {} ms |", BEYOND_COMMITS.as_millis(), ms(bound));
    println!("| transactions that write | {:.2} |", counts.writes_per_turn);
    println!("| transactions in all | {:.2} |", counts.transactions_per_turn);
    println!("| flushes of the log of writes | {:.2} |", counts.flushes_per_turn);
    println!(
        "\n| clients | turns/s | p50 ms | p99 ms | CPU ms a turn: host | Postgres | this program |\n|---|---|---|---|---|---|---|"
    );
    let best = crowds.iter_mut().map(Crowd::line).fold(0.0, f64::max);
    ensure!(p50 <= bound, "alone a turn takes {} ms, more than {} ms", ms(p50), ms(bound));
    ensure!(best >= TURNS_PER_SECOND_GOAL, "at most {best:.0} turns/s, less than {TURNS_PER_SECOND_GOAL}");
    Ok(())
}

struct Crowd {
    clients: usize,
    rates: Vec<f64>,
    rounds: Vec<Vec<Duration>>,
    took: Counted,
    turns: usize,
}

impl Crowd {
    async fn round(&mut self, counters: &Counters, tenant: &Tenant, next: &Arc<AtomicU64>) -> Result<()> {
        let (before, began) = (counters.processors()?, Instant::now());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..self.clients {
            let (tenant, next) = (tenant.clone(), Arc::clone(next));
            tasks.spawn(async move {
                let mut took = Vec::new();
                while began.elapsed() < CROWD_TIME {
                    took.push(turn(&tenant, &next).await?);
                }
                anyhow::Ok(took)
            });
        }
        let mut round = Vec::new();
        while let Some(took) = tasks.join_next().await {
            round.extend(took??);
        }
        self.rates.push(round.len() as f64 / began.elapsed().as_secs_f64());
        let after = counters.processors()?;
        self.took.host += after.host - before.host;
        self.took.postgres += after.postgres - before.postgres;
        self.took.ours += after.ours - before.ours;
        self.turns += round.len();
        self.rounds.push(round);
        Ok(())
    }

    /// Prints it; answers the median of turns a second.
    fn line(&mut self) -> f64 {
        let mut at =
            |percent| median(&mut self.rounds.iter_mut().map(|round| percentile(round, percent)).collect::<Vec<_>>());
        let (p50, p99) = (at(50.0), at(99.0));
        self.rates.sort_by(f64::total_cmp);
        let rate = self.rates[self.rates.len() / 2];
        let each = |time: Duration| time.as_secs_f64() * 1e3 / self.turns.max(1) as f64;
        let Counted { host, postgres, ours, .. } = self.took;
        println!(
            "| {} | {rate:.0} | {} | {} | {:.2} | {:.2} | {:.2} |",
            self.clients,
            ms(p50),
            ms(p99),
            each(host),
            each(postgres),
            each(ours),
        );
        rate
    }
}

struct PerTurn {
    writes_per_turn: f64,
    transactions_per_turn: f64,
    flushes_per_turn: f64,
}

/// What one turn costs in transactions, with what the host does by itself taken out.
async fn counted(counters: &Counters, tenant: &Tenant, next: &Arc<AtomicU64>) -> Result<PerTurn> {
    tokio::time::sleep(COUNTERS_LAG).await;
    let (idle, began) = (counters.read().await?, Instant::now());
    tokio::time::sleep(COUNTERS_LAG).await;
    let (before, idled) = (counters.read().await?, began.elapsed());
    let began = Instant::now();
    one_after_the_other(tenant, next, TURNS).await?;
    tokio::time::sleep(COUNTERS_LAG).await;
    let (after, took) = (counters.read().await?, began.elapsed());
    let per_turn = |count: fn(&Counted) -> u64| {
        let by_itself = (count(&before) - count(&idle)) as f64 * took.as_secs_f64() / idled.as_secs_f64();
        ((count(&after) - count(&before)) as f64 - by_itself).max(0.0) / TURNS as f64
    };
    Ok(PerTurn {
        writes_per_turn: per_turn(|counted| counted.writes),
        transactions_per_turn: per_turn(|counted| counted.transactions),
        flushes_per_turn: per_turn(|counted| counted.flushes),
    })
}

impl Counters {
    fn processors(&self) -> Result<Counted> {
        Ok(Counted {
            host: cpu(self.host)?,
            postgres: cpu_with_children(self.postmaster)?,
            ours: cpu(std::process::id())?,
            ..Counted::default()
        })
    }

    async fn read(&self) -> Result<Counted> {
        let mut database = PgConnection::connect(&self.superuser_url).await?;
        // Each transaction that writes takes the next number.
        let (writes, transactions, flushes): (i64, i64, i64) = sqlx::query_as(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
                    (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
                    (SELECT wal_sync FROM pg_stat_wal)",
        )
        .fetch_one(&mut database)
        .await?;
        database.close().await?;
        let count = i64::cast_unsigned;
        let (writes, transactions, flushes) = (count(writes), count(transactions), count(flushes));
        Ok(Counted { writes, transactions, flushes, ..self.processors()? })
    }
}

async fn warm(tenant: &Tenant, next: &Arc<AtomicU64>) -> Result<()> {
    let clients = (0..WARM_CLIENTS).map(|_| one_after_the_other(tenant, next, WARM / WARM_CLIENTS));
    futures::future::try_join_all(clients).await?;
    Ok(())
}

async fn one_after_the_other(tenant: &Tenant, next: &AtomicU64, turns: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(turns);
    for _ in 0..turns {
        took.push(turn(tenant, next).await?);
    }
    Ok(took)
}

/// A message, a call, its result, an answer: in a conversation of its own.
async fn turn(tenant: &Tenant, next: &AtomicU64) -> Result<Duration> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    let body = json!({"message": format!("op-{number} calc")});
    let began = Instant::now();
    let answer = tenant.post("/v1/agents/clerk/chat", body).await?;
    let took = began.elapsed();
    let said = answer.made()?;
    let content = said["message"]["content"].as_str().unwrap_or_default();
    ensure!(content.contains(&(number + 1).to_string()), "a turn came to {said}");
    Ok(took)
}
