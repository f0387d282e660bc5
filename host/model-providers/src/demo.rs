//! The built-in model: no key, no network, no chance. It shows what an agent does, and tests rely on what it says.
//!
//! A line `/tool__function {json}` of the user calls that function. Otherwise it looks for a bound function that fits
//! the message. After results it says what they say.

mod choose;
mod fill;
mod find;

use std::collections::BTreeSet;

use async_trait::async_trait;
use domain::message::{FunctionSpec, Part, Role, text_of};
use futures::{StreamExt, stream};
use serde_json::{Map, Value};

use crate::{Message, ModelEvent, ModelProvider, ModelRequest, ModelStream, ProviderError, StopReason, Usage, tokens};

pub(crate) struct Demo;

#[derive(Debug, PartialEq)]
enum Reply {
    Text(String),
    Calls(Vec<Call>),
}

/// A function's name and its arguments; a string when they are not JSON.
#[derive(Debug, PartialEq)]
struct Call {
    name: String,
    arguments: Value,
}

#[async_trait]
impl ModelProvider for Demo {
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
        tokens::load().await;
        Ok(stream::iter(events(request)).map(Ok).boxed())
    }
}

fn events(request: &ModelRequest) -> Vec<ModelEvent> {
    let usage = |output_tokens| Usage {
        input_tokens: tokens::count_request(request),
        cached_input_tokens: 0,
        output_tokens,
        reported: true,
    };
    let reply = match (reply(&request.messages, &request.functions), &request.output_schema) {
        (Reply::Text(_), Some(schema)) => Reply::Text(structured(schema, &request.messages)),
        (reply, _) => reply,
    };
    match reply {
        Reply::Calls(calls) => {
            // Told apart from every call before, without any chance.
            let before =
                request.messages.iter().flat_map(|message| &message.parts).filter(|part| is_call(part)).count();
            let output =
                calls.iter().map(|call| tokens::count(&call.name) + tokens::count(&call.arguments.to_string()));
            let end = ModelEvent::End { stop: StopReason::ToolCalls, usage: usage(output.sum()) };
            let unseen = calls.iter().map(|call| format!("{}{}", call.name, call.arguments)).collect();
            let calls = calls.into_iter().enumerate().map(|(n, Call { name, arguments })| ModelEvent::ToolCall {
                provider_id: format!("demo_{}", before + n + 1),
                name,
                arguments,
            });
            [ModelEvent::Unseen(unseen)].into_iter().chain(calls).chain([end]).collect()
        }
        Reply::Text(text) => {
            let most = request.max_output_tokens.map_or(u64::MAX, u64::from);
            let (mut said, mut output, mut stop) = (Vec::new(), 0, StopReason::Done);
            let mut bytes = 0;
            for piece in pieces(&text) {
                bytes += piece.len();
                let tokens = match bytes {
                    ..tokens::COUNTED_BYTES_MAX => tokens::count(piece),
                    // A long answer is estimated: a token has about four bytes.
                    _ => piece.len().div_ceil(4) as u64,
                };
                if output + tokens > most {
                    stop = StopReason::Length;
                    break;
                }
                output += tokens;
                said.push(ModelEvent::Text(piece.to_owned()));
            }
            said.push(ModelEvent::End { stop, usage: usage(output) });
            said
        }
    }
}

/// Of a message without a written call, what is read to find a function and its arguments, in bytes: people ask at the
/// beginning, and every word is compared with every function.
const READ_BYTES_MAX: usize = 4096;

fn reply(messages: &[Message], functions: &[FunctionSpec]) -> Reply {
    if messages.last().is_some_and(|message| message.role == Role::Tool) {
        return Reply::Text(answer(messages));
    }
    let text = said(messages);
    let calls = written_calls(&text);
    if !calls.is_empty() {
        return Reply::Calls(calls);
    }
    let text = &text[..text.floor_char_boundary(READ_BYTES_MAX)];
    match choose::function(text, functions) {
        Some(call) => Reply::Calls(vec![call]),
        None => Reply::Text(introduction(functions)),
    }
}

