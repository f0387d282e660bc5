use domain::Problem;
use serde_json::json;

use super::*;

fn agent(extra: Value) -> Value {
    let mut agent = json!({"name": "clerk", "system_prompt": "Help.", "model": "demo"});
    domain::json::merge(&mut agent, extra);
    agent
}

#[track_caller]
fn refused(extra: Value) -> (&'static str, Vec<String>) {
    let error = AgentSpec::parse(agent(extra)).unwrap_err();
    (error.code(), error.fields().into_iter().map(|field| field.pointer).collect())
}

#[test]
fn a_mistake_is_named_with_its_place() {
    let long = |bytes| "x".repeat(bytes);
    for (extra, pointer) in [
        (json!({"colour": "red"}), "/colour"),
        (json!({"name": "Clerk"}), "/name"),
        (json!({"name": 1}), "/name"),
        (json!({"model": 5}), "/model"),
        (json!({"model": {"name": "gpt-4o", "size": 1}}), "/model/size"),
        (json!({"model": {"name": "gpt-4o", "temperature": 3}}), "/model/temperature"),
        (json!({"model": {"name": "gpt-4o", "max_output_tokens": 0}}), "/model/max_output_tokens"),
        (json!({"model": "Open AI/gpt-4o"}), "/model/provider"),
        (json!({"model": "openai/"}), "/model/name"),
        (json!({"fallback_models": ["demo", {"name": 1}]}), "/fallback_models/1/name"),
        (json!({"fallback_models": ["a", "b", "c", "d", "e"]}), "/fallback_models"),
        (json!({"temperature": "warm"}), "/temperature"),
        (json!({"temperature": -1}), "/temperature"),
        (json!({"temperature": "NaN"}), "/temperature"),
        (json!({"system_prompt": long(SYSTEM_PROMPT_BYTES_MAX + 1)}), "/system_prompt"),
        (json!({"system_prompt": "a\0b"}), "/system_prompt"),
        (json!({"description": long(DESCRIPTION_BYTES_MAX + 1)}), "/description"),
        (json!({"metadata": {"a": long(METADATA_BYTES_MAX)}}), "/metadata"),
        (json!({"metadata": []}), "/metadata"),
        (json!({"limits": {"max_steps": 65}}), "/limits/max_steps"),
        (json!({"limits": {"max_steps": 0}}), "/limits/max_steps"),
        (json!({"limits": {"deadline_seconds": 604801}}), "/limits/deadline_seconds"),
        (json!({"limits": {"max_cost": {"amount": "0", "currency": "USD"}}}), "/limits/max_cost"),
        (json!({"limits": {"max_cost": {"amount": "-1", "currency": "USD"}}}), "/limits/max_cost"),
        (json!({"limits": {"max_cost": {"amount": "many", "currency": "USD"}}}), "/limits/max_cost/amount"),
        (json!({"context": {"strategy": "forget"}}), "/context/strategy"),
        (json!({"context": {"max_input_tokens": 0}}), "/context/max_input_tokens"),
        (json!({"tools": vec![json!({"tool": "calc", "version": "latest"}); 65]}), "/tools"),
        (json!({"tools": [{"tool": "calc", "version": "newest"}]}), "/tools/0/version"),
        (json!({"tools": [{"tool": "calc", "version": "latest", "limits": {"fuel": "1"}}]}), "/tools/0/limits/fuel"),
        (json!({"tools": [{"tool": "calc", "version": "latest", "grants": "all"}]}), "/tools/0/grants"),
        (json!({"tools": [{"tool": "calc", "version": "latest", "grants": {"gpu": 1}}]}), "/tools/0/grants/gpu"),
        (json!({"tools": [{"tool": "calc", "version": "latest", "record": "yes"}]}), "/tools/0/record"),
        (
            json!({"tools": [{"tool": "calc", "version": "latest", "grants": {"http": [{"host": "https://a.example"}]}}]}),
            "/tools/0/grants/http/0/host",
        ),
        (
            json!({"tools": [{"tool": "calc", "version": "latest", "grants": {"config": {"a": 1}}}]}),
            "/tools/0/grants/config/a",
        ),
        (json!({"output_schema": {"type": "string"}}), "/output_schema"),
        (json!({"output_schema": {"type": "object", "required": 1}}), "/output_schema"),
        (json!({"output_schema": {"type": "object", "$ref": "https://x.test"}}), "/output_schema"),
    ] {
        let shown = extra.to_string().chars().take(120).collect::<String>();
        assert_eq!(refused(extra), ("agent.invalid", vec![pointer.to_owned()]), "{shown}");
    }
    assert_eq!(AgentSpec::parse(json!("clerk")).unwrap_err().code(), "agent.invalid");
    assert_eq!(refused(json!({"name": null})).0, "agent.invalid");
}

