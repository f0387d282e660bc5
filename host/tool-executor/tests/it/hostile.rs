//! Each hostile guest ends with its exact code, on one thread with a neighbour who is answered meanwhile.

mod case;
mod rows;

use std::{
    cell::Cell,
    path::Path,
    time::{Duration, Instant},
};

use domain::Limits;
use serde_json::json;
use tool_api::{ArtifactHash, Finished, Status};

use crate::jar::{Jar, call, guest, guests_dir, resident_bytes, wat, wat_text};
use case::{Case, Row};

/// Memory that a hostile call may leave in this process beyond its own limit: warm pages, logs, the answer on its way.
const HOST_GROWTH_BYTES_MAX: u64 = 96 << 20;

/// Runs a call while a neighbour calls without pause, and says how often the neighbour was answered.
async fn beside_a_neighbour(jar: &Jar, calc: ArtifactHash, hostile: tool_api::ToolCall) -> (Finished, u32) {
    let answered = Cell::new(0);
    let neighbour = async {
        loop {
            jar.answers(calc).await.unwrap();
            answered.set(answered.get() + 1);
            tokio::task::yield_now().await;
        }
    };
    let finished = tokio::select! {
        finished = jar.call(hostile) => finished,
        () = neighbour => unreachable!(),
    };
    (finished, answered.get())
}

/// A guest of either folder.
fn component(name: &str) -> bytes::Bytes {
    if guests_dir().join(format!("{name}.wasm")).exists() { guest(name) } else { wat(name) }
}

/// The rows are dealt to so many tests, which run beside each other.
const HANDS: usize = 4;

async fn each_guest_of(hand: usize) {
    let jar = Jar::new();
    let calc = jar.load("calc").await;
    jar.answers(calc).await.unwrap();
    for (guest, row) in every_guest::foreach_guest!(rows).into_iter().skip(hand).step_by(HANDS) {
        match row {
            Row::Calls(cases) => {
                let artifact = jar.inspect(component(guest)).await.artifact;
                for case in cases {
                    ends_as_it_must(&jar, calc, artifact, &case, &case.name(guest)).await;
                }
            }
            Row::Refused(code, words) => {
                let rejection = jar.rejection(component(guest)).await;
                assert_eq!(rejection.code, code, "{guest}: {rejection}");
                assert!(rejection.detail.contains(words), "{guest}: {rejection}");
            }
            Row::In(place) => assert!(names(place, guest), "no test in `{place}` names the guest `{guest}`"),
        }
        jar.answers(calc).await.unwrap();
    }
}

async fn ends_as_it_must(jar: &Jar, calc: ArtifactHash, artifact: ArtifactHash, case: &Case, name: &str) {
    let before = resident_bytes();
    let (finished, answered) = beside_a_neighbour(jar, calc, case.call(artifact)).await;
    case.check(name, &finished);
    // A call that ends before it first yields gives a neighbour no turn, and takes none.
    if finished.receipt.total_us > 50_000 {
        assert!(answered > 0, "{name}: nobody else was answered in {} us", finished.receipt.total_us);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < case.limits.memory_bytes + HOST_GROWTH_BYTES_MAX, "{name}: grew by {} MiB", grown >> 20);
}

/// Whether a file of these tests, or one in a folder of them, says a guest's name.
fn names(place: &str, guest: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(place);
    let files = match std::fs::read_dir(&path) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => vec![path],
    };
    files.iter().any(|file| std::fs::read_to_string(file).unwrap().contains(&format!("\"{guest}\"")))
}

#[tokio::test]
async fn each_hostile_guest_ends_with_its_code_and_the_neighbour_is_answered_1() {
    each_guest_of(0).await;
}

#[tokio::test]
async fn each_hostile_guest_ends_with_its_code_and_the_neighbour_is_answered_2() {
    each_guest_of(1).await;
}

#[tokio::test]
async fn each_hostile_guest_ends_with_its_code_and_the_neighbour_is_answered_3() {
    each_guest_of(2).await;
}