/// An answer by the agent's schema: with what the results say, or the user where there are none; else an example.
fn structured(schema: &Value, messages: &[Message]) -> String {
    let text = match messages.last() {
        Some(last) if last.role == Role::Tool => answer(messages),
        _ => said(messages),
    };
    let read = fill::Read::new(&text[..text.floor_char_boundary(READ_BYTES_MAX)]);
    let found = fill::fill(schema, &read, &BTreeSet::new()).map(|filled| Value::Object(filled.arguments));
    found.unwrap_or_else(|| fill::example(schema)).to_string()
}

/// What the user said last.
fn said(messages: &[Message]) -> String {
    let said = messages.iter().rfind(|message| message.role == Role::User);
    said.map(|message| text_of(&message.parts)).unwrap_or_default()
}

/// The lines `/tool__function {json}`. A name that is not bound and arguments that are not JSON are passed on, so that
/// one can see what the loop makes of them.
fn written_calls(text: &str) -> Vec<Call> {
    let calls = text.lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix('/')?.split_once(char::is_whitespace).or_else(|| {
            let name = line.trim().strip_prefix('/')?;
            Some((name, ""))
        })?;
        if !name.contains("__") {
            return None;
        }
        let rest = rest.trim();
        let arguments = match rest {
            "" => Value::Object(Map::new()),
            json => serde_json::from_str(json).unwrap_or_else(|_| Value::String(json.to_owned())),
        };
        Some(Call { name: name.to_owned(), arguments })
    });
    calls.collect()
}

/// What the last results say, each with the name of the function that was called.
fn answer(messages: &[Message]) -> String {
    let last = messages.iter().rev().take_while(|message| message.role == Role::Tool).count();
    let (before, results) = messages.split_at(messages.len() - last);
    let name_of = |wanted: &str| {
        let calls = before.iter().rev().flat_map(|message| &message.parts);
        let mut names = calls.filter_map(|part| match part {
            Part::ToolCall { provider_id, name, .. } if provider_id == wanted => Some(name.as_str()),
            _ => None,
        });
        names.next().unwrap_or("the tool")
    };
    let lines = results.iter().flat_map(|message| &message.parts).filter_map(|part| match part {
        Part::ToolResult { provider_id, is_error, text, .. } => {
            let verb = if *is_error { "failed:" } else { "says:" };
            Some(format!("{} {verb} {}", name_of(provider_id), plain(text)))
        }
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A result as a person would write it: the one value of an object without its name, and no quotes around text.
fn plain(text: &str) -> String {
    fn value(value: &Value) -> String {
        match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
    let is_flat = |fields: &Map<String, Value>| fields.values().all(|field| !field.is_object() && !field.is_array());
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) if is_flat(&fields) => match fields.values().next() {
            Some(only) if fields.len() == 1 => value(only),
            _ => fields.iter().map(|(name, field)| format!("{name}: {}", value(field))).collect::<Vec<_>>().join(", "),
        },
        Ok(json) => value(&json),
        Err(_) => text.to_owned(),
    }
}

fn introduction(functions: &[FunctionSpec]) -> String {
    let mut text = String::from(
        "I am Belljar's demo model: a fixed program, not a language model. I call tools and tell what they say.",
    );
    let Some(first) = functions.first() else {
        text.push_str(" This agent has no tools; bind one to it, or choose a real model.");
        return text;
    };
    text.push_str(" No tool of this agent fits your message. I can call:\n");
    for function in functions {
        let description = function.description.lines().next().unwrap_or_default();
        text.push_str(&format!("- {}: {description}\n", function.model_name));
    }
    let example = fill::example(&first.input_schema);
    text.push_str(&format!("To call one, write a line such as:\n/{} {example}", first.model_name));
    text
}

/// Words, each with the space before it, as tokenizers see them.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let word = text.find(|c: char| !c.is_whitespace()).unwrap_or(text.len());
        let end = text[word..].find(char::is_whitespace).map_or(text.len(), |end| word + end);
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn is_call(part: &Part) -> bool {
    matches!(part, Part::ToolCall { .. })
}

#[cfg(test)]
mod tests;
