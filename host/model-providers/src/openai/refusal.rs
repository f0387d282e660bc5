//! What a provider's refusal means, and what of its words is passed on. Pure.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use crate::ProviderError;

/// Longest message of a provider that is passed on. Their first sentence says it.
const SAID_CHARS_MAX: usize = 500;

pub(super) struct Refused<'a> {
    pub(super) provider: &'a str,
    pub(super) model: &'a str,
    pub(super) said: String,
}

impl Refused<'_> {
    pub(super) fn by_status(self, status: StatusCode, headers: &HeaderMap) -> ProviderError {
        let provider = self.provider.to_owned();
        let retry_after = headers
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let said = if self.said.is_empty() { format!("status {}", status.as_u16()) } else { self.said };
        match status.as_u16() {
            401 | 403 => ProviderError::KeyRefused { provider },
            404 => ProviderError::ModelNotFound { provider, model: self.model.to_owned() },
            429 => ProviderError::RateLimited { provider, retry_after },
            408 | 500.. => ProviderError::Unavailable { provider, said, retry_after },
            400..500 => ProviderError::RequestRefused { provider, said },
            300..400 => ProviderError::BadStream { provider, reason: "it sends us to another address" },
            _ => ProviderError::BadStream { provider, reason: "its status is not 200" },
        }
    }

    /// An error that follows a status 200, by its `type` and `code`.
    pub(super) fn by_kind(self, kind: &str) -> ProviderError {
        let provider = self.provider.to_owned();
        let has = |word| kind.split(' ').any(|found| found == word);
        if kind.contains("rate_limit") || kind.contains("quota") || has("429") {
            ProviderError::RateLimited { provider, retry_after: None }
        } else if kind.contains("invalid_request") || has("400") {
            ProviderError::RequestRefused { provider, said: self.said }
        } else {
            ProviderError::Unavailable { provider, said: self.said, retry_after: None }
        }
    }
}

/// The message in a refusal's body: OpenAI's envelope, the forms that others use, or plain text.
pub(super) fn message(body: &[u8], key: &str) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Option<Value> = serde_json::from_str(&text).ok();
    let found = json.as_ref().and_then(|json| {
        ["/error/message", "/error", "/message", "/detail"]
            .into_iter()
            .find_map(|pointer| json.pointer(pointer)?.as_str())
    });
    match (found, text.trim_start().starts_with('<')) {
        (Some(message), _) => clean(message, key),
        // Somebody's page for people.
        (None, true) => String::new(),
        (None, false) => clean(&text, key),
    }
}

/// Fit to be shown: short, one line, and without the key, which some providers repeat.
pub(super) fn clean(said: &str, key: &str) -> String {
    let said = if key.is_empty() { said.to_owned() } else { said.replace(key, "[key]") };
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    said.trim().chars().take(SAID_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_cleaned_and_cut() {
        for (body, expected) in [
            (r#"{"error":{"message":"bad sk-1 thing","type":"x"}}"#, "bad [key] thing"),
            (r#"{"error":"plain"}"#, "plain"),
            (r#"{"message":"line\nline"}"#, "line line"),
            (r#"{"detail":"d"}"#, "d"),
            (" just text sk-1sk-1\n", "just text [key][key]"),
            ("<html><body>Bad gateway</body></html>", ""),
            ("", ""),
        ] {
            assert_eq!(message(body.as_bytes(), "sk-1"), expected, "{body}");
        }
        assert_eq!(message(&[b'x'; 4000], "sk-1").len(), 500);
        assert_eq!(message("é".repeat(4000).as_bytes(), "").chars().count(), 500);
        assert_eq!(message(&[0xff, b'a'], ""), "\u{fffd}a");
    }
}
