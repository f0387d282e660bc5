//! Progress: what a follower is told, and how much at most.

use std::sync::Arc;

use domain::Limits;
use serde_json::{Value, json};
use tool_api::{CallHost, Finished, ToolCall, ToolExecutor};

use crate::{
    host::Host,
    jar::{Jar, call},
};

async fn followed(function: &str, arguments: Value) -> (Finished, Vec<(Option<u8>, String)>) {
    let jar = Jar::new();
    let flood = jar.load("progress_flood").await;
    let host = Arc::new(Host::default());
    let limits = Limits { host_calls: 5_000, deadline_ms: 60_000, ..Limits::DEFAULT };
    let reporting = ToolCall { limits, ..call(flood, function, arguments) };
    let finished = jar.executor.call(reporting, Arc::clone(&host) as Arc<dyn CallHost>).await.unwrap();
    (finished, host.told())
}

#[tokio::test]
async fn a_flood_is_cut_and_counted() {
    let (finished, told) = followed("many", json!({"times": 300})).await;
    assert_eq!(finished.outcome.for_model(), "done");
    // Ten a second; the call may take more than one.
    let seconds = 1 + finished.receipt.total_us / 1_000_000;
    assert!(told.len() as u64 <= 10 * seconds && told.len() >= 10, "{} told in {seconds} s", told.len());
    assert_eq!(finished.receipt.host_call_counts["belljar:tool/progress.report"], 300);
    assert_eq!(finished.receipt.host_calls.len(), 100);

    let (finished, told) = followed("endless", json!({})).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.host_calls"));
    assert!(told.len() <= 1_000);

    let (_, told) = followed("long", json!({"bytes": 100_000})).await;
    let [(percent, text)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((*percent, text.len()), (Some(100), 500));
}

#[tokio::test]
async fn a_follower_hears_of_each_step() {
    let (finished, told) = followed("honest", json!({})).await;
    let words: Vec<_> = told.iter().map(|(percent, text)| (*percent, text.as_str())).collect();
    assert_eq!(words, [(None, "looking"), (Some(50), "half"), (Some(100), "all")]);
    assert!(finished.receipt.denied.is_empty(), "it needs no grant");
}
