//! Answers with everything it was told: the arguments, the call's context and the configuration.

use belljar_tool::{config, context, log, tool, toolbox};
use serde_json::{Map, Value, json};

/// Answers with what it was given, and logs one line at each level.
#[tool]
fn run(args: Map<String, Value>) -> belljar_tool::Result<Value> {
    log::trace!("trace line");
    log::debug!("debug line");
    log::info!("info line");
    log::warn!("warn line");
    log::error!("error line");
    log::critical!("critical line");
    println!("a line on standard output");
    let call = context::get();
    Ok(json!({
        "arguments": args,
        "call": {
            "call_id": call.call_id,
            "idempotency_key": call.idempotency_key,
            "attempt": call.attempt,
            "deadline_unix_ms": call.deadline_unix_ms,
            "agent": call.agent,
            "conversation": call.conversation,
            "external_user_id": call.external_user_id,
            "context": call.context.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        },
        "config": config::get_all()?.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    }))
}

/// Answers with one config value.
#[tool]
fn config_value(key: String) -> belljar_tool::Result<Value> {
    Ok(json!({ "value": config::get(&key)? }))
}

toolbox!(run, config_value);
fn main() {}
