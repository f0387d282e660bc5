//! Hostile tools inside the whole product: each ends with its exact code, and nobody else notices (invariant 2). Every
//! guest there is has a test beside the executor; here are those whose end a tenant sees.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    app::{Client, TestApp},
    tools::{calc_answers, call, guest},
};

/// How late a call may be told of its deadline: machines that run tests are busy.
const LATE_US_MAX: u64 = 3_000_000;
/// What fifty hostile calls may leave in the process.
const RESIDENT_GROWTH_BYTES_MAX: u64 = 256 << 20;

/// A call that must not end well.
struct Case {
    guest: &'static str,
    function: &'static str,
    /// JSON.
    arguments: &'static str,
    /// JSON; what is absent is the default.
    limits: &'static str,
    status: &'static str,
    /// The outcome's code; for a trap its kind.
    code: &'static str,
}

const fn case(guest: &'static str, function: &'static str, status: &'static str, code: &'static str) -> Case {
    Case { guest, function, arguments: "{}", limits: "{}", status, code }
}

const fn limit(guest: &'static str, function: &'static str, code: &'static str, limits: &'static str) -> Case {
    Case { limits, ..case(guest, function, "limit", code) }
}

const FEW_HOST_CALLS: &str = r#"{"host_calls": 5000}"#;
const SHORT: &str = r#"{"deadline_ms": 300, "fuel": 100000000000, "host_calls": 1000000}"#;