#[tokio::test]
async fn each_hostile_guest_ends_with_its_code_and_the_neighbour_is_answered_4() {
    each_guest_of(3).await;
}

#[tokio::test]
async fn memories_are_limited_together() {
    let jar = Jar::new();
    let artifact = jar.inspect(wat("multi_memory")).await.artifact;
    let before = resident_bytes();
    let finished = jar.call(call(artifact, "run", json!({}))).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.memory"), "{finished:?}");
    assert!(finished.receipt.memory_peak_bytes <= Limits::DEFAULT.memory_bytes);
    assert!(finished.receipt.memory_peak_bytes > Limits::DEFAULT.memory_bytes - (2 << 20), "{finished:?}");
    assert!(resident_bytes().saturating_sub(before) < HOST_GROWTH_BYTES_MAX);
}

#[tokio::test]
async fn a_crash_says_where_and_why() {
    let jar = Jar::new();
    let artifact = jar.load("panics").await;
    let outcome = jar.outcome(artifact, "run", json!({})).await;
    assert_eq!((outcome.status, &outcome.code), (Status::Trap, &None));
    let trap = outcome.trap.clone().unwrap();
    assert_eq!(trap.message, "this guest panics");
    assert!((1..=20).contains(&trap.frames.len()), "{trap:?}");
    assert!(outcome.for_model().contains("this guest panics"), "{}", outcome.for_model());
}

/// Around the engine's helpers compiled code keeps its own copy of the fuel counter: charging for them must not refill it.
#[tokio::test]
async fn no_fuel_is_won_from_the_engines_helpers() {
    let jar = Jar::new();
    let grows_by_nothing =
        wat_text("multi_memory").replace("(loop $more", "(loop $more (drop (memory.grow (i32.const 0))) (br $more)");
    let artifact = jar.inspect(wat::parse_str(grows_by_nothing).unwrap().into()).await.artifact;
    for fuel in [50_000, 1_000_000, 10_000_000] {
        let limits = Limits { fuel, deadline_ms: 20_000, ..Limits::DEFAULT };
        let finished = jar.call(tool_api::ToolCall { limits, ..call(artifact, "run", json!({})) }).await;
        assert_eq!(finished.outcome.code.as_deref(), Some("limit.fuel"), "{finished:?}");
        assert_eq!((finished.receipt.fuel_used, finished.receipt.host_call_count), (fuel, 0));
    }
}

/// A loop of host calls that takes a host call's time each, and no wasm to speak of, still yields.
#[tokio::test]
async fn host_calls_yield_like_any_other_work() {
    let jar = Jar::new();
    let (calc, slow) = (jar.load("calc").await, jar.load("slow_host_calls").await);
    let (finished, answered) = beside_a_neighbour(&jar, calc, call(slow, "run", json!({}))).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.host_calls"));
    let per_yield = finished.receipt.host_call_count / u64::from(answered.max(1));
    assert!(per_yield < 1_000, "{} host calls, {answered} answers", finished.receipt.host_call_count);
    // The charge for host calls is fuel on the receipt.
    assert!(finished.receipt.fuel_used >= 1_000 * finished.receipt.host_call_count, "{:?}", finished.receipt);
}

/// A tool whose `run` asks for a config value again and again, with a key of so many bytes, in code without a loop.
fn straight_code(key_bytes: u32) -> bytes::Bytes {
    let config = r#"(component
      (import "wasi:config/store@0.2.0-rc.1" (instance $config
        (type $e (variant (case "upstream" string) (case "io" string)))
        (export "error" (type $error (eq $e)))
        (export "get" (func (param "key" string) (result (result (option string) (error $error)))))))
      (core module $libc
        (memory (export "memory") 8)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (unreachable)))
      (core instance $libc (instantiate $libc))
      (alias core export $libc "memory" (core memory $shared))
      (alias core export $libc "realloc" (core func $never))
      (core func $get (canon lower (func $config "get") (memory $shared) (realloc $never)))"#;
    let memory = r#"(import "libc" "memory" (memory 8))
      (import "libc" "get" (func $get (param i32 i32 i32)))
      (export "memory" (memory 0))"#;
    let libc = r#"(core instance $main (instantiate $main
      (with "libc" (instance (export "memory" (memory $shared)) (export "get" (func $get))))"#;
    let get = format!("(call $get (i32.const 0x10000) (i32.const {key_bytes}) (i32.const 0x800))\n");
    let text = wat_text("multi_memory")
        .replacen("(component", config, 1)
        .replace(r#"(memory (export "memory") 1)"#, memory)
        .replace("(core instance $main (instantiate $main", libc)
        .replace("(loop $more", &(get.repeat(3_000) + "(loop $more"));
    wat::parse_str(text).unwrap().into()
}

