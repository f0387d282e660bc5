//! From the events of a message to a reply. What is not known is not looked at: new kinds of events and blocks come
//! without notice.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    StopReason,
    wire::{
        Frames,
        reply::{self, Fault, Reply},
    },
};

/// Most blocks of one message: texts, calls and thoughts in turns.
const BLOCKS_MAX: u64 = 512;
/// What the blocks of one message begin with, in bytes of JSON: most of it comes later, as text.
const BEGUN_BYTES_MAX: usize = 1024 * 1024;

#[derive(Default)]
pub(super) struct Blocks {
    open: BTreeMap<u64, Block>,
    /// Of all that blocks began with: parsed, it takes a hundred times as much memory.
    begun_bytes: usize,
    counted: Counted,
}

enum Block {
    /// A tool's call, by its place, and the arguments it began with: they count when none follow.
    Call(usize, Value),
    /// As it is sent back: only texts are added to it.
    Thought(Value, usize),
}

/// As the provider counts: what was read from its cache and what was written to it is not in `input`.
#[derive(Default)]
struct Counted {
    input: u64,
    cache_read: u64,
    cache_written: u64,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: Option<String>,
    index: Option<u64>,
    message: Option<Value>,
    content_block: Option<Value>,
    delta: Option<Value>,
    usage: Option<Value>,
    error: Option<Value>,
}

impl Blocks {
    fn begin(&mut self, reply: &mut Reply, index: u64, mut block: Value) -> Result<Option<String>, Fault> {
        if index >= BLOCKS_MAX {
            return Err(Fault::Bad("a block's index is above 511"));
        }
        match block["type"].as_str().unwrap_or_default() {
            "text" => return Ok(block["text"].as_str().map(str::to_owned)),
            "tool_use" => {
                let place = reply.begin_call()?;
                reply.call_id(place, block["id"].as_str().unwrap_or_default())?;
                reply.call_name(place, block["name"].as_str().unwrap_or_default())?;
                let input = block["input"].take();
                self.begun(input.to_string().len())?;
                self.open.insert(index, Block::Call(place, input));
            }
            "thinking" | "redacted_thinking" => {
                let bytes = block.to_string().len();
                self.begun(bytes)?;
                // Sealed thoughts cannot be counted. They have come all the same.
                reply.unseen(block["thinking"].as_str().unwrap_or_default())?;
                self.open.insert(index, Block::Thought(block, bytes));
            }
            _ => {}
        }
        Ok(None)
    }

    fn begun(&mut self, bytes: usize) -> Result<(), Fault> {
        self.begun_bytes += bytes;
        if self.begun_bytes > BEGUN_BYTES_MAX {
            Err(Fault::Bad("its blocks begin with more than 1 MiB"))
        } else {
            Ok(())
        }
    }

    fn add(&mut self, reply: &mut Reply, index: u64, delta: &Value) -> Result<Option<String>, Fault> {
        let text = |field| delta[field].as_str().unwrap_or_default();
        match (delta["type"].as_str().unwrap_or_default(), self.open.get_mut(&index)) {
            ("text_delta", _) => return Ok(Some(text("text").to_owned())),
            ("input_json_delta", Some(Block::Call(place, _))) => reply.call_arguments(*place, text("partial_json"))?,
            ("input_json_delta", _) => return Err(Fault::Bad("arguments come of a call that was not begun")),
            ("thinking_delta", Some(Block::Thought(block, bytes))) => {
                add(block, "thinking", text("thinking"), bytes)?;
                reply.unseen(text("thinking"))?;
            }
            ("signature_delta", Some(Block::Thought(block, bytes))) => {
                add(block, "signature", text("signature"), bytes)?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn end(&mut self, reply: &mut Reply, index: u64) -> Result<(), Fault> {
        match self.open.remove(&index) {
            Some(Block::Call(place, input)) => {
                let has_none = reply.call(place).is_some_and(|call| call.arguments.is_empty());
                let begun = input.as_object().is_some_and(|input| !input.is_empty());
                if has_none && begun { reply.call_arguments(place, &input.to_string()) } else { Ok(()) }
            }
            Some(Block::Thought(block, bytes)) => reply.reasoning(block, bytes),
            None => Ok(()),
        }
    }

    /// Later counts are of the whole message, and replace earlier ones.
    fn count(&mut self, usage: &Value) {
        for (field, count) in [
            ("input_tokens", &mut self.counted.input),
            ("cache_read_input_tokens", &mut self.counted.cache_read),
            ("cache_creation_input_tokens", &mut self.counted.cache_written),
        ] {
            *count = usage[field].as_u64().unwrap_or(*count);
        }
    }
}

fn add(block: &mut Value, field: &str, piece: &str, bytes: &mut usize) -> Result<(), Fault> {
    *bytes += piece.len();
    reply::bound_reasoning(*bytes)?;
    match block.get_mut(field) {
        Some(Value::String(text)) => text.push_str(piece),
        _ => block[field] = json!(piece),
    }
    Ok(())
}

impl Frames for Blocks {
    fn read(&mut self, reply: &mut Reply, data: &str) -> Result<Option<String>, Fault> {
        let event: Event =
            serde_json::from_str(data).map_err(|_| Fault::Bad("an event is not a JSON object of a message"))?;
        let index = event.index.unwrap_or(0);
        let text = match event.kind.as_deref().unwrap_or_default() {
            "error" => return Err(Fault::Said(event.error.as_ref().map(reply::said).unwrap_or_default())),
            "message_start" => {
                self.count(&event.message.unwrap_or_default()["usage"]);
                None
            }
            "content_block_start" => self.begin(reply, index, event.content_block.unwrap_or_default())?,
            "content_block_delta" => self.add(reply, index, &event.delta.unwrap_or_default())?,
            "content_block_stop" => {
                self.end(reply, index)?;
                None
            }
            "message_delta" => {
                let usage = event.usage.unwrap_or_default();
                self.count(&usage);
                // What the first event says of the output is a placeholder: only this one counts it.
                if let Some(output) = usage["output_tokens"].as_u64() {
                    let Counted { input, cache_read, cache_written } = self.counted;
                    let all = input.saturating_add(cache_read).saturating_add(cache_written);
                    reply.usage(all, cache_read, output);
                }
                if let Some(reason) = event.delta.unwrap_or_default()["stop_reason"].as_str() {
                    reply.stop(match reason {
                        "max_tokens" | "model_context_window_exceeded" => StopReason::Length,
                        "tool_use" => StopReason::ToolCalls,
                        "refusal" => StopReason::ContentFilter,
                        _ => StopReason::Done,
                    });
                }
                None
            }
            "message_stop" => {
                reply.done();
                None
            }
            // Among them `ping`.
            _ => None,
        };
        // An event of another format says nothing about a message: it does not make an answer.
        if event.kind.is_some() {
            reply.frame()?;
        }
        let text = text.filter(|text| !text.is_empty());
        if let Some(text) = &text {
            reply.text(text)?;
        }
        Ok(text)
    }
}