#[test]
fn a_word_that_nothing_knows_is_refused_at_its_place() {
    let tool = |extra: Value| {
        let mut tool = json!({"tool": "calc", "version": "latest"});
        domain::json::merge(&mut tool, extra);
        json!({"tools": [{"tool": "clock", "version": "latest"}, tool]})
    };
    for (extra, code, pointers) in [
        (json!({"context": {"strategy": "forget"}}), "agent.invalid", vec!["/context/strategy"]),
        (
            json!({"context": {"strategy": "summarize", "max_input_tokens": 999}}),
            "agent.invalid",
            vec!["/context/max_input_tokens"],
        ),
        (tool(json!({"approval": "sometimes"})), "agent.invalid", vec!["/tools/1/approval"]),
        (
            tool(json!({"approval": {"functions": {"now": "maybe"}}})),
            "agent.invalid",
            vec!["/tools/1/approval/functions/now"],
        ),
    ] {
        assert_eq!(refused(extra.clone()), (code, pointers.into_iter().map(Into::into).collect()), "{extra}");
    }
    // What an answer tells is not written, so that it can be sent back.
    let nothing = tool(json!({"approval": "never", "record": false, "missing": [{"grant": "http a.example"}]}));
    assert_eq!(AgentSpec::parse(agent(nothing)).unwrap().tools.len(), 2);
}

#[test]
fn a_model_is_a_string_or_an_object() {
    let model = |extra| AgentSpec::parse(agent(extra)).unwrap().model;
    let short = model(json!({"model": "openai/org/gpt-4o"}));
    assert_eq!((short.provider.as_deref(), short.name.as_str()), (Some("openai"), "org/gpt-4o"));
    assert_eq!(short, model(json!({"model": {"provider": "openai", "name": "org/gpt-4o"}})));
    assert_eq!(serde_json::to_value(&short).unwrap(), json!({"provider": "openai", "name": "org/gpt-4o"}));
    assert_eq!(model(json!({"temperature": "0.5"})).temperature, Some(0.5));
    assert_eq!(model(json!({"temperature": 1})).temperature, Some(1.0));
    assert_eq!(model(json!({"model": {"name": "a", "temperature": 1.5}})).temperature, Some(1.5));
}

#[test]
fn a_patch_merges_over_what_is_there() {
    let present = AgentSpec::parse(agent(json!({"temperature": 0.5, "description": "old"}))).unwrap();
    let present = present.with_tools(Vec::new());
    let patched = |patch| AgentSpec::patched(&present, patch).unwrap();
    assert_eq!(patched(json!({})), present.clone().with_tools(Vec::new()));
    assert_eq!(patched(json!({"description": null})).description, None);
    assert_eq!(patched(json!({"temperature": "1.5"})).model.temperature, Some(1.5));
    assert_eq!(patched(json!({"temperature": null})).model.temperature, None);
    assert_eq!(patched(json!({"model": "demo"})).model, ModelChoice::from("demo"));
    assert!(AgentSpec::patched(&present, json!({"id": "agt_1"})).is_err());
    assert!(AgentSpec::patched(&present, json!([])).is_err());
}

#[test]
fn defaults_are_those_of_the_contract() {
    let spec = AgentSpec::parse(agent(json!({}))).unwrap();
    assert_eq!(spec.limits.steps(), STEPS_DEFAULT);
    assert_eq!(spec.limits.deadline(), Duration::from_secs(300));
    assert_eq!(spec.context.strategy, Strategy::Truncate);
}
