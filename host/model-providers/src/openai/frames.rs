//! From the chunks of a chat completion to a reply. As lenient as the providers differ: everything may be missing, and
//! what is not known is not looked at.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Flavor;
use crate::{
    StopReason,
    wire::{
        Frames,
        reply::{self, CALLS_MAX, Fault, Reply},
    },
};

pub(super) struct Chunks {
    flavor: Flavor,
    /// Where the call of an index is. A provider that gives all calls one index begins each with an id of its own.
    places: BTreeMap<usize, usize>,
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<i64>,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    /// Thoughts. Some providers have the one name, some the other, and some both with the same text.
    reasoning_content: Option<Value>,
    reasoning: Option<Value>,
    tool_calls: Option<Vec<CallDelta>>,
    images: Option<Vec<ImageDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionDelta>,
    extra_content: Option<Value>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<Value>,
}

#[derive(Deserialize)]
struct ImageDelta {
    image_url: ImageUrl,
}

#[derive(Deserialize)]
struct ImageUrl {
    url: String,
}

impl Chunks {
    pub(super) fn of(flavor: Flavor) -> Chunks {
        Chunks { flavor, places: BTreeMap::new() }
    }

    fn call(&mut self, reply: &mut Reply, delta: CallDelta) -> Result<(), Fault> {
        let is_about_another = delta.id.is_none() && delta.function.is_none();
        if is_about_another && reply.last_call().is_none() {
            return Ok(());
        }
        let place = self.place(reply, &delta)?;
        if let Some(id) = &delta.id {
            reply.call_id(place, id)?;
        }
        if let Some(function) = delta.function {
            if let Some(name) = function.name {
                reply.call_name(place, &name)?;
            }
            match function.arguments {
                None | Some(Value::Null) => {}
                Some(Value::String(piece)) => reply.call_arguments(place, &piece)?,
                // Some providers send the object itself.
                Some(json) => reply.call_arguments(place, &json.to_string())?,
            }
        }
        match delta.extra_content {
            Some(extra) if !extra.is_null() && self.flavor != Flavor::Openai => {
                let bytes = extra.to_string().len();
                reply.reasoning(json!({"tool_call": reply.shown_id(place), "extra_content": extra}), bytes)
            }
            _ => Ok(()),
        }
    }

    /// Which call a fragment belongs to.
    fn place(&mut self, reply: &mut Reply, delta: &CallDelta) -> Result<usize, Fault> {
        let id = delta.id.as_deref().filter(|id| !id.is_empty());
        let goes_on = |place: usize| {
            let begun = reply.call(place).map(|call| call.id.as_str()).unwrap_or_default();
            id.is_none_or(|id| begun.is_empty() || id == begun)
        };
        match delta.index {
            Some(index) => {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                if index >= CALLS_MAX {
                    return Err(Fault::Bad("a tool call's index is above 63"));
                }
                // Another id alone is not enough: some providers make up a new one for every fragment.
                let is_named = delta.function.as_ref().and_then(|function| function.name.as_deref());
                let begins = is_named.is_some_and(|name| !name.is_empty());
                match self.places.get(&index) {
                    Some(&place) if goes_on(place) || !begins => Ok(place),
                    _ => {
                        let place = reply.begin_call()?;
                        self.places.insert(index, place);
                        Ok(place)
                    }
                }
            }
            // Left out: a new id is a new call, no id goes on with the last one.
            None => match reply.last_call() {
                Some(last) if goes_on(last) => Ok(last),
                _ => reply.begin_call(),
            },
        }
    }
}

impl Frames for Chunks {
    fn read(&mut self, reply: &mut Reply, data: &str) -> Result<Option<String>, Fault> {
        if data.trim() == "[DONE]" {
            reply.done();
            return Ok(None);
        }
        let chunk: Chunk =
            serde_json::from_str(data).map_err(|_| Fault::Bad("an event is not a JSON chunk of a chat completion"))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(Fault::Said(reply::said(&error)));
        }
        reply.frame()?;
        if let Some(usage) = &chunk.usage {
            let (input, cached, output) = usage_of(usage);
            reply.usage(input, cached, output);
        }
        let mut text = String::new();
        for choice in chunk.choices.unwrap_or_default() {
            // Only one answer was asked for.
            if choice.index.unwrap_or(0) != 0 {
                continue;
            }
            if let Some(delta) = choice.delta {
                text.extend([delta.content, delta.refusal].into_iter().flatten());
                let thoughts = [&delta.reasoning_content, &delta.reasoning].into_iter().flatten();
                if let Some(thought) = thoughts.filter_map(Value::as_str).find(|thought| !thought.is_empty()) {
                    reply.unseen(thought)?;
                }
                for call in delta.tool_calls.unwrap_or_default() {
                    self.call(reply, call)?;
                }
                for image in delta.images.unwrap_or_default() {
                    reply.image(&image.image_url.url)?;
                }
            }
            if let Some(reason) = choice.finish_reason {
                reply.stop(match reason.as_str() {
                    "length" => StopReason::Length,
                    "content_filter" => StopReason::ContentFilter,
                    "tool_calls" | "function_call" => StopReason::ToolCalls,
                    _ => StopReason::Done,
                });
            }
        }
        reply.text(&text)?;
        Ok((!text.is_empty()).then_some(text))
    }
}

/// Input, cached input and output. What a model thought is output that was paid for: Gemini has it in the total alone.
fn usage_of(usage: &Value) -> (u64, u64, u64) {
    let tokens = |pointer| usage.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let input = tokens("/prompt_tokens");
    let output = tokens("/completion_tokens").max(tokens("/total_tokens").saturating_sub(input));
    (input, tokens("/prompt_tokens_details/cached_tokens"), output)
}
