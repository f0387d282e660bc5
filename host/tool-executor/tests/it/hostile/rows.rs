//! One function a guest, of the guest's name: what each of its calls ends with. A file in `tests/guests` without a
//! function here does not compile.

mod refused;

use domain::Limits;
use serde_json::json;

use super::case::{Row, answers, crashes, denied, ends, errs};
pub(super) use refused::*;

/// Enough to tell a loop from an answer: the neighbour is answered whenever a call yields, which takes its time.
fn little(limits: &mut Limits) {
    (limits.fuel, limits.host_calls) = (100_000_000, 10_000);
}

/// A deadline that comes before any other limit.
fn short(limits: &mut Limits) {
    *limits = Limits { deadline_ms: 200, ..Limits::CEILING };
}

pub(super) fn ambient() -> Row {
    Row::Calls(vec![answers("run", "nothing"), ends("read_on", "limit.host_calls")])
}

pub(super) fn bad_requires() -> Row {
    Row::Calls(vec![answers("run", "called")])
}

pub(super) fn bad_values() -> Row {
    Row::Calls(vec![
        crashes("not_utf8", "bad_value"),
        crashes("log_not_utf8", "host_refused"),
        crashes("log_outside", "host_refused"),
        crashes("key_of_everything", "host_refused"),
        crashes("parts_of_everything", "memory_out_of_bounds"),
        ends("not_an_image", "tool.bad_result"),
    ])
}

pub(super) fn big_random() -> Row {
    Row::Calls(vec![ends("run", "limit.abi"), ends("insecure_bytes", "limit.abi")])
}

pub(super) fn bulk_memory() -> Row {
    Row::Calls(vec![ends("run", "limit.fuel"), ends("copy", "limit.fuel"), ends("run", "limit.deadline").within(short)])
}

pub(super) fn config_reader() -> Row {
    Row::Calls(vec![
        errs("value", "not granted").given(json!({"key": "unit"})).noting(&["config"]),
        answers("value", "km").given(json!({"key": "unit"})).config("unit", "km"),
        errs("value", "not granted").given(json!({"key": "other"})).config("unit", "km").noting(&["config"]),
        answers("count", "0"),
        answers("count", "1").config("unit", "km"),
        ends("all_on", "limit.host_calls"),
        ends("all_on", "limit.fuel").within(little).config("large", "x".repeat(60_000)),
        ends("long_key", "limit.abi").given(json!({"bytes": 300_000})),
        answers("long_key", "false").given(json!({"bytes": 200_000})).noting(&["config"]),
    ])
}

pub(super) fn deep_json() -> Row {
    Row::Calls(vec![
        ends("lists", "tool.bad_result").given(json!({"depth": 100_000})),
        ends("objects", "tool.bad_result").given(json!({"depth": 40_000})),
        answers("lists", "structured").given(json!({"depth": 100})),
    ])
}

pub(super) fn describe_asks() -> Row {
    Row::Calls(vec![answers("run", "called")])
}

pub(super) fn dirty_pages() -> Row {
    Row::In("residue.rs")
}

pub(super) fn drop_order() -> Row {
    Row::Calls(vec![
        crashes("body_before_stream", "host_refused"),
        crashes("finished_before_stream", "host_refused"),
        answers("request_before_body", "dropped"),
        crashes("stream_before_pollable", "host_refused"),
        answers("twice", "false false"),
        crashes("not_mine", "host_refused"),
        crashes("double", "host_refused"),
        crashes("wrong_type", "host_refused"),
    ])
}

pub(super) fn eat_memory() -> Row {
    Row::Calls(vec![
        ends("run", "limit.memory"),
        ends("small_steps", "limit.memory"),
        ends("no_steps", "limit.fuel").within(little),
        answers("one_step", "true"),
        ends("grow_politely", "limit.memory"),
        ends("allocate", "limit.memory"),
    ])
}

pub(super) fn echo() -> Row {
    Row::In("calls.rs")
}

pub(super) fn empty_writes() -> Row {
    Row::Calls(vec![
        ends("run", "limit.host_calls"),
        ends("flushed", "limit.host_calls"),
        crashes("body", "host_refused"),
        ends("zeros", "limit.host_calls"),
    ])
}

