//! A reply that is being put together, whatever the provider's format. Pure, and strict about sizes: what it is given is
//! a stranger's.

use serde_json::{Map, Value};

use crate::{ModelEvent, StopReason, Usage, tokens};

/// Most tool calls in one reply. More is a loop gone wrong.
pub(crate) const CALLS_MAX: usize = 64;
/// Most bytes of one call's arguments.
const ARGUMENTS_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of one reply's text, and of what is not shown of it: a long book.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest id or name of a call. Our own names have 64.
const NAME_BYTES_MAX: usize = 256;
/// Most bytes of what a provider wants back of one reply: it is stored and sent again with every step.
const REASONING_BYTES_MAX: usize = 1024 * 1024;
/// Arguments of all calls of one reply, in bytes: parsed, they take a hundred times as much memory.
const ALL_ARGUMENTS_BYTES_MAX: usize = 1024 * 1024;
/// Most images in one reply, each at most as long as a line.
const IMAGES_MAX: usize = 4;
/// Most events of one answer: twice what the longest real ones have, with an event for every token.
const FRAMES_MAX: u64 = 300_000;
/// No reply is said to have used more: what a stranger reports ends up in sums.
const USAGE_TOKENS_MAX: u64 = 1_000_000_000;
/// What an image may be: the formats that messages are stored with.
const IMAGE_MEDIA_TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

#[derive(Debug)]
pub(crate) enum Fault {
    Bad(&'static str),
    /// The provider's own error, in the middle of the stream.
    Said(SaidError),
}

/// A provider's error, in its own words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SaidError {
    /// Its `type`, `code` and `status`.
    pub(crate) kind: String,
    /// Empty when it has none.
    pub(crate) message: String,
}

