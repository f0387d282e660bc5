//! Many tools in one process: `density PATH/TO/calc.wasm`. Prints what each loaded tool takes of private memory, and
//! that a bounded cache stays within its bound.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod common;

use std::{fs, sync::Arc, time::Instant};

use bytes::Bytes;
use common::{call, executor, executor_at, inspect, sealed};
use tool_api::ArtifactHash;

const TOOLS: u32 = 2_000;
/// A cache that holds some of them.
const BOUNDED_BYTES: u64 = 64 << 20;

fn main() {
    let component = common::calc();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).event_interval(1).enable_all().build().expect("a runtime");
    let (compiler, cache) = executor(u64::MAX);
    let first = runtime.block_on(inspect(&compiler, &component));
    // Twins under hashes of their own: as many files, and as many mappings, without as many compilations.
    let artifacts: Vec<ArtifactHash> = (0..TOOLS)
        .map(|n| {
            let twin = ArtifactHash::of(&common::variant(&component, n));
            compiler.twin(first, twin).expect("a copy of the compiled code");
            twin
        })
        .collect();
    drop(compiler);
    let size = Bytes::len(&component) >> 10;

    println!("| cache | tools called | private KiB a tool | private MiB in all | seconds |\n|---|---|---|---|---|");
    for (name, bytes) in [("unbounded", u64::MAX), ("64 MiB of code", BOUNDED_BYTES)] {
        runtime.block_on(async {
            let executor = executor_at(cache.path().into(), bytes);
            let (arguments, grants) = (common::arguments(), Arc::default());
            sealed(&executor, call(first, &arguments, &grants)).await;
            let before = private_bytes();
            let began = Instant::now();
            for artifact in &artifacts {
                sealed(&executor, call(*artifact, &arguments, &grants)).await;
            }
            let more = private_bytes().saturating_sub(before);
            println!(
                "| {name} | {TOOLS} | {:.1} | {:.1} | {:.1} |",
                more as f64 / 1024.0 / f64::from(TOOLS),
                more as f64 / f64::from(1 << 20),
                began.elapsed().as_secs_f64()
            );
        });
    }
    println!("\nA tool of {size} KiB; private memory is what the process shares with nobody and no file gives back.");
}

/// Anonymous memory of this process, copies of mapped pages among it: `Anonymous` of `/proc/self/smaps_rollup`. Not
/// `Private_Dirty`: that has the pages of a file just written, which go back to the file.
fn private_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a sum");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}