pub(super) fn exit() -> Row {
    Row::Calls(vec![crashes("run", "exit"), crashes("failure", "exit")])
}

pub(super) fn fails() -> Row {
    Row::Calls(vec![
        errs("run", "preheat it first"),
        errs("knock", "say `please`").given(json!({"word": "pretty"})),
        answers("knock", "come in").given(json!({"word": "please"})),
    ])
}

pub(super) fn handle_floods() -> Row {
    Row::Calls(vec![
        ends("inputs", "limit.handles"),
        ends("requests", "limit.handles"),
        ends("bodies", "limit.handles"),
        ends("options", "limit.handles"),
        ends("responses", "limit.handles"),
        ends("subscriptions", "limit.handles"),
        ends("clones", "limit.handles"),
        ends("given_back", "limit.host_calls"),
    ])
}

pub(super) fn http_client() -> Row {
    Row::In("http")
}

pub(super) fn http_hostile() -> Row {
    Row::In("http")
}

pub(super) fn huge_output() -> Row {
    Row::Calls(vec![
        ends("run", "limit.output"),
        ends("one_mib", "limit.output"),
        ends("text", "limit.output").given(json!({"bytes": 101})).within(|limits| limits.output_bytes = 100),
        ends("many_parts", "limit.output"),
        ends("structured", "limit.output").given(json!({"bytes": 300_000})),
        ends("not_json", "tool.bad_result"),
    ])
}

pub(super) fn kv_acts() -> Row {
    Row::In("key_value.rs")
}

pub(super) fn kv_flood() -> Row {
    Row::In("key_value.rs")
}

pub(super) fn latin1_long() -> Row {
    Row::Calls(vec![crashes("run", "bad_value")])
}

pub(super) fn log_flood() -> Row {
    Row::Calls(vec![
        ends("run", "limit.logs"),
        ends("empty", "limit.host_calls"),
        ends("by_level", "limit.logs"),
        ends("context", "limit.logs"),
        ends("one_line", "limit.abi"),
    ])
}

pub(super) fn many_fields() -> Row {
    Row::Calls(vec![ends("run", "limit.handles"), crashes("append", "host_refused")])
}

pub(super) fn many_handles() -> Row {
    Row::Calls(vec![
        ends("run", "limit.handles"),
        ends("streams", "limit.handles"),
        answers("poll_many", "500").given(json!({"pollables": 500})),
        ends("poll_many", "limit.handles").given(json!({"pollables": 5_000})),
    ])
}

pub(super) fn many_tables() -> Row {
    Row::Calls(vec![ends("run", "limit.memory")])
}

pub(super) fn multi_memory() -> Row {
    Row::Calls(vec![ends("run", "limit.memory")])
}

pub(super) fn panics() -> Row {
    Row::Calls(vec![crashes("run", "unreachable")])
}

pub(super) fn poll_floods() -> Row {
    Row::Calls(vec![
        answers("same", "500").given(json!({"times": 500})),
        ends("same", "limit.handles").given(json!({"times": 5_000})),
        ends("same", "limit.abi").given(json!({"times": 1_000_000})),
        crashes("nothing", "host_refused"),
        ends("no_time", "limit.host_calls").within(little),
        ends("the_past", "limit.host_calls"),
        ends("end_of_time", "limit.deadline").within(short),
    ])
}

pub(super) fn post_return_spins() -> Row {
    Row::Calls(vec![ends("run", "limit.fuel").within(little), ends("run", "limit.deadline").within(short)])
}

pub(super) fn post_return_traps() -> Row {
    Row::Calls(vec![crashes("run", "unreachable")])
}

pub(super) fn progress_flood() -> Row {
    Row::In("progress.rs")
}

pub(super) fn random_flood() -> Row {
    // Of few calls: a build without optimisation makes each of the 64 KiB slowly.
    let pieces = |limits: &mut Limits| limits.host_calls = 250;
    Row::Calls(vec![
        ends("run", "limit.host_calls").within(pieces),
        ends("insecure_pieces", "limit.host_calls").within(pieces),
        ends("nothing", "limit.host_calls"),
    ])
}

