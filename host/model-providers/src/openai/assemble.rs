//! From the frames of a stream to a reply. Pure, and strict about sizes: the frames are a stranger's.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{ModelEvent, StopReason, Usage, tokens};

/// Most tool calls in one reply. More is a loop gone wrong.
const CALLS_MAX: usize = 64;
/// Most bytes of one call's arguments.
const ARGUMENTS_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of one reply's text: a long book.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest id or name of a call. Our own names have 64.
const NAME_BYTES_MAX: usize = 256;
/// No reply is said to have used more: what a stranger reports ends up in sums.
const USAGE_TOKENS_MAX: u64 = 1_000_000_000;

#[derive(Debug)]
pub(super) enum Fault {
    Bad(&'static str),
    /// The provider's own error, in the middle of the stream.
    Said(SaidError),
}

#[derive(Debug)]
pub(super) struct SaidError {
    /// Its `type` and its `code`.
    pub(super) kind: String,
    pub(super) message: String,
}

#[derive(Debug, Default)]
pub(super) struct Assembler {
    text: String,
    calls: BTreeMap<usize, Call>,
    stop: Option<StopReason>,
    usage: Option<Usage>,
    frames: u64,
    done: bool,
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

/// As lenient as the providers differ: everything may be missing, and what is not known is not looked at.
#[derive(Deserialize)]
struct Frame {
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
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<Value>,
}

impl Assembler {
    /// Takes a frame; gives the text that it adds.
    pub(super) fn push(&mut self, data: &str) -> Result<Option<String>, Fault> {
        let frame: Frame =
            serde_json::from_str(data).map_err(|_| Fault::Bad("an event is not a JSON chunk of a chat completion"))?;
        if let Some(error) = frame.error {
            return Err(Fault::Said(said(&error)));
        }
        self.frames += 1;
        if let Some(usage) = frame.usage.as_ref().and_then(usage) {
            self.usage = Some(usage);
        }
        let mut text = String::new();
        for choice in frame.choices.unwrap_or_default() {
            // Only one answer was asked for.
            if choice.index.unwrap_or(0) != 0 {
                continue;
            }
            if let Some(delta) = choice.delta {
                text.extend([delta.content, delta.refusal].into_iter().flatten());
                for call in delta.tool_calls.unwrap_or_default() {
                    self.push_call(call)?;
                }
            }
            if let Some(reason) = choice.finish_reason {
                self.stop = Some(match reason.as_str() {
                    "length" => StopReason::Length,
                    "content_filter" => StopReason::ContentFilter,
                    "tool_calls" | "function_call" => StopReason::ToolCalls,
                    _ => StopReason::Done,
                });
            }
        }
        if self.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(Fault::Bad("its text is longer than 4 MiB"));
        }
        self.text.push_str(&text);
        Ok((!text.is_empty()).then_some(text))
    }

    fn push_call(&mut self, delta: CallDelta) -> Result<(), Fault> {
        let index = match delta.index {
            Some(index) => usize::try_from(index).unwrap_or(usize::MAX),
            // Some providers leave it out: a new id is a new call, no id goes on with the last one.
            None => {
                let last = self.calls.last_key_value();
                let same = |(at, call): (&usize, &Call)| {
                    let goes_on = delta.id.as_ref().is_none_or(|id| id.is_empty() || *id == call.id);
                    if goes_on { *at } else { at + 1 }
                };
                last.map_or(0, same)
            }
        };
        if index >= CALLS_MAX {
            return Err(Fault::Bad("a tool call's index is above 63"));
        }
        let call = self.calls.entry(index).or_default();
        if let Some(id) = delta.id
            && call.id.is_empty()
        {
            call.id = id;
        }
        let Some(function) = delta.function else { return Ok(()) };
        // A name comes whole, in pieces, or whole again with every piece of the arguments.
        if let Some(name) = function.name
            && name != call.name
        {
            call.name.push_str(&name);
        }
        match function.arguments {
            None | Some(Value::Null) => {}
            Some(Value::String(piece)) => call.arguments.push_str(&piece),
            // Some providers send the object itself.
            Some(json) => call.arguments.push_str(&json.to_string()),
        }
        if call.id.len() > NAME_BYTES_MAX || call.name.len() > NAME_BYTES_MAX {
            return Err(Fault::Bad("a tool call's name or id is longer than 256 bytes"));
        }
        if call.arguments.len() > ARGUMENTS_BYTES_MAX {
            return Err(Fault::Bad("a tool call's arguments are longer than 256 KiB"));
        }
        Ok(())
    }

    /// The provider said that nothing follows.
    pub(super) fn done(&mut self) {
        self.done = true;
    }

    /// Whether what is here is the whole reply.
    pub(super) fn is_whole(&self) -> bool {
        self.done || self.stop.is_some()
    }

    /// Whether nothing has come that is part of a reply.
    pub(super) fn is_untouched(&self) -> bool {
        self.frames == 0
    }

    pub(super) fn has_usage(&self) -> bool {
        self.usage.is_some()
    }

    /// The calls in their order, then the end. `count_input` is asked if the provider reported no usage.
    pub(super) fn end(self, count_input: impl FnOnce() -> u64) -> Vec<ModelEvent> {
        let usage = self.usage.unwrap_or_else(|| {
            let calls = self.calls.values().map(|call| tokens::count(&call.name) + tokens::count(&call.arguments));
            Usage {
                input_tokens: count_input(),
                cached_input_tokens: 0,
                output_tokens: tokens::count(&self.text) + calls.sum::<u64>(),
                reported: false,
            }
        });
        let stop = match self.stop.unwrap_or(StopReason::Done) {
            // Some providers say `stop` though they ask for calls.
            StopReason::Done if !self.calls.is_empty() => StopReason::ToolCalls,
            StopReason::ToolCalls if self.calls.is_empty() => StopReason::Done,
            stop => stop,
        };
        let calls = self.calls.into_iter().map(|(index, call)| ModelEvent::ToolCall {
            provider_id: if call.id.is_empty() { format!("call_{index}") } else { call.id },
            name: call.name,
            arguments: arguments(call.arguments),
        });
        calls.chain([ModelEvent::End { stop, usage }]).collect()
    }
}

fn arguments(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(Map::new());
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// What the provider counted, if it counted anything.
fn usage(value: &Value) -> Option<Usage> {
    let tokens = |pointer| value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0).min(USAGE_TOKENS_MAX);
    let usage = Usage {
        input_tokens: tokens("/prompt_tokens"),
        cached_input_tokens: tokens("/prompt_tokens_details/cached_tokens").min(tokens("/prompt_tokens")),
        output_tokens: tokens("/completion_tokens"),
        reported: true,
    };
    (usage.input_tokens + usage.output_tokens > 0).then_some(usage)
}

fn said(error: &Value) -> SaidError {
    let text = |pointer| match error.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    SaidError {
        kind: [text("/type"), text("/code")].into_iter().flatten().collect::<Vec<_>>().join(" "),
        message: text("/message").or_else(|| text("")).unwrap_or_else(|| "an error without a message".to_owned()),
    }
}
