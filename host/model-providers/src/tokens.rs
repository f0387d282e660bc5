//! Counting tokens, for windows and for streams that report none. An estimate: bills follow what providers report.

use domain::message::Part;
use tokio::sync::OnceCell;

use crate::{Message, ModelRequest};

/// Longest piece given to the tokenizer: its regular expression backtracks over long runs without a break.
const PIECE_BYTES_MAX: usize = 256;
/// How much of one message is counted, in bytes; the rest is taken to be like it. Punctuation takes longest: 0.3 MB a
/// second, and whoever counts keeps others waiting.
pub(crate) const COUNTED_BYTES_MAX: usize = 16 * 1024;
/// The same for a whole request.
const REQUEST_COUNTED_BYTES_MAX: usize = 8 * COUNTED_BYTES_MAX;
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
    let mut tally = Tally::new(COUNTED_BYTES_MAX);
    tally.text(text);
    tally.total()
}

pub fn count_message(message: &Message) -> u64 {
    let mut tally = Tally::new(COUNTED_BYTES_MAX);
    tally.message(message);
    tally.total()
}

/// Everything that a provider reads for one request.
pub fn count_request(request: &ModelRequest) -> u64 {
    let mut tally = Tally::new(REQUEST_COUNTED_BYTES_MAX);
    tally.text(&request.system);
    for message in &request.messages {
        tally.message(message);
    }
    for function in &request.functions {
        tally.fixed += FRAME_TOKENS;
        tally.text(&function.model_name);
        tally.text(&function.description);
        tally.text(&function.input_schema.to_string());
    }
    tally.total()
}

/// Texts that are counted together: so many bytes exactly, the rest like them.
struct Tally {
    counted_max: usize,
    counted: usize,
    tokens: u64,
    bytes: usize,
    /// Tokens of what is no text.
    fixed: u64,
}

impl Tally {
    fn new(counted_max: usize) -> Self {
        Self { counted_max, counted: 0, tokens: 0, bytes: 0, fixed: 0 }
    }

    fn text(&mut self, text: &str) {
        let counted = &text[..text.floor_char_boundary(self.counted_max - self.counted)];
        self.bytes += text.len();
        self.counted += counted.len();
        if !counted.is_empty() {
            let vocabulary = tiktoken_rs::o200k_base_singleton();
            self.tokens += pieces(counted).map(|piece| vocabulary.count_ordinary(piece) as u64).sum::<u64>();
        }
    }

    fn message(&mut self, message: &Message) {
        self.fixed += FRAME_TOKENS;
        for part in &message.parts {
            match part {
                Part::Text { text } | Part::ToolResult { text, .. } => self.text(text),
                Part::Reasoning { data, .. } => self.text(&data.to_string()),
                Part::Image { .. } => self.fixed += IMAGE_TOKENS,
                Part::ToolCall { name, arguments, .. } => {
                    self.text(name);
                    self.text(&arguments.to_string());
                }
            }
        }
    }

    fn total(&self) -> u64 {
        let whole = u128::from(self.tokens) * self.bytes as u128 / self.counted.max(1) as u128;
        self.fixed + whole as u64
    }
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
        assert!(count(&prose).abs_diff(whole) <= whole / 100, "{} {whole}", count(&prose));
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
            assert!(began.elapsed().as_secs() < 1, "{run:?} took {:?}", began.elapsed());
        }
    }

    #[test]
    fn the_parts_of_a_message_are_counted_together() {
        count("warm");
        let text = || Part::Text { text: "!?;:".repeat(COUNTED_BYTES_MAX / 4) };
        let message = |parts| Message { role: domain::message::Role::User, parts };
        let (one, many) = (count_message(&message(vec![text()])), message((0..64).map(|_| text()).collect()));
        let began = Instant::now();
        assert_eq!(count_message(&many) - FRAME_TOKENS, 64 * (one - FRAME_TOKENS));
        assert!(began.elapsed().as_secs() < 1, "{:?}", began.elapsed());
    }
}
