//! Components with plain typed exports: tools without a toolbox, and sealed like any other.

use domain::{Limits, message::Part};
use serde_json::{Value, json};
use tool_api::{ArtifactHash, InspectError, Inspection, Manifest, Outcome, Rejection, Status, ToolInspector, Upload};

use crate::jar::{Jar, call, guest, resident_bytes, upload, wat};

/// Memory that a hostile call may leave in this process.
const HOST_GROWTH_BYTES_MAX: u64 = 96 << 20;
const ECHO: &str = "acme:shapes/echo@1.2.0";

async fn inspect(jar: &Jar, guest_name: &str, manifest: Value) -> Result<Inspection, Rejection> {
    let component = guest(guest_name);
    let manifest: Manifest = serde_json::from_value(manifest).unwrap();
    let upload = Upload { manifest: Some(manifest), ..upload(&component) };
    match jar.executor.inspect(upload, &component).await {
        Ok(inspection) => Ok(inspection),
        Err(InspectError::Rejected(rejection)) => Err(rejection),
        Err(InspectError::Failed(error)) => panic!("{error}"),
    }
}

fn text(outcome: &Outcome) -> &str {
    match outcome.content.as_slice() {
        [Part::Text { text }] => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_be_a_tool_is_told_why() {
    let jar = Jar::new();
    let rejection = jar.rejection(wat("typed_resource")).await;
    assert_eq!(rejection.code, "component.untranslatable_type");
    for words in ["`keep`", "`it`", "`own<blob>`"] {
        assert!(rejection.detail.contains(words), "{rejection}");
    }
    let rejection = jar.rejection(wat("no_toolbox")).await;
    assert_eq!(rejection.code, "component.no_toolbox");
    assert!(rejection.detail.contains("WIT") && rejection.detail.contains("SDK"), "{rejection}");
}

#[tokio::test]
async fn a_manifest_fits_its_component_or_is_refused() {
    let jar = Jar::new();
    let description = json!({"description": "Adds."});
    let rejection = inspect(&jar, "calc", json!({"functions": {"evaluate": description}})).await.unwrap_err();
    assert_eq!(rejection.code, "manifest.not_needed");
    let rejection = inspect(&jar, "typed_shapes", json!({"functions": {"subtract": description}})).await.unwrap_err();
    assert_eq!(rejection.code, "manifest.unknown_function");
    assert!(rejection.detail.contains("`subtract`") && rejection.detail.contains("`add`"), "{rejection}");

    let bytes = format!("{ECHO}#bytes");
    let manifest = json!({
        "functions": {"add": description, bytes.as_str(): {"description": "Gives bytes back."}},
        "requires": {"http": [{"host": "api.example.com", "reason": "rates"}]},
    });
    let inspection = inspect(&jar, "typed_shapes", manifest).await.unwrap();
    let described = |name: &str| {
        let function = inspection.functions.iter().find(|function| function.name.as_str() == name);
        function.unwrap().description.clone()
    };
    assert_eq!(described("add"), "Adds.");
    assert_eq!(described("echo-bytes"), "Gives bytes back.");
    assert_eq!(described("shout"), "Calls `shout`.");
    assert_eq!(inspection.requires["http"][0]["reason"], "rates");
}

#[tokio::test]
async fn typed_exports_become_functions() {
    let inspection = Jar::new().inspect(guest("typed_shapes")).await;
    assert_eq!(inspection.contract, "wit");
    let mut names: Vec<_> = inspection.functions.iter().map(|function| function.name.as_str()).collect();
    names.sort();
    let mut expected = vec![
        "add",
        "check",
        "divide",
        "shout",
        "echo-attempts",
        "echo-bytes",
        "echo-floats",
        "echo-maybe",
        "echo-nothing",
        "echo-numbers",
        "echo-points",
        "echo-shapes",
        "echo-styled",
        "echo-texts",
        "read-the-clock-of-this-fe6a2848",
    ];
    expected.sort();
    assert_eq!(names, expected);
    let function = |name: &str| inspection.functions.iter().find(|function| function.name.as_str() == name).unwrap();
    let add = function("add");
    assert_eq!(add.input_schema["required"], json!(["left-hand", "right-hand"]));
    assert_eq!(add.input_schema["properties"]["left-hand"]["maximum"], u32::MAX);
    assert_eq!(add.output_schema.as_ref().unwrap()["type"], "integer");
    assert_eq!(function("shout").output_schema, None, "it answers in text alone");
}

/// Each function of `echo` gives back what it got.
#[tokio::test]
async fn every_kind_of_type_crosses_both_ways() {
    let jar = Jar::new();
    let shapes = jar.load("typed_shapes").await;
    let integers = json!({
        "a": -128, "b": 255, "c": -32768, "d": 65535, "e": -2_147_483_648i64, "f": 4_294_967_295u32,
        "g": "-9223372036854775808", "h": "18446744073709551615",
    });
    for (function, arguments, answer) in [
        ("numbers", json!({"it": integers}), integers.clone()),
        ("floats", json!({"small": 0.1, "large": -1e300}), json!([0.1, -1e300])),
        ("texts", json!({"letter": "\u{1F514}", "text": "a\u{0}\u{1F514}"}), json!(["\u{1F514}", "a\u{0}\u{1F514}"])),
        ("bytes", json!({"it": "AAECAw=="}), json!("AAECAw==")),
        (
            "points",
            json!({"it": [{"x": 1, "y": -1}, {"x": 0, "y": 0, "label": "origin"}]}),
            json!([{"x": 1, "y": -1, "label": null}, {"x": 0, "y": 0, "label": "origin"}]),
        ),
        (
            "styled",
            json!({"colour": "green", "styles": ["under-line", "bold"]}),
            json!(["green", ["bold", "under-line"]]),
        ),
        (
            "shapes",
            json!({"it": [{"circle": 1.5}, {"polygon": [{"x": 1, "y": 2, "label": null}]}, {"nothing": null}]}),
            json!([{"circle": 1.5}, {"polygon": [{"x": 1, "y": 2, "label": null}]}, {"nothing": null}]),
        ),
        ("maybe", json!({}), json!(null)),
        ("maybe", json!({"it": {"some": null}}), json!({"some": null})),
        ("maybe", json!({"it": {"some": 7}}), json!({"some": 7})),
        ("attempts", json!({"it": [{"ok": 1}, {"err": "no"}]}), json!([{"ok": 1}, {"err": "no"}])),
    ] {
        let outcome = jar.outcome(shapes, &format!("echo-{function}"), arguments).await;
        assert_eq!(outcome.status, Status::Ok, "{function}: {outcome:?}");
        assert_eq!(outcome.structured, Some(answer.clone()), "{function}");
        assert_eq!(text(&outcome), answer.to_string(), "{function}");
    }
}

#[tokio::test]
async fn a_function_answers_in_its_own_words() {
    let jar = Jar::new();
    let shapes = jar.load("typed_shapes").await;
    for (function, arguments, status, words, structured) in [
        ("add", json!({"left-hand": 40, "right-hand": 2}), Status::Ok, "42", Some(json!(42))),
        ("shout", json!({"text": "quiet"}), Status::Ok, "QUIET", None),
        ("divide", json!({"dividend": "84", "divisor": 2}), Status::Ok, "42", Some(json!(42))),
        ("divide", json!({"dividend": 1, "divisor": 0}), Status::ToolError, "1 cannot be divided by 0", None),
        ("check", json!({"even": 2}), Status::Ok, "done", None),
        ("check", json!({"even": 3}), Status::ToolError, "3", Some(json!(3))),
        ("echo-nothing", json!({}), Status::Ok, "done", None),
    ] {
        let outcome = jar.outcome(shapes, function, arguments).await;
        assert_eq!((outcome.status, text(&outcome), &outcome.structured), (status, words, &structured), "{function}");
        assert_eq!(outcome.code, None, "{function}");
    }
    let finished = jar.call(call(shapes, "shout", json!({"text": "quiet"}))).await;
    assert_eq!(finished.receipt.contract, "wit");
    assert!(finished.receipt.fuel_used > 0 && finished.receipt.memory_peak_bytes > 0, "{:?}", finished.receipt);
    assert_eq!(finished.receipt.logs[0].text, "shouting 5 bytes");
}

#[tokio::test]
async fn the_example_measures_shapes() {
    let jar = Jar::new();
    let typed = jar.load("typed").await;
    let rectangle = json!({"corner": {"x": 1, "y": 2}, "width": 3, "height": 4});
    let outcome = jar.outcome(typed, "shapes-area", json!({"shape": {"rectangle": rectangle}})).await;
    assert_eq!(outcome.structured, Some(json!(12.0)), "{outcome:?}");
    let outcome = jar.outcome(typed, "shapes-bounds", json!({"shape": {"circle": 1}, "margin": 0.5})).await;
    assert_eq!(outcome.structured.unwrap()["width"], 3.0);
}

#[tokio::test]
async fn arguments_that_do_not_fit_cost_nothing() {
    let jar = Jar::new();
    let shapes = jar.load("typed_shapes").await;
    for (function, arguments, words) in [
        ("add", json!({"left-hand": 1}), "/right-hand: this is missing"),
        ("add", json!({"left-hand": 1, "right-hand": -1}), "/right-hand: use an integer from 0 to 4294967295"),
        ("divide", json!({"dividend": "9223372036854775808", "divisor": 1}), "/dividend: use an integer from"),
        ("echo-bytes", json!({"it": "AAE"}), "/it: this is not base64"),
        ("echo-points", json!({"it": [{"x": 1, "y": 1}, {"x": 1}]}), "/it/1/y: this is missing"),
    ] {
        let finished = jar.call(call(shapes, function, arguments)).await;
        assert_eq!(finished.outcome.status, Status::ToolError);
        assert_eq!(finished.outcome.code.as_deref(), Some("tool.bad_arguments"));
        assert!(text(&finished.outcome).starts_with(words), "{:?}", finished.outcome);
        assert_eq!(finished.receipt.fuel_used, 0);
    }
}

struct Case {
    function: &'static str,
    arguments: Value,
    end: &'static str,
}

/// The code of an outcome, or its kind of crash.
fn end(outcome: &Outcome) -> &str {
    match (&outcome.code, &outcome.trap) {
        (Some(code), _) => code,
        (None, Some(trap)) => &trap.kind,
        (None, None) => outcome.status.as_str(),
    }
}

async fn each_ends(jar: &Jar, artifact: ArtifactHash, cases: Vec<Case>) {
    let calc = jar.load("calc").await;
    for Case { function, arguments, end: expected } in cases {
        let before = resident_bytes();
        let mut call = call(artifact, function, arguments);
        call.limits = Limits { fuel: 50_000_000, ..call.limits };
        let outcome = jar.call(call).await.outcome;
        assert_eq!(end(&outcome), expected, "{function}: {outcome:?}");
        let growth = resident_bytes().saturating_sub(before);
        assert!(growth < HOST_GROWTH_BYTES_MAX, "{function} moved the host by {} MiB", growth >> 20);
        jar.answers(calc).await.unwrap();
    }
}

fn case(function: &'static str, arguments: Value, end: &'static str) -> Case {
    Case { function, arguments, end }
}

#[tokio::test]
async fn a_typed_component_that_lies_ends_its_own_call() {
    let jar = Jar::new();
    let liar = jar.inspect(wat("typed_hostile")).await.artifact;
    let numbers = json!({"numbers": [1, 2, 3]});
    let cases = vec![
        case("count", numbers.clone(), "ok"),
        // 10^9 values in 8 KB of memory.
        case("amplify", json!({}), "limit.output"),
        // A megabyte of zeros is six megabytes of JSON; and less than that is still more than a call may answer.
        case("zeros", json!({"length": 1_000_000}), "limit.output"),
        case("zeros", json!({"length": 100}), "ok"),
        case("zeros", json!({"length": 300_000}), "limit.output"),
        case("zero-bytes", json!({"length": 1_000_000}), "limit.output"),
        case("empty-lists", json!({"length": 250_000}), "limit.output"),
        case("empty-lists", json!({"length": 100_000}), "limit.output"),
        case("outside", json!({}), "bad_value"),
        case("nowhere", json!({}), "bad_value"),
        case("bad-text", json!({}), "bad_value"),
        case("letter", json!({"number": 65}), "ok"),
        case("letter", json!({"number": 0xd800}), "bad_value"),
        case("colour-of", json!({"number": 1}), "ok"),
        case("colour-of", json!({"number": 2}), "bad_value"),
        case("nan", json!({}), "ok"),
        case("outside-room", numbers.clone(), "bad_value"),
        case("unaligned-room", numbers.clone(), "bad_value"),
        case("room-spins", numbers, "limit.fuel"),
        case("free-spins", json!({"length": 1}), "limit.fuel"),
        case("free-traps", json!({"length": 1}), "unreachable"),
        case("count", json!({"numbers": vec![1; 200_000]}), "tool.bad_arguments"),
    ];
    each_ends(&jar, liar, cases).await;
    assert_eq!(jar.outcome(liar, "nan", json!({})).await.structured, Some(json!("NaN")));
}

#[tokio::test]
async fn a_typed_component_is_sealed_like_any_other() {
    let jar = Jar::new();
    let guest = jar.load("typed_misbehaves").await;
    let cases = vec![
        case("spin", json!({}), "limit.fuel"),
        case("panic", json!({"words": "out of ideas"}), "unreachable"),
        case("eat", json!({"bytes": 1 << 20}), "ok"),
        case("eat", json!({"bytes": 128 << 20}), "limit.memory"),
        case("texts", json!({"count": 4, "bytes": 10}), "ok"),
        case("texts", json!({"count": 1_000, "bytes": 20_000}), "limit.output"),
        case("numbers", json!({"count": 1_000}), "ok"),
        case("numbers", json!({"count": 500_000}), "limit.output"),
        case("connect", json!({"address": "127.0.0.1:80"}), "denied.network"),
    ];
    each_ends(&jar, guest, cases).await;
    let outcome = jar.outcome(guest, "panic", json!({"words": "out of ideas"})).await;
    assert!(outcome.for_model().contains("out of ideas"), "{outcome:?}");
    let mut spin = call(guest, "spin", json!({}));
    spin.limits = Limits { deadline_ms: 200, fuel: Limits::CEILING.fuel, ..spin.limits };
    assert_eq!(jar.call(spin).await.outcome.code.as_deref(), Some("limit.deadline"));
}
