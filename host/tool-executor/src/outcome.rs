//! How a call ended, in the words of the contract: from the tool's answer, or from the engine's error.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use domain::{Limits, message::Part};
use tool_api::{Outcome, Status, Trap};
use wasmtime::{Trap as EngineTrap, WasmBacktrace, component::ResourceTableError};
use wasmtime_wasi::I32Exit;

use crate::{
    capabilities::denied::Grant,
    contract::toolbox::{CallResult, Content},
    engine::FRAMES_MAX,
    meter::LimitReached,
    typed::BadArgument,
};

/// Parts of one answer: each costs the host more than its bytes.
const PARTS_MAX: usize = 1_000;
/// Longest media type of an image.
const MEDIA_TYPE_BYTES_MAX: usize = 100;
/// A crash's message and each of its frames, in bytes.
const TRAP_MESSAGE_BYTES_MAX: usize = 1_000;
const FRAME_BYTES_MAX: usize = 200;

/// What the tool answered.
pub(crate) fn of_answer(answer: CallResult, limits: &Limits) -> Outcome {
    let bytes: usize = answer.structured.as_ref().map_or(0, String::len)
        + answer
            .content
            .iter()
            .map(|content| match content {
                Content::Text(text) => text.len(),
                Content::Image(image) => image.data.len() + image.media_type.len(),
            })
            .sum::<usize>();
    if bytes as u64 > limits.output_bytes {
        return of_limit(Limit::Output, limits);
    }
    match parts(answer.content).and_then(|content| Ok((content, structured(answer.structured)?))) {
        Ok((content, structured)) => {
            let status = if answer.is_error { Status::ToolError } else { Status::Ok };
            Outcome { status, code: None, content, structured, trap: None }
        }
        Err(words) => Outcome::failed(Status::ToolError, "tool.bad_result", words),
    }
}

fn parts(content: Vec<Content>) -> Result<Vec<Part>, String> {
    if content.len() > PARTS_MAX {
        return Err(format!("the tool answered with {} parts; {PARTS_MAX} are allowed", content.len()));
    }
    content
        .into_iter()
        .map(|content| match content {
            Content::Text(text) => Ok(Part::Text { text }),
            Content::Image(image) if is_image_type(&image.media_type) => {
                Ok(Part::Image { media_type: image.media_type, data: BASE64.encode(image.data) })
            }
            Content::Image(image) => Err(format!(
                "the tool answered with an image of the media type `{}`; an image's type looks like `image/png`",
                cut(&image.media_type, MEDIA_TYPE_BYTES_MAX)
            )),
        })
        .collect()
}

fn structured(json: Option<String>) -> Result<Option<serde_json::Value>, String> {
    let Some(json) = json else { return Ok(None) };
    serde_json::from_str(&json)
        .map(Some)
        .map_err(|error| format!("the tool's `structured` answer is not JSON: {error}"))
}

fn is_image_type(text: &str) -> bool {
    text.len() <= MEDIA_TYPE_BYTES_MAX
        && text.strip_prefix("image/").is_some_and(|kind| {
            !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'))
        })
}

/// A limit by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Fuel,
    Memory,
    Stack,
    Deadline,
    HostCalls,
    Handles,
    Output,
    Logs,
    HttpRequests,
    HttpBytes,
    Abi,
}

pub(crate) fn of_limit(limit: Limit, limits: &Limits) -> Outcome {
    let (code, words) = match limit {
        Limit::Fuel => ("limit.fuel", format!("the tool used all of its {} fuel", limits.fuel)),
        Limit::Memory => {
            ("limit.memory", format!("the tool asked for more than {} bytes of memory", limits.memory_bytes))
        }
        Limit::Stack => ("limit.stack", "the tool's calls were nested too deeply".into()),
        Limit::Deadline => ("limit.deadline", format!("the tool ran longer than {} ms", limits.deadline_ms)),
        Limit::HostCalls => (
            "limit.host_calls",
            format!(
                "the tool called the host more than {} times, or too often in a row without a loop or function of its own",
                limits.host_calls
            ),
        ),
        Limit::Handles => ("limit.handles", "the tool held too many resources at the same time".into()),
        Limit::Output => ("limit.output", format!("the tool answered with more than {} bytes", limits.output_bytes)),
        Limit::Logs => ("limit.logs", format!("the tool wrote more than {} bytes of logs", limits.log_bytes)),
        Limit::HttpRequests => {
            ("limit.http_requests", format!("the tool sent more than {} HTTP requests", limits.http_requests))
        }
        Limit::HttpBytes => (
            "limit.http_bytes",
            format!("the tool's HTTP requests and answers had more than {} bytes", limits.http_bytes),
        ),
        Limit::Abi => ("limit.abi", "the tool moved too much data in one call of the host".into()),
    };
    Outcome::failed(Status::Limit, code, words)
}