#[derive(Debug, Default)]
pub(crate) struct Reply {
    text: String,
    /// Thoughts, names and arguments of calls, in the order in which they came.
    unseen: String,
    /// How much of it has been told, in bytes. `None`: all of it.
    unseen_from: Option<usize>,
    calls: Vec<Call>,
    images: Vec<(String, String)>,
    reasoning: Vec<Value>,
    reasoning_bytes: usize,
    stop: Option<StopReason>,
    usage: Option<Usage>,
    frames: u64,
    done: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Reply {
    /// One more event.
    pub(crate) fn frame(&mut self) -> Result<(), Fault> {
        self.frames += 1;
        if self.frames > FRAMES_MAX { Err(Fault::Bad("it has more than 300000 events")) } else { Ok(()) }
    }

    pub(crate) fn text(&mut self, piece: &str) -> Result<(), Fault> {
        if self.text.len() + piece.len() > TEXT_BYTES_MAX {
            return Err(Fault::Bad("its text is longer than 4 MiB"));
        }
        self.text.push_str(piece);
        Ok(())
    }

    /// Something has come that nobody is shown, with this text.
    pub(crate) fn unseen(&mut self, piece: &str) -> Result<(), Fault> {
        if self.unseen.len() + piece.len() > TEXT_BYTES_MAX {
            return Err(Fault::Bad("its thoughts are longer than 4 MiB"));
        }
        self.unseen_from.get_or_insert(self.unseen.len());
        self.unseen.push_str(piece);
        Ok(())
    }

    /// Of that, what has not been told, if something has come since.
    pub(super) fn unseen_yet(&mut self) -> Option<String> {
        self.unseen_from.take().map(|from| self.unseen[from..].to_owned())
    }

    /// Begins a call; gives its place.
    pub(crate) fn begin_call(&mut self) -> Result<usize, Fault> {
        if self.calls.len() >= CALLS_MAX {
            return Err(Fault::Bad("it has more than 64 tool calls"));
        }
        self.unseen("")?;
        self.calls.push(Call::default());
        Ok(self.calls.len() - 1)
    }

    pub(crate) fn call(&self, place: usize) -> Option<&Call> {
        self.calls.get(place)
    }

    /// The id that the call is told with.
    pub(crate) fn shown_id(&self, place: usize) -> String {
        match self.calls.get(place) {
            Some(call) if !call.id.is_empty() => call.id.clone(),
            _ => format!("call_{place}"),
        }
    }

    pub(crate) fn last_call(&self) -> Option<usize> {
        self.calls.len().checked_sub(1)
    }

    /// The first id that is said counts.
    pub(crate) fn call_id(&mut self, place: usize, id: &str) -> Result<(), Fault> {
        self.change(place, |call| {
            if call.id.is_empty() {
                id.clone_into(&mut call.id);
            }
        })
    }

    /// A name comes whole, in pieces, or whole again with every piece of the arguments.
    pub(crate) fn call_name(&mut self, place: usize, name: &str) -> Result<(), Fault> {
        let is_said = self.calls.get(place).is_some_and(|call| call.name == name);
        if is_said {
            return Ok(());
        }
        self.change(place, |call| call.name.push_str(name))?;
        self.unseen(name)
    }

    pub(crate) fn call_arguments(&mut self, place: usize, piece: &str) -> Result<(), Fault> {
        self.change(place, |call| call.arguments.push_str(piece))?;
        self.unseen(piece)
    }

    fn change(&mut self, place: usize, change: impl FnOnce(&mut Call)) -> Result<(), Fault> {
        let Some(call) = self.calls.get_mut(place) else { return Err(Fault::Bad("a tool call was not begun")) };
        change(call);
        if call.id.len() > NAME_BYTES_MAX || call.name.len() > NAME_BYTES_MAX {
            return Err(Fault::Bad("a tool call's name or id is longer than 256 bytes"));
        }
        if call.arguments.len() > ARGUMENTS_BYTES_MAX {
            return Err(Fault::Bad("a tool call's arguments are longer than 256 KiB"));
        }
        if self.calls.iter().map(|call| call.arguments.len()).sum::<usize>() > ALL_ARGUMENTS_BYTES_MAX {
            return Err(Fault::Bad("the arguments of its tool calls are longer than 1 MiB"));
        }
        Ok(())
    }

    /// An image as a `data:` URL. No other URL is fetched, and what is no image is not kept.
    pub(crate) fn image(&mut self, url: &str) -> Result<(), Fault> {
        let Some((media_type, data)) = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) else {
            return Err(Fault::Bad("an image is not a `data:` URL in base64"));
        };
        if !IMAGE_MEDIA_TYPES.contains(&media_type) {
            return Err(Fault::Bad("an image is not PNG, JPEG, GIF or WebP"));
        }
        if data.is_empty() || !data.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)) {
            return Err(Fault::Bad("an image is not a `data:` URL in base64"));
        }
        if self.images.len() >= IMAGES_MAX {
            return Err(Fault::Bad("it has more than 4 images"));
        }
        self.images.push((media_type.to_owned(), data.to_owned()));
        self.unseen("")
    }

    /// Something that the provider wants back.
    pub(crate) fn reasoning(&mut self, data: Value, bytes: usize) -> Result<(), Fault> {
        self.reasoning_bytes += bytes;
        bound_reasoning(self.reasoning_bytes)?;
        self.reasoning.push(data);
        Ok(())
    }

    pub(crate) fn stop(&mut self, stop: StopReason) {
        self.stop = Some(stop);
    }

    /// What the provider counted, if it counted anything. `cached_input_tokens` are among the input.
    pub(crate) fn usage(&mut self, input_tokens: u64, cached_input_tokens: u64, output_tokens: u64) {
        let input_tokens = input_tokens.min(USAGE_TOKENS_MAX);
        let output_tokens = output_tokens.min(USAGE_TOKENS_MAX);
        if input_tokens + output_tokens > 0 {
            let cached_input_tokens = cached_input_tokens.min(input_tokens);
            self.usage = Some(Usage { input_tokens, cached_input_tokens, output_tokens, reported: true });
        }
    }

    /// The provider said that nothing follows.
    pub(crate) fn done(&mut self) {
        self.done = true;
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
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

    /// What the provider wants back, the images, the calls in their order, then the end. `count_input` is asked if the
    /// provider reported no usage.
    pub(super) fn end(mut self, count_input: impl FnOnce() -> u64) -> Vec<ModelEvent> {
        let usage = self.usage.unwrap_or_else(|| Usage {
            input_tokens: count_input(),
            cached_input_tokens: 0,
            output_tokens: tokens::count(&self.text) + tokens::count(&self.unseen),
            reported: false,
        });
        let stop = match self.stop.unwrap_or(StopReason::Done) {
            // Some providers say `stop` though they ask for calls.
            StopReason::Done if !self.calls.is_empty() => StopReason::ToolCalls,
            StopReason::ToolCalls if self.calls.is_empty() => StopReason::Done,
            stop => stop,
        };
        let (reasoning, images) = (std::mem::take(&mut self.reasoning), std::mem::take(&mut self.images));
        let reasoning = reasoning.into_iter().map(ModelEvent::Reasoning);
        let images = images.into_iter().map(|(media_type, data)| ModelEvent::Image { media_type, data });
        let ids: Vec<String> = (0..self.calls.len()).map(|place| self.shown_id(place)).collect();
        let calls = self.calls.into_iter().zip(ids).map(|(call, provider_id)| ModelEvent::ToolCall {
            provider_id,
            name: call.name,
            arguments: arguments(call.arguments),
        });
        reasoning.chain(images).chain(calls).chain([ModelEvent::End { stop, usage }]).collect()
    }
}

/// Refuses more of it than is kept.
pub(crate) fn bound_reasoning(bytes: usize) -> Result<(), Fault> {
    if bytes > REASONING_BYTES_MAX { Err(Fault::Bad("its reasoning is longer than 1 MiB")) } else { Ok(()) }
}

fn arguments(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(Map::new());
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// A provider's error object, or text.
pub(crate) fn said(error: &Value) -> SaidError {
    let text = |pointer| match error.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    SaidError {
        kind: [text("/type"), text("/code"), text("/status")].into_iter().flatten().collect::<Vec<_>>().join(" "),
        message: text("/message").or_else(|| text("")).unwrap_or_default(),
    }
}
