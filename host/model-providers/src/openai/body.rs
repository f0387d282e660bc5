//! The request's body. Pure.

use domain::message::{FunctionSpec, Part, Role};
use serde_json::{Map, Value, json};

use super::Flavor;
use crate::{Message, ModelRequest, names, stream::OUTPUT_LIMITS};

/// Fields that an agent's options cannot set: they are the loop's own. `n` is among them because several answers would
/// be paid for and one read.
const OWN_FIELDS: [&str; 7] = ["model", "messages", "stream", "stream_options", "tools", "functions", "n"];
/// What Gemini takes for a call that it did not sign itself, such as one of another model.
const NOT_SIGNED: &str = "skip_thought_signature_validator";

pub(super) fn build(flavor: Flavor, request: &ModelRequest) -> Value {
    let mut body: Map<String, Value> = request
        .options
        .iter()
        .filter(|(name, _)| !OWN_FIELDS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(tokens) = request.max_output_tokens {
        // OpenAI's newer models refuse the old name, and most others do not know the new one.
        let [new, old] = OUTPUT_LIMITS;
        body.retain(|name, _| !OUTPUT_LIMITS.contains(&name.as_str()));
        body.insert(if flavor == Flavor::Openai { new } else { old }.to_owned(), json!(tokens));
    }
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    set("model", json!(request.model.name));
    set("messages", messages(flavor, request));
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
    if let (Some(schema), Flavor::Openai | Flavor::Gemini) = (&request.output_schema, flavor) {
        // Not `strict`: it takes only a part of JSON Schema, and refuses the rest.
        set("response_format", json!({"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}));
    }
    Value::Object(body)
}

fn messages(flavor: Flavor, request: &ModelRequest) -> Value {
    let system = (!request.system.is_empty()).then(|| json!({"role": "system", "content": request.system}));
    let said = request.messages.iter().flat_map(|one| message(flavor, request, one));
    system.into_iter().chain(said).collect()
}

/// One message, or one for each result.
fn message(flavor: Flavor, request: &ModelRequest, message: &Message) -> Vec<Value> {
    match message.role {
        Role::User => vec![json!({"role": "user", "content": content(&message.parts)})],
        Role::Assistant => {
            let calls: Vec<Value> =
                message.parts.iter().filter_map(|part| call(flavor, request, message, part)).collect();
            let mut text = domain::message::text_of(&message.parts);
            if text.is_empty() && message.parts.iter().any(|part| matches!(part, Part::Image { .. })) {
                // A model's own images are not taken back.
                text.push_str("[an image]");
            }
            match (calls.is_empty(), text.is_empty()) {
                // Some providers refuse an empty message: an answer may have been cut before its first word.
                (true, true) => Vec::new(),
                (true, false) => vec![json!({"role": "assistant", "content": text})],
                (false, true) => vec![json!({"role": "assistant", "content": null, "tool_calls": calls})],
                (false, false) => vec![json!({"role": "assistant", "content": text, "tool_calls": calls})],
            }
        }
        Role::Tool => message.parts.iter().filter_map(result).chain(images_of_results(&message.parts)).collect(),
    }
}

/// A result is a text here. What it shows follows all results of the step, as if the user had sent it.
fn images_of_results(parts: &[Part]) -> Option<Value> {
    let images: Vec<Part> = parts.iter().filter(|part| matches!(part, Part::Image { .. })).cloned().collect();
    let said = Part::text("The images of the results above, in their order:");
    let shown = |images: &[Part]| json!({"role": "user", "content": content(&[&[said][..], images].concat())});
    (!images.is_empty()).then(|| shown(&images))
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
        Part::Reasoning { .. } | Part::ToolCall { .. } | Part::ToolResult { .. } => None,
    });
    pieces.collect()
}

fn call(flavor: Flavor, request: &ModelRequest, message: &Message, part: &Part) -> Option<Value> {
    let Part::ToolCall { provider_id, name, arguments, .. } = part else { return None };
    let arguments = match arguments {
        // They were not JSON; the model gets back what it wrote.
        Value::String(text) => text.clone(),
        json => json.to_string(),
    };
    let mut call = json!({
        "id": provider_id, "type": "function", "function": {"name": names::function(name), "arguments": arguments},
    });
    let kept = message.parts.iter().find_map(|part| match part {
        Part::Reasoning { provider, data }
            if *provider == request.model.provider && data["tool_call"] == *provider_id =>
        {
            Some(data["extra_content"].clone())
        }
        _ => None,
    });
    // Newer models of Gemini refuse a call without a signature.
    let must_be_signed = flavor == Flavor::Gemini && request.model.name.contains("gemini-3");
    let not_signed = || json!({"google": {"thought_signature": NOT_SIGNED}});
    if let Some(extra) = kept.or_else(|| must_be_signed.then(not_signed)) {
        call["extra_content"] = extra;
    }
    Some(call)
}

fn result(part: &Part) -> Option<Value> {
    let Part::ToolResult { provider_id, text, .. } = part else { return None };
    Some(json!({"role": "tool", "tool_call_id": provider_id, "content": text}))
}
