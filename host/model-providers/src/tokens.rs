//! Counting tokens, for windows and for streams that report none. An estimate: bills follow what providers report.

use domain::message::Part;
use tokio::sync::OnceCell;

use crate::{Message, ModelRequest};

/// Longest piece given to the tokenizer: its regular expression backtracks over long runs without a break.
const PIECE_BYTES_MAX: usize = 1024;
/// How much of one text is counted; the rest is taken to be like it. Counting does a few megabytes a second.
const COUNTED_BYTES_MAX: usize = 256 * 1024;
/// What an image costs, roughly: a middle-sized one at full detail.
const IMAGE_TOKENS: u64 = 765;
/// What the frame around a message, or around a function, costs.
const FRAME_TOKENS: u64 = 4;

/// Loads the vocabulary on a thread that may block: it takes a tenth of a second, and seconds without optimisation.
/// After the first time there is nothing to wait for.
pub async fn load() {
    static LOADED: OnceCell<()> = OnceCell::const_new();
    let load = || async {
        if let Err(error) = tokio::task::spawn_blocking(tiktoken_rs::o200k_base_singleton).await {
            tracing::error!(%error, "the tokenizer's vocabulary could not be loaded");
        }
    };
    LOADED.get_or_init(load).await;
}

/// Tokens of a text, as OpenAI's models of 2024 and later split it. Wait for `load` before, where others wait too.
pub fn count(text: &str) -> u64 {
    if text.is_empty() {
        return 0;
    }
    let vocabulary = tiktoken_rs::o200k_base_singleton();
    let counted = &text[..text.floor_char_boundary(COUNTED_BYTES_MAX)];
    let tokens: u64 = pieces(counted).map(|piece| vocabulary.count_ordinary(piece) as u64).sum();
    if counted.len() == text.len() {
        return tokens;
    }
    (u128::from(tokens) * text.len() as u128 / counted.len() as u128) as u64
}

pub fn count_message(message: &Message) -> u64 {
    let parts = message.parts.iter().map(|part| match part {
        Part::Text { text } | Part::ToolResult { text, .. } => count(text),
        Part::Image { .. } => IMAGE_TOKENS,
        Part::ToolCall { name, arguments, .. } => count(name) + count(&arguments.to_string()),
    });
    FRAME_TOKENS + parts.sum::<u64>()
}

/// Everything that a provider reads for one request.
pub fn count_request(request: &ModelRequest) -> u64 {
    let functions = request.functions.iter().map(|function| {
        FRAME_TOKENS
            + count(&function.model_name)
            + count(&function.description)
            + count(&function.input_schema.to_string())
    });
    count(&request.system) + request.messages.iter().map(count_message).sum::<u64>() + functions.sum::<u64>()
}

/// Cut after whitespace where there is some, so that most cuts cost no token.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let longest = text.floor_char_boundary(PIECE_BYTES_MAX);
        let end = match text[..longest].rfind(char::is_whitespace) {
            Some(at) if at > 0 && longest < text.len() => at,
            _ => longest,
        };
        let (piece, rest) = text.split_at(end);
        text = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn tokens_are_counted() {
        for (text, tokens) in [("", 0), ("hello", 1), ("hello world", 2), ("What is 12.5 * 3?", 10)] {
            assert_eq!(count(text), tokens, "{text}");
        }
    }

    #[test]
    fn cutting_loses_nothing_and_hardly_changes_the_count() {
        let prose = "The bell jar keeps what is inside it apart from the air outside. ".repeat(100);
        assert_eq!(pieces(&prose).collect::<String>(), prose);
        let whole = tiktoken_rs::o200k_base_singleton().count_ordinary(&prose) as u64;
        assert!(count(&prose).abs_diff(whole) <= 2, "{} {whole}", count(&prose));
        let accents = "é".repeat(5000);
        assert_eq!(pieces(&accents).collect::<String>(), accents);
    }

    #[test]
    fn long_runs_do_not_take_long() {
        count("warm");
        for run in ["a", " ", "\n", "é", "!", "1", "\u{0301}", "a "] {
            let began = Instant::now();
            let text = run.repeat(4_000_000 / run.len());
            assert!(count(&text) > 1000);
            assert!(began.elapsed().as_secs() < 20, "{run:?} took {:?}", began.elapsed());
        }
    }
}
