//! A real load while hosts and Postgres are killed, and then the books: nothing lost, nothing twice, the bill exact.

mod axe;
mod books;
mod reader;
pub(crate) mod traps;
mod work;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::{
    Place,
    chaos::{
        axe::Axe,
        books::{Books, Complaints},
        traps::Traps,
        work::Work,
    },
    effects::Effects,
    fleet::{Fleet, Setup, stop},
    server::{Tenant, component},
    upstream::{Manner, Upstream},
};

const HOSTS: usize = 2;
/// A run belongs to a host that does not renew for this long.
const LEASE: Duration = Duration::from_secs(15);
/// And is taken over this much later, at most.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Of all operations, in percent: below it, nothing was shown.
const SUCCEED_PERCENT_MIN: f64 = 95.0;
/// Once nobody is killed any more: the longest for all clients to be done.
const REST_MAX: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_secs(1);

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Of hosts.
    pub kills: usize,
    pub postgres_kills: usize,
    /// A named point is passed so often at most, before the host ends at it.
    pub hits: usize,
    /// Customers at once. Most of them wait: for a run whose host has died, until its lease is over.
    pub clients: usize,
}

impl Scale {
    pub const WHOLE: Scale = Scale { kills: 300, postgres_kills: 20, hits: 4, clients: 40 };
    /// Every point once, with a kill at a random time before it.
    pub const SHORT: Scale = Scale { kills: 2 * axe::PLACES, postgres_kills: 1, hits: 1, clients: 12 };

    /// A part of the whole.
    pub fn percent(percent: usize) -> Scale {
        let part = |whole: usize| (whole * percent / 100).max(1);
        let Scale { kills, postgres_kills, .. } = Scale::WHOLE;
        Scale { kills: part(kills), postgres_kills: part(postgres_kills), ..Scale::WHOLE }
    }
}

pub async fn run(place: &Place, scale: Scale) -> Result<()> {
    let Scale { kills, postgres_kills, .. } = scale;
    let traps = Arc::new(Traps::default());
    let effects = Effects::start(Arc::clone(&traps)).await?;
    let manner = Manner { effects: effects.authority(), traps: Arc::clone(&traps) };
    let upstream = Upstream::start(manner).await?;
    let setup = Setup {
        hosts: HOSTS,
        openai_base_url: upstream.base_url(),
        allow_egress: vec![effects.authority()],
        settings: Vec::new(),
    };
    let fleet = Arc::new(Fleet::start(place, setup).await?);
    let first = fleet.hosts[0].started().await?;
    let tenant = fleet.tenant("chaos").await?;
    let has = prepare(place, &tenant, &effects).await?;
    stop(first).await?;

    let began = Instant::now();
    let urls = fleet.hosts.iter().map(crate::fleet::Host::url).collect();
    let work = Arc::new(Work::new(tenant.clone(), urls, effects.authority()));
    let mut clients = JoinSet::new();
    for number in 0..scale.clients {
        clients.spawn(Arc::clone(&work).client(number));
    }
    let late = Arc::new(Mutex::new(Duration::ZERO));

    let axe = Arc::new(Axe::new(Arc::clone(&fleet), Arc::clone(&traps), Arc::clone(&work), scale));
    let mut watch = JoinSet::new();
    watch.spawn(watch_leases(Arc::clone(&axe), fleet.superuser_url().to_owned(), Arc::clone(&late)));
    let children = axe.swing().await?;
    work.stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(REST_MAX, async { while clients.join_next().await.is_some() {} })
        .await
        .context("clients are not done")?;
    let took = began.elapsed();
    all_ended(&fleet).await?;
    watch.shutdown().await;

    let (done, mut complaints) = (work.done(), Complaints::default());
    let books = Books::read(fleet.superuser_url()).await?;
    let book = tenant.get("/v1/price-books/1").await?.made()?;
    let (asked, ledger) = (upstream.asked(), effects.ledger());
    books.check_messages(&done, &mut complaints);
    let total = books.check_bill(&book, &asked, &mut complaints)?;
    let answered = books.check_effects(&done, &ledger, &mut complaints);
    books.check_notes(&mut complaints);
    if has.budgets {
        check_budget(&tenant, &total.normalize().to_string(), &mut complaints).await?;
    }
    let panics: usize =
        fleet.hosts.iter().map(|host| host.log().lines().filter(|line| line.contains("panicked")).count()).sum();
    for child in children {
        stop(child).await?;
    }

    let failed: Vec<&work::Done> = done.iter().filter(|done| done.failure.is_some()).collect();
    let succeeded = 100.0 * (done.len() - failed.len()) as f64 / done.len().max(1) as f64;
    let late = *late.lock().unwrap_or_else(PoisonError::into_inner);
    println!("kills of hosts, by place:");
    for (place, count) in axe.tally() {
        println!("  {count:4}  {place}");
    }
    println!("sent again, because:");
    for (why, count) in work.again() {
        println!("  {count:5}  {why}");
    }
    for one in failed.iter().take(10) {
        println!("failed: {} {:?}: {}", one.op(), one.kind, one.failure.as_deref().unwrap_or_default());
    }
    let unknown = books.calls_that_came_to("outcome_unknown");
    let repeated = ledger.values().filter(|came| came.len() > 1).count();
    println!("| figure | value | bound |\n|---|---|---|");
    println!("| kills of hosts / of Postgres | {} / {postgres_kills} | {kills} / {postgres_kills} |", axe.made());
    println!("| time | {:.0} s | |", took.as_secs_f64());
    println!("| operations | {} | |", done.len());
    println!("| succeeded | {succeeded:.1} % | {SUCCEED_PERCENT_MIN} % |");
    println!(
        "| runs / committed steps / answers asked of the model | {} / {} / {} | |",
        books.runs(),
        books.steps(),
        asked.len()
    );
    println!("| accepted messages lost | {} | 0 |", complaints.count(books::LOST));
    println!("| messages doubled | {} | 0 |", complaints.count(books::DOUBLED));
    println!("| differences of the bill ({}) | {} | 0 |", total.normalize(), complaints.count(books::BILL));
    println!(
        "| effects: {} ({answered} calls answered, {repeated} repeated under their key, {unknown} unknown), wrong | {} | 0 |",
        ledger.len(),
        complaints.count(books::EFFECTS)
    );
    println!("| entries of tools lost or doubled | {} | 0 |", complaints.count(books::STORED));
    println!("| longest past its lease | {:.1} s | {} s |", late.as_secs_f64(), STUCK_AFTER.as_secs());
    println!("| panics | {panics} | 0 |");
    let slowest = axe.slowest_start();
    println!("| slowest start of a host | {:.1} s | |", slowest.as_secs_f64());
    ensure!(complaints.is_empty(), "promises are broken:\n  {}", complaints.shown());
    ensure!(late <= STUCK_AFTER, "a run was stuck {late:?} past its lease of {LEASE:?}");
    let missed = axe.missed();
    // In a short form, a point may not be come by while it is waited for.
    ensure!(kills < 4 * axe::PLACES || missed.is_empty(), "no host was killed {}", missed.join(", nor "));
    ensure!(panics == 0, "hosts panicked {panics} times");
    ensure!(succeeded >= SUCCEED_PERCENT_MIN, "only {succeeded:.1} % of the operations succeeded");
    drop((axe, work));
    Arc::into_inner(fleet).context("the fleet is in use")?.end().await
}

