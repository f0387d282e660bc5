//! The request's body. Pure.

use domain::message::{FunctionSpec, Part, Role};
use serde_json::{Map, Value, json};

use crate::{EndpointKind, Message, ModelRequest};

/// Fields that an agent's options cannot set: they are the loop's own. `n` is among them because several answers would
/// be paid for and one read.
const OWN_FIELDS: [&str; 7] = ["model", "messages", "stream", "stream_options", "tools", "functions", "n"];

pub(super) fn build(kind: EndpointKind, request: &ModelRequest) -> Value {
    let mut body: Map<String, Value> = request
        .options
        .iter()
        .filter(|(name, _)| !OWN_FIELDS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    set("model", json!(request.model.name));
    set("messages", messages(request));
    set("stream", json!(true));
    set("stream_options", json!({"include_usage": true}));
    if !request.functions.is_empty() {
        let functions = request.functions.iter().map(|function| {
            let FunctionSpec { model_name, description, input_schema, .. } = function;
            json!({
                "type": "function",
                "function": {"name": model_name, "description": description, "parameters": input_schema},
            })
        });
        set("tools", functions.collect());
    }
    if let Some(temperature) = request.temperature {
        set("temperature", json!(temperature));
    }
    if let Some(tokens) = request.max_output_tokens {
        // OpenAI's newer models refuse the old name, and most others do not know the new one.
        let name = match kind {
            EndpointKind::Openai => "max_completion_tokens",
            EndpointKind::OpenaiCompatible => "max_tokens",
        };
        set(name, json!(tokens));
    }
    Value::Object(body)
}

fn messages(request: &ModelRequest) -> Value {
    let system = (!request.system.is_empty()).then(|| json!({"role": "system", "content": request.system}));
    system.into_iter().chain(request.messages.iter().flat_map(message)).collect()
}

/// One message, or one for each result.
fn message(message: &Message) -> Vec<Value> {
    match message.role {
        Role::User => vec![json!({"role": "user", "content": content(&message.parts)})],
        Role::Assistant => {
            let calls: Vec<Value> = message.parts.iter().filter_map(call).collect();
            let text = domain::message::text_of(&message.parts);
            match (calls.is_empty(), text.is_empty()) {
                (true, _) => vec![json!({"role": "assistant", "content": text})],
                (false, true) => vec![json!({"role": "assistant", "content": null, "tool_calls": calls})],
                (false, false) => vec![json!({"role": "assistant", "content": text, "tool_calls": calls})],
            }
        }
        Role::Tool => message.parts.iter().filter_map(result).collect(),
    }
}

/// A plain string where there is only text: not every provider takes a list.
fn content(parts: &[Part]) -> Value {
    if !parts.iter().any(|part| matches!(part, Part::Image { .. })) {
        return json!(domain::message::text_of(parts));
    }
    let pieces = parts.iter().filter_map(|part| match part {
        Part::Text { text } => Some(json!({"type": "text", "text": text})),
        Part::Image { media_type, data } => {
            Some(json!({"type": "image_url", "image_url": {"url": format!("data:{media_type};base64,{data}")}}))
        }
        Part::ToolCall { .. } | Part::ToolResult { .. } => None,
    });
    pieces.collect()
}

fn call(part: &Part) -> Option<Value> {
    let Part::ToolCall { provider_id, name, arguments, .. } = part else { return None };
    let arguments = match arguments {
        // They were not JSON; the model gets back what it wrote.
        Value::String(text) => text.clone(),
        json => json.to_string(),
    };
    Some(json!({"id": provider_id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

fn result(part: &Part) -> Option<Value> {
    let Part::ToolResult { provider_id, text, .. } = part else { return None };
    Some(json!({"role": "tool", "tool_call_id": provider_id, "content": text}))
}
