//! Percentiles and medians, a tenant alone and beside another, and chance that is the same in every run.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Beside another's attack, a victim's p99 may be this many times what it is alone, or this much more.
const FACTOR: u32 = 2;
const MORE: Duration = Duration::from_millis(5);

/// The value below which `percent` of all lie. Zero of none.
pub(crate) fn percentile(latencies: &mut [Duration], percent: f64) -> Duration {
    latencies.sort_unstable();
    let at = (latencies.len() as f64 * percent / 100.0) as usize;
    latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
}

pub(crate) fn median(values: &mut [Duration]) -> Duration {
    percentile(values, 50.0)
}

pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}

/// How long each took of `count`, one begun every `pace`, whether the one before has ended or not: a slow answer does not
/// hide the next.
pub(crate) async fn paced<F: Future<Output = Result<()>> + Send + 'static>(
    count: usize,
    pace: Duration,
    begin: impl Fn() -> F,
) -> Result<Vec<Duration>> {
    let mut ticks = tokio::time::interval(pace);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        ticks.tick().await;
        let one = begin();
        tasks.spawn(async move {
            let began = Instant::now();
            one.await.map(|()| began.elapsed())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Prints what a victim's rounds came to alone and beside an attack. An error when the attack was felt.
pub(crate) fn unharmed(alone: &mut [Vec<Duration>], beside: &mut [Vec<Duration>]) -> Result<()> {
    println!("| victim | p50 ms | p99 ms |\n|---|---|---|");
    let p99 = |name: &str, rounds: &mut [Vec<Duration>]| {
        let mut at =
            |percent| median(&mut rounds.iter_mut().map(|round| percentile(round, percent)).collect::<Vec<_>>());
        let (p50, p99) = (at(50.0), at(99.0));
        println!("| {name} | {} | {} |", ms(p50), ms(p99));
        p99
    };
    let (alone, beside) = (p99("alone", alone), p99("beside the attack", beside));
    let bound = (alone * FACTOR).max(alone + MORE);
    println!("| bound | | {} |\n", ms(bound));
    ensure!(beside <= bound, "the victim's p99 is {} ms, more than {} ms", ms(beside), ms(bound));
    Ok(())
}

/// A small generator (SplitMix64).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(seed + 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}