/// What this version of the product has.
struct Has {
    budgets: bool,
}

/// Tools, agents and a budget that is never reached, so that money is held for every step.
async fn prepare(place: &Place, tenant: &Tenant, effects: &Effects) -> Result<Has> {
    // Called without an agent, `calc` would need the approval that `guarded` asks for.
    for (tool, file) in [("calc", "calc"), ("sums", "calc"), ("effects", "http_client"), ("notes", "notes")] {
        tenant.upload(tool, component(place, file)?).await?.made()?;
    }
    let sends = |grant: Value| json!({"tool": "effects", "version": "latest", "grants": {"http": [grant]}});
    let calc = json!({"tool": "calc", "version": "latest"});
    let notes = json!({"tool": "notes", "version": "latest", "grants": "as_requested"});
    let agent = async |name: &str, tools: Value| {
        let body = json!({"name": name, "system_prompt": "", "model": "openai/gpt-4o-mini", "tools": tools});
        tenant.post("/v1/agents", body).await?.made()
    };
    agent("clerk", json!([calc, sends(work::keyed_grant(&effects.authority())), notes])).await?;
    agent("bare", json!([sends(work::bare_grant(&effects.authority()))])).await?;
    agent("guarded", json!([{"tool": "calc", "version": "latest", "approval": "always"}])).await?;
    let budget = json!({
        "scope": "tenant", "subject": "*", "window": "total", "amount": {"amount": "1000000", "currency": "USD"},
    });
    let made = tenant.post("/v1/budgets", budget).await?;
    Ok(Has { budgets: made.made().is_ok() })
}

/// Nothing is held any more, and what is spent is the bill.
async fn check_budget(tenant: &Tenant, total: &str, complaints: &mut Complaints) -> Result<()> {
    let budgets = tenant.get("/v1/budgets").await?.made()?;
    for budget in budgets["data"].as_array().into_iter().flatten() {
        let amount = |field: &str| -> Result<String> {
            let text = budget[field]["amount"].as_str().with_context(|| format!("{field} of a budget"))?;
            Ok(rust_decimal::Decimal::from_str_exact(text)?.normalize().to_string())
        };
        if amount("held")? != "0" || amount("spent")? != total {
            complaints.add(books::BILL, format!("the bill is {total}, and a budget says {budget}"));
        }
    }
    Ok(())
}

/// The longest that a run is past its lease while there is a host that could take it over and a Postgres, looked at every
/// second.
async fn watch_leases(axe: Arc<Axe>, superuser_url: String, longest: Arc<Mutex<Duration>>) {
    let look = async || -> Result<f64, sqlx::Error> {
        let mut database = PgConnection::connect(&superuser_url).await?;
        let late = sqlx::query_scalar(
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - leased_until)), 0)::float8
             FROM belljar.run WHERE status = 'running' AND leased_until < clock_timestamp()",
        );
        let late = late.fetch_one(&mut database).await?;
        database.close().await?;
        Ok(late)
    };
    let mut answers_since = Instant::now();
    loop {
        match look().await {
            Ok(late) => {
                let late = Duration::from_secs_f64(late.max(0.0)).min(axe.up_for()).min(answers_since.elapsed());
                let mut longest = longest.lock().unwrap_or_else(PoisonError::into_inner);
                *longest = late.max(*longest);
            }
            Err(_) => answers_since = Instant::now(),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Nobody is killed any more: what runs ends within a lease and what taking over may take.
async fn all_ended(fleet: &Fleet) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut database = PgConnection::connect(fleet.superuser_url()).await?;
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM belljar.run WHERE status IN ('queued', 'running')")
            .fetch_one(&mut database)
            .await?;
        database.close().await?;
        if left == 0 {
            return Ok(());
        }
        if began.elapsed() > LEASE + STUCK_AFTER {
            bail!("{left} runs have not ended {:?} after the last kill", began.elapsed());
        }
        tokio::time::sleep(LOOK).await;
    }
}
