//! Ends hosts as `kill -9` does: where they were told to end themselves, where the world outside noticed them, and at
//! random. And Postgres. One host after the other: the rest goes on.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use agent_runtime::fault::POINTS;
use anyhow::{Result, ensure};
use sqlx::{Connection, PgConnection};
use tokio::process::Child;

use crate::{
    chaos::{
        Scale,
        traps::{At, Traps},
        work::Work,
    },
    figures::Chance,
    fleet::{Fleet, kill},
};

/// All points, inside and outside.
pub(crate) const PLACES: usize = POINTS.len() + At::ALL.len();
/// A point that was not reached by then is not waited for.
const POINT_WAIT_MAX: Duration = Duration::from_secs(10);
/// The point that comes only when the lease of a dead host is over. All hosts but one are down for it.
const CLAIMED: &str = "run.claimed";
const CLAIMED_WAIT_MAX: Duration = Duration::from_secs(25);
/// Points that few operations come to: a host ends at the first.
const RARE: [&str; 2] = [CLAIMED, "decision.committed"];
/// Operations that are done between two turns of the axe: it must be possible to get something done.
const WORK_BETWEEN: usize = 8;
const WORK_WAIT_MAX: Duration = Duration::from_secs(30);
/// And then a random time until the kill.
const CHANCE_MS: usize = 700;
/// Turns between two lines of progress.
const TURNS_TOLD: usize = 15;
const START_MAX: Duration = Duration::from_secs(60);
/// Signal 9.
const KILLED: i32 = 9;
const POLL: Duration = Duration::from_millis(100);

pub(crate) struct Axe {
    fleet: Arc<Fleet>,
    traps: Arc<Traps>,
    work: Arc<Work>,
    scale: Scale,
    made: AtomicUsize,
    /// By where it happened.
    tally: Mutex<BTreeMap<String, usize>>,
    slowest_start: Mutex<Duration>,
    /// Since when there is always a host that is ready. `None`: there is none now.
    up: Mutex<Option<Instant>>,
}

enum Place {
    Inside(&'static str, usize),
    Outside(At),
}

impl Axe {
    pub(crate) fn new(fleet: Arc<Fleet>, traps: Arc<Traps>, work: Arc<Work>, scale: Scale) -> Axe {
        let (made, tally, slowest_start) = (AtomicUsize::default(), Mutex::default(), Mutex::default());
        Axe { fleet, traps, work, scale, made, tally, slowest_start, up: Mutex::default() }
    }

