//! Nothing of a call is left for the next one in its place: of another tenant, of another tool. With every option of the
//! pool that is on.

use std::path::Path;

use domain::TenantId;
use serde_json::{Value, json};
use tool_api::{ArtifactHash, Status, ToolCall};
use tool_executor::{Executor, Settings};
use uuid::Uuid;

use crate::jar::{Jar, call, guest, settings};

/// A jar with one place: every call gets the memory that the last one had.
fn one_place() -> Jar {
    let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests");
    Jar { executor: Executor::start(Settings { concurrency: 1, ..settings(compiled) }).unwrap() }
}

fn of(tenant: u128, artifact: ArtifactHash, function: &str, arguments: Value) -> ToolCall {
    ToolCall { tenant: TenantId::from(Uuid::from_u128(tenant)), ..call(artifact, function, arguments) }
}

#[tokio::test]
async fn a_tenant_never_reads_what_another_wrote() {
    let jar = one_place();
    let dirty = jar.load("dirty_pages").await;
    // The same code under another hash: another tool for the engine, with a memory of the same size.
    let twin = [&guest("dirty_pages")[..], b"\0\x05\x04twin"].concat();
    let twin = jar.inspect(twin.into()).await.artifact;
    // Every page, and scattered ones: in more regions than the engine's scan takes at once (32), and few enough that it
    // resets them in place; in less memory than is reset in place (2 MiB), and in more.
    for pages in [4, 31, 33, 256, 800] {
        for every in [1, 2, 3, 17, 64] {
            let wrote = jar.call(of(1, dirty, "run", json!({"pages": pages, "every": every}))).await.outcome;
            assert_eq!(wrote.status, Status::Ok, "{wrote:?}");
            for (tenant, tool) in [(2, dirty), (3, twin)] {
                let outcome = jar.call(of(tenant, tool, "residue", json!({"pages": 800}))).await.outcome;
                assert_eq!(
                    outcome.structured,
                    Some(json!({"pattern_words": 0, "dirty_words": 0, "pattern_words_anywhere": 0})),
                    "after {pages} pages, one of {every}: {outcome:?}"
                );
            }
        }
    }
}

/// Tables and globals have images of their own: a call that crashed in the middle leaves none of them changed.
#[tokio::test]
async fn a_crash_leaves_nothing_for_the_next_call() {
    let jar = one_place();
    let (traps, calc) = (jar.load("traps").await, jar.load("calc").await);
    for _ in 0..20 {
        let crashed = jar.outcome(traps, "run", json!({})).await;
        assert_eq!(crashed.status, Status::Trap, "{crashed:?}");
        jar.answers(calc).await.unwrap();
    }
}
