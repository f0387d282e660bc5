use domain::{Problem, Timestamp};
use serde_json::json;
use tool_api::Rejection;

use super::*;
use crate::tools::ShownFunction;

fn version(requires: Value) -> ToolVersion {
    let function = |name: &str| ShownFunction {
        name: name.parse().unwrap(),
        model_name: format!("calc__{name}"),
        description: String::new(),
        input_schema: json!({"type": "object"}),
        output_schema: None,
    };
    ToolVersion {
        version: ArtifactHash::of(b"calc"),
        tool: "calc".parse().unwrap(),
        tool_id: Uuid::from_u128(1).into(),
        number: 1,
        label: None,
        status: VersionStatus::Ready,
        rejection: None,
        functions: vec![function("add"), function("divide")],
        requires,
        contract: None,
        size_bytes: 4,
        created_at: Timestamp::from_unix_us(0),
    }
}

fn spec(extra: Value) -> BindingSpec {
    let mut spec = json!({"tool": "calc", "version": "latest"});
    domain::json::merge(&mut spec, extra);
    crate::json::parse(spec).unwrap()
}

#[track_caller]
fn refused(extra: Value, version: &ToolVersion) -> (&'static str, String) {
    let reason = decide(&spec(extra), version, Limits::CEILING).unwrap_err();
    let error = BindingError { at: 2, reason };
    (error.code(), error.fields()[0].pointer.clone())
}

#[test]
fn a_binding_gives_only_what_there_is() {
    let plain = version(json!({}));
    for (extra, code, pointer) in [
        (json!({"functions": ["add", "power"]}), "binding.function_not_found", "/tools/2/functions/1"),
        (json!({"limits": {"fuel": 100_000_000_001_u64}}), "binding.limit_above_plan", "/tools/2/limits/fuel"),
        (json!({"limits": {"host_calls": 0}}), "binding.limit_above_plan", "/tools/2/limits/host_calls"),
        (json!({"grants": {"config": {"": "x"}}}), "binding.grant_invalid", "/tools/2/grants/config"),
        (json!({"grants": {"config": {"a": "x".repeat(65_536)}}}), "binding.grant_invalid", "/tools/2/grants/config"),
        (json!({"grants": {"scratch_bytes": 0}}), "binding.grant_invalid", "/tools/2/grants/scratch_bytes"),
        (
            json!({"grants": {"key_value": [{"namespace": "a b", "access": "read"}]}}),
            "binding.grant_invalid",
            "/tools/2/grants/key_value",
        ),
        (
            json!({"grants": {"http": [{"host": "a.example", "methods": ["get"]}]}}),
            "binding.grant_invalid",
            "/tools/2/grants/http/0/methods",
        ),
    ] {
        assert_eq!(refused(extra, &plain), (code, pointer.into()));
    }
    for status in [VersionStatus::Compiling, VersionStatus::Rejected] {
        let rejection = Some(Rejection::new("component.not_wasm", "no"));
        let unready = ToolVersion { status, rejection, ..version(json!({})) };
        assert_eq!(refused(json!({}), &unready), ("binding.version_not_ready", "/tools/2".into()));
    }
}

#[test]
fn what_a_tool_asks_for_and_does_not_get_is_named() {
    let asks = version(json!({"config": {"unit": {"reason": "lengths"}, "zone": {"reason": "times"}}}));
    for extra in [json!({}), json!({"grants": "as_requested"}), json!({"grants": {"config": {"unit": "m"}}})] {
        assert_eq!(refused(extra, &asks), ("binding.grant_missing", "/tools/2/grants/config".into()));
    }
    let reason = decide(&spec(json!({"grants": {"config": {"unit": "m"}}})), &asks, Limits::CEILING).unwrap_err();
    assert!(reason.to_string().contains("`zone`") && !reason.to_string().contains("`unit`"), "{reason}");
    let given = spec(json!({"grants": {"config": {"unit": "m", "zone": "UTC", "more": "1"}}}));
    assert_eq!(decide(&given, &asks, Limits::CEILING).unwrap().grants.config.len(), 3);

    let older = version(json!({"http": ["anything"]}));
    assert_eq!(
        refused(json!({"grants": "as_requested"}), &older),
        ("binding.requires_unreadable", "/tools/2/grants".into())
    );
    assert_eq!(decide(&spec(json!({})), &older, Limits::CEILING).unwrap().missing, []);
    let nothing = decide(&spec(json!({"grants": "as_requested"})), &version(json!({})), Limits::CEILING).unwrap();
    assert_eq!(nothing.grants, Grants::default());
}

#[test]
fn a_binding_gives_what_is_asked_for_or_says_what_is_missing() {
    let asks = version(json!({
        "http": [{"host": "a.example", "reason": "weather"}], "key_value": [{"namespace": "notes", "access": "write"}],
    }));
    let given = decide(&spec(json!({"grants": "as_requested"})), &asks, Limits::CEILING).unwrap();
    assert_eq!((given.grants.http[0].host.to_string().as_str(), given.missing.len()), ("a.example", 0));
    let less = spec(json!({"grants": {"http": [{"host": "*.example.com"}]}, "record": true}));
    let less = decide(&less, &asks, Limits::CEILING).unwrap();
    let shown = serde_json::to_value(&less).unwrap();
    assert_eq!(
        shown["missing"],
        json!([{"grant": "http a.example", "reason": "weather"}, {"grant": "key_value notes"}])
    );
    assert_eq!(shown["record"], true);
    assert_eq!(serde_json::to_value(&given).unwrap().get("record"), None);
}

#[test]
fn a_resolved_binding_is_written_like_a_new_one() {
    let asked = spec(json!({"functions": ["add"], "limits": {"fuel": 5}, "grants": {"config": {"a": "b"}}}));
    let bound = decide(&asked, &version(json!({})), Limits::CEILING).unwrap();
    assert_eq!(bound.limits, Limits { fuel: 5, ..Limits::DEFAULT });
    let again: BindingSpec = crate::json::parse(serde_json::to_value(&bound).unwrap()).unwrap();
    assert_eq!(decide(&again, &version(json!({})), Limits::CEILING).unwrap(), bound);
}