/// What ended a call without an answer.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Limit(Limit),
    Trap { kind: String, words: String },
}

/// The engine's error as an outcome. `last_words` is the tool's last line on standard error.
pub(crate) fn of_error(error: &wasmtime::Error, last_words: Option<String>, limits: &Limits) -> Outcome {
    if let Some(bad) = error.downcast_ref::<BadArgument>() {
        return Outcome::failed(Status::ToolError, "tool.bad_arguments", bad.to_string());
    }
    let (kind, words) = match end_of(error) {
        End::Limit(limit) => return of_limit(limit, limits),
        End::Trap { kind, words } => (kind, words),
    };
    let message = cut(&last_words.unwrap_or(words), TRAP_MESSAGE_BYTES_MAX);
    let frames = error.downcast_ref::<WasmBacktrace>().map_or_else(Vec::new, |backtrace| {
        let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
            Some(name) => cut(name, FRAME_BYTES_MAX),
            None => format!("<function {}>", frame.func_index()),
        };
        backtrace.frames().iter().take(FRAMES_MAX).map(name).collect()
    });
    let trap = Trap { kind, message: message.clone(), frames };
    Outcome { status: Status::Trap, code: None, content: vec![Part::text(message)], structured: None, trap: Some(trap) }
}

/// An outcome after what was denied: a tool that was denied something and then failed, failed for that. But for a config
/// value: one that is absent may be one that the tool can do without. The receipt names it all the same.
pub(crate) fn after_denials(mut outcome: Outcome, denials: &[Grant]) -> Outcome {
    let denial = denials.iter().find(|grant| **grant != Grant::Config);
    if let (Some(grant), Status::ToolError | Status::Trap) = (denial, outcome.status) {
        outcome.status = Status::Denied;
        outcome.code = Some(format!("denied.{}", grant.as_str()));
    }
    outcome
}

fn end_of(error: &wasmtime::Error) -> End {
    if let Some(limit) = error.downcast_ref::<LimitReached>() {
        return End::Limit(match limit {
            LimitReached::Fuel => Limit::Fuel,
            LimitReached::Memory => Limit::Memory,
            LimitReached::Deadline => Limit::Deadline,
            LimitReached::HostCalls => Limit::HostCalls,
            LimitReached::Logs => Limit::Logs,
            LimitReached::HttpRequests => Limit::HttpRequests,
            LimitReached::HttpBytes => Limit::HttpBytes,
            LimitReached::Output => Limit::Output,
        });
    }
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return End::Trap { kind: "exit".into(), words: format!("the tool exited with code {}", exit.0) };
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref() {
        return End::Limit(Limit::Handles);
    }
    match error.downcast_ref::<EngineTrap>() {
        Some(EngineTrap::OutOfFuel) => return End::Limit(Limit::Fuel),
        Some(EngineTrap::StackOverflow) => return End::Limit(Limit::Stack),
        Some(trap) => {
            let words = trap.to_string();
            return End::Trap {
                kind: kind_of(*trap),
                words: words.strip_prefix("wasm trap: ").unwrap_or(&words).to_owned(),
            };
        }
        None => {}
    }
    untyped(error)
}

/// Limits that the engine reports as bare words. Each has a test with a real tool, so that a new engine with other
/// words fails here and not in production.
fn untyped(error: &wasmtime::Error) -> End {
    let words = error.root_cause().to_string();
    let in_wasm = error.downcast_ref::<WasmBacktrace>().is_some();
    if words.contains("fuel allocated for hostcalls has been exhausted") {
        // With wasm on the stack it was an argument of a host call, without it the result.
        return End::Limit(if in_wasm { Limit::Abi } else { Limit::Output });
    }
    if words.contains("store handle limit exceeded") {
        return End::Limit(Limit::Handles);
    }
    if words.starts_with("requested len") && words.contains("exceeds limit") {
        return End::Limit(Limit::Abi);
    }
    let kind = if in_wasm { "host_refused" } else { "bad_value" };
    End::Trap { kind: kind.into(), words }
}