/// Compiled code looks for a yield where a loop or a function begins: code without either may not keep its thread.
#[tokio::test]
async fn straight_code_cannot_call_the_host_for_ever() {
    let jar = Jar::new();
    let fuel = 10_000_000;
    for (key_bytes, code, host_calls_max) in
        [(5, "limit.host_calls", 400), (200_000, "limit.fuel", 60), (300_000, "limit.abi", 1)]
    {
        let artifact = jar.inspect(straight_code(key_bytes)).await.artifact;
        let limits = Limits { fuel, deadline_ms: 60_000, ..Limits::DEFAULT };
        let finished = jar.call(tool_api::ToolCall { limits, ..call(artifact, "run", json!({})) }).await;
        assert_eq!(finished.outcome.code.as_deref(), Some(code), "{key_bytes}: {finished:?}");
        let receipt = finished.receipt;
        assert!(receipt.host_call_count <= host_calls_max, "{key_bytes}: {receipt:?}");
        assert!(receipt.fuel_used >= 1_000 * receipt.host_call_count, "{key_bytes}: {receipt:?}");
    }
}

#[tokio::test]
async fn fuel_is_exact() {
    let jar = Jar::new();
    let calc = jar.load("calc").await;
    let work = json!({"expression": "(1 + 2) ^ 20 / 7"});
    let first = jar.call(call(calc, "evaluate", work.clone())).await;
    for _ in 0..3 {
        let again = jar.call(call(calc, "evaluate", work.clone())).await;
        assert_eq!(again.receipt.fuel_used, first.receipt.fuel_used);
        assert_eq!(again.receipt.memory_peak_bytes, first.receipt.memory_peak_bytes);
    }
    // Enough is enough, and one less is not.
    let with_fuel = |fuel| tool_api::ToolCall {
        limits: Limits { fuel, ..Limits::DEFAULT },
        ..call(calc, "evaluate", work.clone())
    };
    assert_eq!(jar.call(with_fuel(first.receipt.fuel_used + 1)).await.outcome.status, Status::Ok);
    let short = jar.call(with_fuel(first.receipt.fuel_used / 2)).await;
    assert_eq!(short.outcome.code.as_deref(), Some("limit.fuel"));
    assert_eq!(short.receipt.fuel_used, first.receipt.fuel_used / 2);
}

#[tokio::test]
async fn a_deadline_ends_a_spin_within_milliseconds() {
    let jar = Jar::new();
    let spin = jar.load("spin").await;
    for deadline_ms in [20, 50, 100] {
        let limits = Limits { deadline_ms, fuel: Limits::CEILING.fuel, ..Limits::DEFAULT };
        let started = Instant::now();
        let finished = jar.call(tool_api::ToolCall { limits, ..call(spin, "run", json!({})) }).await;
        assert_eq!(finished.outcome.code.as_deref(), Some("limit.deadline"));
        let late = started.elapsed().saturating_sub(Duration::from_millis(deadline_ms));
        assert!(late < Duration::from_millis(150), "{late:?} late");
    }
}

#[tokio::test]
async fn a_description_that_does_not_end_is_a_rejection() {
    let jar = Jar::new();
    let rejection = jar.rejection(guest("describe_spins")).await;
    assert_eq!(rejection.code, "toolbox.describe_failed");
    assert!(rejection.detail.contains("limit.fuel"), "{rejection}");
}