pub(super) fn read_ungranted() -> Row {
    Row::In("calls.rs")
}

pub(super) fn realloc_calls_host() -> Row {
    Row::Calls(vec![crashes("run", "cannot_leave_component")])
}

pub(super) fn realloc_spins() -> Row {
    Row::Calls(vec![ends("run", "limit.fuel").within(little)])
}

pub(super) fn realloc_traps() -> Row {
    Row::Calls(vec![crashes("run", "unreachable")])
}

pub(super) fn realloc_wild() -> Row {
    Row::Calls(vec![crashes("run", "bad_value")])
}

pub(super) fn record_changed() -> Row {
    Row::In("replay.rs")
}

pub(super) fn record_inputs() -> Row {
    Row::In("replay.rs")
}

pub(super) fn recurse() -> Row {
    Row::Calls(vec![ends("run", "limit.stack"), crashes("wide", "memory_out_of_bounds")])
}

pub(super) fn scratch_doors() -> Row {
    Row::In("scratch.rs")
}

pub(super) fn scratch_torture() -> Row {
    Row::In("scratch.rs")
}

pub(super) fn scratch_use() -> Row {
    Row::In("scratch.rs")
}

pub(super) fn sdk() -> Row {
    Row::In("sdk.rs")
}

pub(super) fn secret_reader() -> Row {
    Row::In("secrets.rs")
}

pub(super) fn sleep_long() -> Row {
    Row::Calls(vec![
        ends("run", "limit.deadline").within(|limits| limits.deadline_ms = 200),
        ends("busy_clock", "limit.deadline").within(short),
    ])
}

pub(super) fn slow_host_calls() -> Row {
    Row::Calls(vec![
        ends("run", "limit.host_calls"),
        ends("clock", "limit.host_calls"),
        ends("who", "limit.host_calls"),
        ends("run", "limit.fuel").within(|limits| limits.fuel = 10_000_000),
    ])
}

pub(super) fn sockets() -> Row {
    Row::Calls(vec![
        denied("tcp", "denied.network").given(json!({"address": "127.0.0.1:8080"})),
        denied("tcp", "denied.network").given(json!({"address": "[::1]:8080"})),
        denied("tcp", "denied.network").given(json!({"address": "169.254.169.254:80"})),
        denied("listen", "denied.network"),
        denied("udp", "denied.network").given(json!({"address": "127.0.0.1:53"})),
        denied("name", "denied.network").given(json!({"name": "localhost"})),
        ends("many_tcp", "limit.host_calls").noting(&["network"]),
        ends("many_udp", "limit.host_calls").noting(&["network"]),
        ends("many_names", "limit.host_calls").noting(&["network"]),
    ])
}

pub(super) fn spin() -> Row {
    Row::Calls(vec![ends("run", "limit.fuel").within(little), ends("run", "limit.deadline").within(short)])
}

pub(super) fn stdout_flood() -> Row {
    Row::Calls(vec![ends("run", "limit.logs"), ends("stderr", "limit.logs"), ends("stubborn", "limit.logs")])
}

pub(super) fn table_growth() -> Row {
    Row::Calls(vec![crashes("run", "unreachable")])
}

pub(super) fn traps() -> Row {
    Row::Calls(vec![
        crashes("run", "unreachable"),
        crashes("out_of_bounds", "memory_out_of_bounds"),
        crashes("wild_pointer", "bad_value"),
    ])
}

pub(super) fn typed_hostile() -> Row {
    Row::In("typed.rs")
}

pub(super) fn typed_misbehaves() -> Row {
    Row::In("typed.rs")
}

pub(super) fn typed_resource() -> Row {
    Row::In("typed.rs")
}

pub(super) fn typed_shapes() -> Row {
    Row::In("typed.rs")
}

pub(super) fn utf16() -> Row {
    Row::Calls(vec![answers("run", "héllo\u{1F600}")])
}

pub(super) fn utf16_half() -> Row {
    Row::Calls(vec![crashes("run", "bad_value")])
}

pub(super) fn utf16_odd() -> Row {
    Row::Calls(vec![crashes("run", "bad_value")])
}

pub(super) fn zero_parts() -> Row {
    Row::Calls(vec![ends("run", "limit.output")])
}