    /// For how long somebody was there all the time who could have taken over a run.
    pub(crate) fn up_for(&self) -> Duration {
        self.up().map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn up(&self) -> MutexGuard<'_, Option<Instant>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked after each end of a host.
    fn look_who_is_left(&self, hosts: &mut [Child]) {
        if hosts.iter_mut().all(|host| host.try_wait().is_ok_and(|ended| ended.is_some())) {
            *self.up() = None;
        }
    }

    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    pub(crate) fn tally(&self) -> BTreeMap<String, usize> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn slowest_start(&self) -> Duration {
        *self.slowest_start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The points at which nobody was killed.
    pub(crate) fn missed(&self) -> Vec<String> {
        let tally = self.tally();
        let inside = POINTS.iter().map(|point| inside(point));
        let all = inside.chain(At::ALL.iter().map(|at| at.name().to_owned()));
        all.filter(|place| !tally.contains_key(place)).collect()
    }

    /// Starts all hosts, ends one and then another until enough was ended, and leaves all running.
    pub(crate) async fn swing(&self) -> Result<Vec<Child>> {
        let mut hosts = Vec::new();
        for number in 0..self.fleet.hosts.len() {
            hosts.push(self.start(number, None).await?.0);
        }
        let mut postgres_kills = 0;
        for turn in 0.. {
            self.some_work().await;
            if self.made() >= self.scale.kills {
                break;
            }
            if self.made() * (self.scale.postgres_kills + 1) >= self.scale.kills * (postgres_kills + 1) {
                match postgres_kills % 2 {
                    0 => self.fleet.crash_postgres().await?,
                    _ => self.crash_backend().await?,
                }
                *self.up() = Some(Instant::now());
                postgres_kills += 1;
                continue;
            }
            if turn % TURNS_TOLD == 0 {
                println!("{} kills, {} operations", self.made(), self.work.done().len());
            }
            self.turn(turn, &mut hosts).await?;
            for host in &mut hosts {
                let ended = host.try_wait()?;
                ensure!(ended.is_none(), "a host ended by itself: {ended:?}");
            }
        }
        Ok(hosts)
    }

    /// One host is ended at a random time, and where it is told to when it has been started again.
    async fn turn(&self, turn: usize, hosts: &mut [Child]) -> Result<()> {
        let mut chance = Chance::new(turn as u64);
        let victim = turn % hosts.len();
        tokio::time::sleep(Duration::from_millis(chance.below(CHANCE_MS) as u64)).await;
        end(&mut hosts[victim]).await?;
        self.count("at a random time".to_owned());
        let hit = if self.scale.hits > 1 { 1 + chance.below(self.scale.hits) } else { 1 };
        let place = place(turn, hit);
        let fault = match &place {
            Place::Inside(point, hit) => Some(format!("{point}:{hit}")),
            Place::Outside(_) => None,
        };
        if matches!(place, Place::Inside(CLAIMED, _)) {
            for (_, host) in hosts.iter_mut().enumerate().filter(|(number, _)| *number != victim) {
                end(host).await?;
                self.count("together with another host".to_owned());
            }
        }
        self.look_who_is_left(hosts);
        let (child, ended) = self.start(victim, fault.as_deref()).await?;
        hosts[victim] = child;
        match ended {
            Some(status) => self.itself(status, &place)?,
            None => self.wait(victim, hosts, &place).await?,
        }
        self.traps.clear(victim);
        self.look_who_is_left(hosts);
        for (number, host) in hosts.iter_mut().enumerate() {
            if host.try_wait()?.is_some() {
                *host = self.start(number, None).await?.0;
            }
        }
        Ok(())
    }

    /// Waits until a host is where it is to be ended, and ends it.
    async fn wait(&self, victim: usize, hosts: &mut [Child], place: &Place) -> Result<()> {
        let trap = match place {
            Place::Outside(at) => Some((*at, self.traps.set(*at, victim))),
            Place::Inside(..) => None,
        };
        let limit = match place {
            Place::Inside(CLAIMED, _) => CLAIMED_WAIT_MAX,
            _ => POINT_WAIT_MAX,
        };
        let sprung = async {
            let (at, trap) = trap?;
            Some((at, trap.await.ok()?))
        };
        tokio::select! {
            status = hosts[victim].wait() => return self.itself(status?, place),
            Some((at, sprung)) = sprung => {
                end(&mut hosts[victim]).await?;
                self.count(at.name().to_owned());
                if matches!(at, At::EffectReceived | At::EffectAnswered) {
                    // An effect does not say whose it is.
                    for (_, host) in hosts.iter_mut().enumerate().filter(|(number, _)| *number != victim) {
                        end(host).await?;
                        self.count("together with another host".to_owned());
                    }
                }
                drop(sprung);
                return Ok(());
            }
            () = tokio::time::sleep(limit) => {}
        }
        end(&mut hosts[victim]).await?;
        self.count("at a random time: its point was not reached".to_owned());
        Ok(())
    }

    /// A host has ended before anybody ended it.
    fn itself(&self, status: ExitStatus, place: &Place) -> Result<()> {
        let Place::Inside(point, _) = place else { anyhow::bail!("a host ended by itself: {status}") };
        ensure!(status.signal() == Some(KILLED), "a host ended by itself: {status}");
        self.count(inside(point));
        Ok(())
    }

    fn count(&self, place: String) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default() += 1;
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// Starts a host until it is ready, or has ended at its fault before. While Postgres is away it ends by itself.
    async fn start(&self, number: usize, fault: Option<&str>) -> Result<(Child, Option<ExitStatus>)> {
        let (host, began) = (&self.fleet.hosts[number], Instant::now());
        loop {
            let mut child = host.start(fault)?;
            if host.ready(&mut child).await? {
                let mut slowest = self.slowest_start.lock().unwrap_or_else(PoisonError::into_inner);
                *slowest = began.elapsed().max(*slowest);
                self.up().get_or_insert_with(Instant::now);
                return Ok((child, None));
            }
            let status = child.wait().await?;
            if fault.is_some() && status.signal() == Some(KILLED) {
                return Ok((child, Some(status)));
            }
            ensure!(began.elapsed() < START_MAX, "a host does not start: {status}\n{}", host.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until some operations were done.
    async fn some_work(&self) {
        let (began, before) = (Instant::now(), self.work.done().len());
        while self.work.done().len() < before + WORK_BETWEEN && began.elapsed() < WORK_WAIT_MAX {
            tokio::time::sleep(POLL).await;
        }
    }

    /// `kill -9` of one helper: the postmaster ends all others and recovers from its log.
    async fn crash_backend(&self) -> Result<()> {
        let mut database = PgConnection::connect(self.fleet.superuser_url()).await?;
        let pid: Option<i32> = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity WHERE usename = 'belljar_app' ORDER BY random() LIMIT 1",
        )
        .fetch_optional(&mut database)
        .await?;
        match pid {
            Some(pid) => kill(pid),
            // No host is connected at this moment.
            None => self.fleet.crash_postgres().await,
        }
    }
}

async fn end(host: &mut Child) -> Result<()> {
    host.start_kill()?;
    host.wait().await?;
    Ok(())
}

fn inside(point: &str) -> String {
    format!("inside: {point}")
}

/// One after the other, through all places.
fn place(turn: usize, hit: usize) -> Place {
    let place = turn % PLACES;
    match POINTS.get(place) {
        Some(point) => Place::Inside(point, if RARE.contains(point) { 1 } else { hit }),
        None => Place::Outside(At::ALL[place - POINTS.len()]),
    }
}
