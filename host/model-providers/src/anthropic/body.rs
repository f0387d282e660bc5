//! The request's body. Pure.

use domain::message::{FunctionSpec, Part, Role};
use serde_json::{Map, Value, json};

use crate::{Message, ModelRequest, names};

/// Fields that an agent's options cannot set: they are the loop's own.
const OWN_FIELDS: [&str; 5] = ["model", "messages", "system", "stream", "tools"];
/// `max_tokens` when nobody set one: the field is required, and every model in use takes this much.
const OUTPUT_TOKENS_DEFAULT: u64 = 8192;

pub(super) fn build(request: &ModelRequest) -> Value {
    let mut body: Map<String, Value> = request
        .options
        .iter()
        .filter(|(name, _)| !OWN_FIELDS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // What a model thinks counts as its output: room for the answer comes on top.
    let thinking = request.options.get("thinking").and_then(|thinking| thinking["budget_tokens"].as_u64()).unwrap_or(0);
    match request.max_output_tokens {
        Some(tokens) => {
            // A budget may leave less than the thinking alone may take, and that is refused.
            if u64::from(tokens) <= thinking {
                body.remove("thinking");
            }
            body.insert("max_tokens".to_owned(), json!(tokens))
        }
        None if body.contains_key("max_tokens") => None,
        None => body.insert("max_tokens".to_owned(), json!(OUTPUT_TOKENS_DEFAULT.saturating_add(thinking))),
    };
    let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
    set("model", json!(request.model.name));
    set("messages", messages(request));
    set("stream", json!(true));
    if !request.system.is_empty() {
        set("system", json!(request.system));
    }
    if !request.functions.is_empty() {
        let functions = request.functions.iter().map(|function| {
            let FunctionSpec { model_name, description, input_schema, .. } = function;
            json!({"name": model_name, "description": description, "input_schema": input_schema})
        });
        set("tools", functions.collect());
    }
    if let Some(temperature) = request.temperature {
        set("temperature", json!(temperature));
    }
    Value::Object(body)
}

/// Messages of one role that follow each other are one: so all results of a step stand together, before what the user
/// says next.
fn messages(request: &ModelRequest) -> Value {
    let mut told: Vec<(&str, Vec<Value>)> = Vec::new();
    for message in &request.messages {
        let role = match message.role {
            Role::User | Role::Tool => "user",
            Role::Assistant => "assistant",
        };
        let mut blocks: Vec<Value> = Vec::new();
        for (part, block) in message.parts.iter().filter_map(|part| Some((part, block(request, message, part)?))) {
            match (message.role, part, blocks.last_mut()) {
                (Role::Tool, Part::Image { .. }, Some(result)) => add_to_result(result, block),
                _ => blocks.push(block),
            }
        }
        match told.last_mut() {
            // An empty message is refused.
            _ if blocks.is_empty() => {}
            Some((last, before)) if *last == role => before.extend(blocks),
            _ => told.push((role, blocks)),
        }
    }
    told.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// What a result shows is part of it.
fn add_to_result(result: &mut Value, image: Value) {
    let content = match result["content"].take() {
        Value::Array(blocks) => blocks,
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        _ => Vec::new(),
    };
    result["content"] = content.into_iter().chain([image]).collect();
}

fn block(request: &ModelRequest, message: &Message, part: &Part) -> Option<Value> {
    match part {
        // An empty text is refused.
        Part::Text { text } => (!text.trim().is_empty()).then(|| json!({"type": "text", "text": text})),
        // A model's own images are not taken back.
        Part::Image { .. } if message.role == Role::Assistant => Some(json!({"type": "text", "text": "[an image]"})),
        Part::Image { media_type, data } => {
            Some(json!({"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}))
        }
        Part::Reasoning { provider, data } => (*provider == request.model.provider).then(|| data.clone()),
        Part::ToolCall { provider_id, name, arguments, .. } => {
            let input = match arguments {
                Value::Object(_) => arguments.clone(),
                // It must be an object; the model gets back what it wrote.
                other => json!({"not_an_object": other}),
            };
            Some(json!({
                "type": "tool_use", "id": names::plain(provider_id), "name": names::function(name), "input": input,
            }))
        }
        Part::ToolResult { provider_id, is_error, text, .. } => {
            let mut result = json!({"type": "tool_result", "tool_use_id": names::plain(provider_id)});
            if !text.trim().is_empty() {
                result["content"] = json!(text);
            }
            if *is_error {
                result["is_error"] = json!(true);
            }
            Some(result)
        }
    }
}