const LIMITS: [Case; 28] = [
    limit("spin", "run", "limit.fuel", r#"{"fuel": 50000000}"#),
    limit("spin", "run", "limit.deadline", SHORT),
    limit("eat_memory", "run", "limit.memory", "{}"),
    limit("eat_memory", "run", "limit.memory", r#"{"memory_bytes": 4194304}"#),
    limit("eat_memory", "grow_politely", "limit.memory", "{}"),
    limit("eat_memory", "allocate", "limit.memory", "{}"),
    limit("multi_memory", "run", "limit.memory", "{}"),
    limit("recurse", "run", "limit.stack", "{}"),
    limit("log_flood", "run", "limit.logs", "{}"),
    limit("log_flood", "empty", "limit.host_calls", FEW_HOST_CALLS),
    limit("log_flood", "one_line", "limit.abi", "{}"),
    limit("stdout_flood", "run", "limit.logs", "{}"),
    limit("stdout_flood", "stderr", "limit.logs", "{}"),
    limit("stdout_flood", "stubborn", "limit.logs", r#"{"log_bytes": 1000}"#),
    limit("huge_output", "run", "limit.output", "{}"),
    limit("huge_output", "one_mib", "limit.output", "{}"),
    Case { arguments: r#"{"bytes": 101}"#, ..limit("huge_output", "text", "limit.output", r#"{"output_bytes": 100}"#) },
    limit("huge_output", "many_parts", "limit.output", "{}"),
    Case { arguments: r#"{"bytes": 300000}"#, ..limit("huge_output", "structured", "limit.output", "{}") },
    limit("slow_host_calls", "run", "limit.host_calls", FEW_HOST_CALLS),
    limit("slow_host_calls", "clock", "limit.host_calls", FEW_HOST_CALLS),
    limit("slow_host_calls", "who", "limit.host_calls", FEW_HOST_CALLS),
    limit("slow_host_calls", "run", "limit.fuel", r#"{"fuel": 2000000}"#),
    limit("many_handles", "run", "limit.handles", "{}"),
    limit("many_handles", "streams", "limit.handles", "{}"),
    limit("many_fields", "run", "limit.handles", "{}"),
    limit("big_random", "run", "limit.abi", "{}"),
    limit("big_random", "insecure_bytes", "limit.abi", "{}"),
];

const ENDS: [Case; 12] = [
    limit("sleep_long", "run", "limit.deadline", SHORT),
    limit("sleep_long", "busy_clock", "limit.deadline", SHORT),
    case("huge_output", "not_json", "tool_error", "tool.bad_result"),
    case("panics", "run", "trap", "unreachable"),
    case("traps", "run", "trap", "unreachable"),
    case("traps", "out_of_bounds", "trap", "memory_out_of_bounds"),
    case("traps", "wild_pointer", "trap", "bad_value"),
    case("recurse", "wide", "trap", "memory_out_of_bounds"),
    case("exit", "run", "trap", "exit"),
    case("exit", "failure", "trap", "exit"),
    // Well behaved: the error has words and no code.
    case("fails", "run", "tool_error", ""),
    Case { arguments: r#"{"word": "pretty"}"#, ..case("fails", "knock", "tool_error", "") },
];

#[tokio::test]
async fn each_limit_has_its_code() {
    each_ends_as_it_must(&LIMITS).await;
}

#[tokio::test]
async fn each_crash_is_told_and_stays_with_its_call() {
    each_ends_as_it_must(&ENDS).await;
}

async fn each_ends_as_it_must(cases: &[Case]) {
    let app = TestApp::start().await;
    let (ada, mallory) = (app.tenant("ada").await, app.tenant("mallory").await);
    ada.upload("calc", guest("calc")).await.created();
    for case in cases {
        let name = format!("{}.{} -> {}", case.guest, case.function, case.code);
        let tool = upload(&mallory, case.guest).await;
        let (arguments, limits): (Value, Value) =
            (serde_json::from_str(case.arguments).unwrap(), serde_json::from_str(case.limits).unwrap());
        let body = json!({"function": case.function, "arguments": arguments, "limits": limits});
        let row = call(&mallory, &tool, body).await.ok();

        let outcome = &row["outcome"];
        assert_eq!(outcome["status"], case.status, "{name}: {row}");
        match case.status {
            "trap" => assert_eq!(outcome["trap"]["kind"], case.code, "{name}: {row}"),
            _ => assert_eq!(outcome["code"].as_str().unwrap_or_default(), case.code, "{name}: {row}"),
        }
        assert!(outcome["content"][0]["text"].as_str().is_some_and(|text| !text.is_empty()), "{name}: {row}");
        within_limits(&row["receipt"], &limits, &name);
        assert_eq!(mallory.get(&format!("/v1/tool-calls/{}", row["id"].as_str().unwrap())).await.ok(), row, "{name}");
        calc_answers(&ada).await;
    }
}

/// A receipt says no more than the call was allowed.
fn within_limits(receipt: &Value, limits: &Value, name: &str) {
    let limit = |field: &str, default: u64| limits[field].as_u64().unwrap_or(default);
    let number = |field: &str| receipt[field].as_u64().unwrap();
    assert!((1..=limit("fuel", 1_000_000_000)).contains(&number("fuel_used")), "{name}: {receipt}");
    assert!(number("memory_peak_bytes") <= limit("memory_bytes", 64 << 20), "{name}: {receipt}");
    assert!(number("host_call_count") <= limit("host_calls", 100_000) + 1, "{name}: {receipt}");
    assert!(number("total_us") <= limit("deadline_ms", 10_000) * 1000 + LATE_US_MAX, "{name}: {receipt}");
    let logs = receipt["logs"].as_array().unwrap();
    let bytes: usize = logs.iter().map(|line| line["text"].as_str().unwrap().len()).sum();
    assert!(bytes as u64 <= limit("log_bytes", 64 << 10), "{name}: {bytes} bytes of logs");
    assert!(receipt["price"]["amount"].as_str().unwrap().parse::<f64>().unwrap() > 0.0, "{name}: {receipt}");
}

/// Uploads a guest as a tool of the same name. Again is the same.
async fn upload(client: &Client, name: &str) -> String {
    let tool = name.replace('_', "-");
    let answer = client.upload(&tool, guest(name)).await;
    assert!(matches!(answer.status, 200 | 201), "{name}: {}", answer.text);
    tool
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_of_eight_spinning_calls_are_answered() {
    const DEADLINE_MS: u64 = 6_000;
    let app = TestApp::start().await;
    let (ada, mallory) = (app.tenant("ada").await, app.tenant("mallory").await);
    ada.upload("calc", guest("calc")).await.created();
    let tool = upload(&mallory, "spin").await;
    let body = json!({"function": "run", "limits": {"deadline_ms": DEADLINE_MS, "fuel": 100_000_000_000_u64}});
    let spinning = futures::future::join_all((0..8).map(|_| call(&mallory, &tool, body.clone())));
    let mut answered = 0;
    let neighbour = async {
        loop {
            let began = Instant::now();
            calc_answers(&ada).await;
            assert!(began.elapsed() < Duration::from_millis(DEADLINE_MS), "{:?}", began.elapsed());
            answered += 1;
        }
    };
    let rows = tokio::select! {
        rows = spinning => rows,
        () = neighbour => unreachable!(),
    };
    for row in rows {
        let row = row.ok();
        assert_eq!(row["outcome"]["code"], "limit.deadline", "{row}");
    }
    assert!(answered >= 3, "answered {answered} times in {DEADLINE_MS} ms");
}

#[tokio::test]
async fn fifty_greedy_calls_leave_the_process_as_it_was() {
    let app = TestApp::start().await;
    let mallory = app.tenant("mallory").await;
    let greedy = [("eat_memory", "allocate"), ("huge_output", "run"), ("log_flood", "run"), ("multi_memory", "run")];
    for (name, _) in greedy {
        upload(&mallory, name).await;
    }
    let round = async |calls: usize| {
        for (name, function) in greedy.iter().cycle().take(calls) {
            let row = call(&mallory, &name.replace('_', "-"), json!({"function": function})).await.ok();
            assert_eq!(row["outcome"]["status"], "limit", "{row}");
        }
    };
    round(greedy.len()).await;
    let before = resident_bytes();
    round(50).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < RESIDENT_GROWTH_BYTES_MAX, "grew by {} MiB", grown >> 20);
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn every_door_is_closed_without_a_grant() {
    let app = TestApp::start().await;
    let mallory = app.tenant("mallory").await;
    let tool = upload(&mallory, "read_ungranted").await;
    let row = call(&mallory, &tool, json!({"function": "run"})).await.ok();
    assert_eq!(row["outcome"]["status"], "ok", "{row}");
    let doors = row["outcome"]["structured"].as_object().unwrap();
    assert_eq!(doors.len(), 18, "{row}");
    for (door, report) in doors {
        assert_eq!(report["allowed"], false, "{door}: {report}");
        assert!(!report["answer"].as_str().unwrap().contains("root:"), "{door}: {report}");
    }
    let denied: BTreeSet<&str> =
        row["receipt"]["denied"].as_array().unwrap().iter().map(|grant| grant.as_str().unwrap()).collect();
    assert_eq!(denied, BTreeSet::from(["http", "key_value", "network", "secrets"]));
}

#[tokio::test]
async fn nothing_of_a_call_is_left_for_another_tenant() {
    let app = TestApp::start().await;
    let (ada, mallory) = (app.tenant("ada").await, app.tenant("mallory").await);
    let tool = upload(&mallory, "dirty_pages").await;
    upload(&ada, "dirty_pages").await;
    // Few scattered pages, and more than are reset in place.
    for pages in [4, 40, 256, 4, 40, 256] {
        let row = call(&mallory, &tool, json!({"function": "run", "arguments": {"pages": pages}})).await.ok();
        assert_eq!(row["outcome"]["status"], "ok", "{row}");
        let row = call(&ada, &tool, json!({"function": "residue", "arguments": {"pages": 256}})).await.ok();
        let residue = json!({"pattern_words": 0, "dirty_words": 0, "pattern_words_anywhere": 0});
        assert_eq!(row["outcome"]["structured"], residue, "after {pages} pages: {row}");
    }
}

#[tokio::test]
async fn a_panic_says_where_and_why() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let tool = upload(&ada, "panics").await;
    let row = call(&ada, &tool, json!({"function": "run"})).await.ok();
    let trap = &row["outcome"]["trap"];
    assert_eq!((&trap["kind"], &trap["message"]), (&json!("unreachable"), &json!("this guest panics")));
    let frames = trap["frames"].as_array().unwrap();
    assert!((1..=20).contains(&frames.len()), "{trap}");
    assert!(frames.iter().any(|frame| frame.as_str().unwrap().contains("panic")), "{trap}");
    let stderr = row["receipt"]["logs"].as_array().unwrap();
    assert!(stderr.iter().any(|line| line["level"] == "stderr"), "{stderr:?}");
}

#[tokio::test]
async fn a_sleeping_call_ends_at_its_deadline() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let tool = upload(&ada, "sleep_long").await;
    for deadline_ms in [100, 700] {
        let body = json!({"function": "run", "limits": {"deadline_ms": deadline_ms}});
        let row = call(&ada, &tool, body).await.ok();
        assert_eq!(row["outcome"]["code"], "limit.deadline", "{row}");
        let total_us = row["receipt"]["total_us"].as_u64().unwrap();
        assert!((deadline_ms * 1000..deadline_ms * 1000 + LATE_US_MAX).contains(&total_us), "{row}");
    }
    let row = call(&ada, &tool, json!({"function": "run", "arguments": {"seconds": 0}})).await.ok();
    assert_eq!(row["outcome"]["content"][0]["text"], "slept");
}
