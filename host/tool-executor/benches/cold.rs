//! A call of a tool that is compiled and not loaded: `cold PATH/TO/calc.wasm`. Each of some twins of `calc` is called
//! once by an executor that has just started over their compiled code.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod common;

use std::{sync::Arc, time::Instant};

use common::{calc, call, executor_at, inspect, median, percentile, sealed, variant};

const TWINS: u32 = 12;
const ROUNDS: usize = 9;

fn main() {
    let component = calc();
    let cache = tempfile::tempdir().expect("a directory for compiled code");
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).event_interval(1).enable_all().build().expect("a runtime");
    let (arguments, grants) = (common::arguments(), Arc::default());
    let artifacts = runtime.block_on(async {
        let executor = executor_at(cache.path().into(), 256 << 20);
        let mut artifacts = Vec::new();
        for n in 0..=TWINS {
            artifacts.push(inspect(&executor, &variant(&component, n)).await);
        }
        artifacts
    });
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        runtime.block_on(async {
            let executor = executor_at(cache.path().into(), 256 << 20);
            // The first call of a process makes what every call needs: the pool's first slot, its stack.
            sealed(&executor, call(artifacts[0], &arguments, &grants)).await;
            let timed = async |times: &mut Vec<_>| {
                for artifact in &artifacts[1..] {
                    let began = Instant::now();
                    sealed(&executor, call(*artifact, &arguments, &grants)).await;
                    times.push(began.elapsed());
                }
            };
            let (mut first, mut second) = (Vec::new(), Vec::new());
            timed(&mut first).await;
            timed(&mut second).await;
            first.sort_unstable();
            second.sort_unstable();
            cold.push(first);
            warm.push(second);
        });
    }
    println!("| call | p50 µs | p90 µs |\n|---|---|---|");
    for (name, rounds) in [("cold", &cold), ("the next", &warm)] {
        let at = |percent| median(rounds.iter().map(|round| percentile(round, percent)));
        println!("| {name} | {:.0} | {:.0} |", at(50), at(90));
    }
    let bytes = std::fs::read_dir(cache.path()).expect("the cache").filter_map(|entry| {
        let entry = entry.ok()?;
        let is_code = entry.path().extension().is_some_and(|extension| extension == "cwasm");
        is_code.then(|| entry.metadata().ok().map(|metadata| metadata.len())).flatten()
    });
    println!("\n{ROUNDS} rounds of {TWINS} tools, each {} KiB of code.", bytes.max().unwrap_or_default() >> 10);
}
