//! Each hostile guest ends with its exact code, on one thread with a neighbour who is answered meanwhile.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use domain::Limits;
use serde_json::{Value, json};
use tool_api::{ArtifactHash, Finished, Status};

use crate::jar::{Jar, call, guest, resident_bytes, wat, wat_text};

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

struct Case {
    guest: &'static str,
    function: &'static str,
    arguments: Value,
    limits: Limits,
    code: &'static str,
}

fn case(guest: &'static str, function: &'static str, code: &'static str) -> Case {
    Case { guest, function, arguments: json!({}), limits: Limits { deadline_ms: 60_000, ..Limits::DEFAULT }, code }
}

impl Case {
    fn with(mut self, change: impl FnOnce(&mut Limits)) -> Case {
        change(&mut self.limits);
        self
    }

    fn arguments(self, arguments: Value) -> Case {
        Case { arguments, ..self }
    }
}

#[tokio::test]
async fn each_hostile_guest_ends_with_its_code_and_the_neighbour_is_answered() {
    let jar = Jar::new();
    let calc = jar.load("calc").await;
    jar.answers(calc).await.unwrap();
    let cases = [
        case("spin", "run", "limit.fuel"),
        case("spin", "run", "limit.deadline").with(|limits| {
            limits.fuel = Limits::CEILING.fuel;
            limits.deadline_ms = 200;
        }),
        case("eat_memory", "run", "limit.memory"),
        case("eat_memory", "grow_politely", "limit.memory"),
        case("eat_memory", "allocate", "limit.memory"),
        case("recurse", "run", "limit.stack"),
        case("log_flood", "run", "limit.logs"),
        case("log_flood", "empty", "limit.host_calls"),
        case("log_flood", "one_line", "limit.abi"),
        case("stdout_flood", "run", "limit.logs"),
        case("stdout_flood", "stderr", "limit.logs"),
        case("stdout_flood", "stubborn", "limit.logs"),
        case("huge_output", "run", "limit.output"),
        case("huge_output", "one_mib", "limit.output"),
        case("huge_output", "many_parts", "limit.output"),
        case("huge_output", "structured", "limit.output").arguments(json!({"bytes": 300_000})),
        case("huge_output", "not_json", "tool.bad_result"),
        case("slow_host_calls", "run", "limit.host_calls"),
        case("slow_host_calls", "clock", "limit.host_calls"),
        case("slow_host_calls", "who", "limit.host_calls"),
        case("slow_host_calls", "run", "limit.fuel").with(|limits| limits.fuel = 10_000_000),
        case("many_handles", "run", "limit.handles"),
        case("many_handles", "streams", "limit.handles"),
        case("many_fields", "run", "limit.handles"),
        case("big_random", "run", "limit.abi"),
        case("big_random", "insecure_bytes", "limit.abi"),
        case("sleep_long", "run", "limit.deadline").with(|limits| limits.deadline_ms = 200),
        case("sleep_long", "busy_clock", "limit.deadline").with(|limits| {
            limits.deadline_ms = 200;
            limits.host_calls = Limits::CEILING.host_calls;
            limits.fuel = Limits::CEILING.fuel;
        }),
        case("panics", "run", "unreachable"),
        case("traps", "run", "unreachable"),
        case("traps", "out_of_bounds", "memory_out_of_bounds"),
        case("recurse", "wide", "memory_out_of_bounds"),
        case("exit", "run", "exit"),
        case("exit", "failure", "exit"),
    ];
    for case in cases {
        let name = format!("{}.{} -> {}", case.guest, case.function, case.code);
        let artifact = jar.load(case.guest).await;
        let before = resident_bytes();
        let hostile = tool_api::ToolCall { limits: case.limits, ..call(artifact, case.function, case.arguments) };
        let (finished, answered) = beside_a_neighbour(&jar, calc, hostile).await;
        let (outcome, receipt) = (finished.outcome, finished.receipt);
        match &outcome.trap {
            Some(trap) => assert_eq!(trap.kind, case.code, "{name}: {outcome:?}"),
            None => assert_eq!(outcome.code.as_deref(), Some(case.code), "{name}: {outcome:?}"),
        }
        assert!(receipt.fuel_used > 0 && receipt.fuel_used <= case.limits.fuel, "{name}: {receipt:?}");
        assert!(receipt.memory_peak_bytes <= case.limits.memory_bytes, "{name}: {receipt:?}");
        assert!(receipt.total_us < 1_000 * case.limits.deadline_ms + 500_000, "{name}: {receipt:?}");
        assert!(
            receipt.logs.iter().map(|line| line.text.len()).sum::<usize>() as u64 <= case.limits.log_bytes,
            "{name}"
        );
        // A call that ends before it first yields gives a neighbour no turn, and takes none.
        if receipt.total_us > 50_000 {
            assert!(answered > 0, "{name}: nobody else was answered in {} us", receipt.total_us);
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < case.limits.memory_bytes + HOST_GROWTH_BYTES_MAX, "{name}: grew by {} MiB", grown >> 20);
        jar.answers(calc).await.unwrap();
    }
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