fn kind_of(trap: EngineTrap) -> String {
    match trap {
        EngineTrap::UnreachableCodeReached => "unreachable".into(),
        trap => snake_case(&format!("{trap:?}")),
    }
}

/// `MemoryOutOfBounds` becomes `memory_out_of_bounds`.
fn snake_case(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::toolbox::Image;

    const LIMITS: Limits = Limits { output_bytes: 100, ..Limits::DEFAULT };

    fn answer(content: Vec<Content>, structured: Option<&str>, is_error: bool) -> (Status, Option<String>) {
        let answer = CallResult { content, structured: structured.map(Into::into), is_error };
        let outcome = of_answer(answer, &LIMITS);
        (outcome.status, outcome.code)
    }

    fn image(media_type: &str) -> Vec<Content> {
        vec![Content::Image(Image { media_type: media_type.into(), data: vec![1, 2, 3] })]
    }

    #[test]
    fn an_answer_is_taken_as_it_is_or_refused() {
        let bad = (Status::ToolError, Some("tool.bad_result".to_owned()));
        let too_long = (Status::Limit, Some("limit.output".to_owned()));
        assert_eq!(answer(vec![Content::Text("a".into())], Some("[1]"), false), (Status::Ok, None));
        assert_eq!(answer(vec![], None, true), (Status::ToolError, None));
        assert_eq!(answer(vec![], Some("{"), false), bad);
        assert_eq!(answer(image("image/svg+xml"), None, false), (Status::Ok, None));
        for wrong in ["image/", "text/html", "image/a b", "image/\u{e9}"] {
            assert_eq!(answer(image(wrong), None, false), bad, "{wrong}");
        }
        assert_eq!(answer(vec![Content::Text("x".repeat(100))], None, false), (Status::Ok, None));
        assert_eq!(answer(vec![Content::Text("x".repeat(100))], Some("1"), false), too_long);
        let many = (0..=PARTS_MAX).map(|_| Content::Text(String::new())).collect();
        assert_eq!(answer(many, None, false), bad);
    }

    #[test]
    fn structured_json_and_images_survive() {
        let mut content = image("image/png");
        content.push(Content::Text("t".into()));
        let outcome = of_answer(CallResult { content, structured: Some("{\"a\":1}".into()), is_error: false }, &LIMITS);
        assert_eq!(outcome.structured, Some(json!({"a": 1})));
        assert_eq!(
            outcome.content,
            [Part::Image { media_type: "image/png".into(), data: "AQID".into() }, Part::text("t")]
        );
    }

    #[test]
    fn each_error_has_one_meaning() {
        let msg = wasmtime::Error::msg::<&'static str>;
        let trap = |kind: &str, words: &str| End::Trap { kind: kind.into(), words: words.into() };
        for (error, end) in [
            (LimitReached::Memory.into(), End::Limit(Limit::Memory)),
            (wasmtime::Error::from(LimitReached::Logs).context("while writing"), End::Limit(Limit::Logs)),
            (EngineTrap::OutOfFuel.into(), End::Limit(Limit::Fuel)),
            (EngineTrap::StackOverflow.into(), End::Limit(Limit::Stack)),
            (EngineTrap::UnreachableCodeReached.into(), trap("unreachable", "wasm `unreachable` instruction executed")),
            (EngineTrap::MemoryOutOfBounds.into(), trap("memory_out_of_bounds", "out of bounds memory access")),
            (I32Exit(0).into(), trap("exit", "the tool exited with code 0")),
            (ResourceTableError::Full.into(), End::Limit(Limit::Handles)),
            (msg("something else"), trap("bad_value", "something else")),
        ] {
            assert_eq!(end_of(&error), end, "{error:?}");
        }
    }

    #[test]
    fn a_denial_explains_a_failure_and_nothing_else() {
        let denials = [Grant::Config, Grant::Secrets, Grant::Http];
        let with = |status| {
            let outcome = after_denials(Outcome::failed(status, "x", "words"), &denials);
            (outcome.status, outcome.code.unwrap_or_default())
        };
        assert_eq!(with(Status::ToolError), (Status::Denied, "denied.secrets".into()));
        assert_eq!(with(Status::Trap), (Status::Denied, "denied.secrets".into()));
        assert_eq!(with(Status::Limit), (Status::Limit, "x".into()));
        assert_eq!(with(Status::Ok), (Status::Ok, "x".into()));
        for nothing in [&[][..], &[Grant::Config]] {
            assert_eq!(after_denials(Outcome::failed(Status::Trap, "x", ""), nothing).status, Status::Trap);
        }
    }
}
