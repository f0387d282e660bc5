//! What a provider's refusal means, and what of its words is passed on. Pure.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::reply::{self, SaidError};
use crate::{KeyOf, ProviderError};

/// Longest message of a provider that is passed on. Their first sentence says it.
const SAID_CHARS_MAX: usize = 500;
/// Longest wait that is passed on: a day. What is longer is said to be that.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Who was asked for what, with whose key.
pub(super) struct Asked<'a> {
    pub(super) provider: &'a str,
    pub(super) model: &'a str,
    pub(super) key_of: KeyOf,
    pub(super) key: &'a str,
}

impl Asked<'_> {
    /// A refusal in place of an answer.
    pub(super) fn by_status(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        let provider = self.provider.to_owned();
        let retry_after = retry_after(headers);
        let error = message(body);
        let said = match self.clean(&error.message) {
            said if said.is_empty() => format!("status {}", status.as_u16()),
            said => said,
        };
        match status.as_u16() {
            401 | 403 => self.key_refused(),
            // Gemini has no status of its own for it.
            400 if is_bad_key(&error) => self.key_refused(),
            402 => self.quota_used_up(),
            404 => self.model_not_found(),
            429 if is_quota(&error.kind) => self.quota_used_up(),
            429 => ProviderError::RateLimited { provider, key: self.key_of, retry_after },
            408 | 500.. => ProviderError::Unavailable { provider, said, retry_after },
            400..500 => ProviderError::RequestRefused { provider, said },
            300..400 => ProviderError::BadStream { provider, reason: "it sends us to another address" },
            _ => ProviderError::BadStream { provider, reason: "its status is not 200" },
        }
    }

    /// An error that follows a status 200, by its `type`, `code` and `status`.
    pub(super) fn by_kind(&self, error: &SaidError) -> ProviderError {
        let provider = self.provider.to_owned();
        let kind = error.kind.to_ascii_lowercase();
        let said = match self.clean(&error.message) {
            said if said.is_empty() => "an error without a message".to_owned(),
            said => said,
        };
        let has = |words: &[&str]| kind.split(' ').any(|found| words.contains(&found));
        if is_quota(&kind) || has(&["402"]) {
            self.quota_used_up()
        } else if kind.contains("rate_limit") || has(&["429", "resource_exhausted"]) {
            ProviderError::RateLimited { provider, key: self.key_of, retry_after: None }
        } else if has(&["authentication_error", "permission_error", "401", "403", "invalid_api_key"]) {
            self.key_refused()
        } else if has(&["not_found_error", "model_not_found", "404"]) {
            self.model_not_found()
        } else if kind.contains("invalid_request") || has(&["400", "413", "request_too_large", "invalid_argument"]) {
            ProviderError::RequestRefused { provider, said }
        } else {
            ProviderError::Unavailable { provider, said, retry_after: None }
        }
    }

    pub(super) fn key_refused(&self) -> ProviderError {
        ProviderError::KeyRefused { provider: self.provider.to_owned(), key: self.key_of }
    }

    fn quota_used_up(&self) -> ProviderError {
        ProviderError::QuotaUsedUp { provider: self.provider.to_owned(), key: self.key_of }
    }

    fn model_not_found(&self) -> ProviderError {
        ProviderError::ModelNotFound { provider: self.provider.to_owned(), model: self.model.to_owned() }
    }

    /// Fit to be shown: short, one line, and without the key, which some providers repeat.
    fn clean(&self, said: &str) -> String {
        let said = if self.key.is_empty() { said.to_owned() } else { said.replace(self.key, "[key]") };
        let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        said.trim().chars().take(SAID_CHARS_MAX).collect()
    }
}

/// Waiting does not help: somebody has to pay, or to raise a limit.
fn is_quota(kind: &str) -> bool {
    ["insufficient_quota", "billing_error", "billing_not_active", "insufficient_credits"]
        .iter()
        .any(|word| kind.contains(word))
}

fn is_bad_key(error: &SaidError) -> bool {
    error.message.contains("API key not valid") || error.message.contains("API_KEY_INVALID")
}

/// `retry-after-ms`, else `Retry-After` in seconds or as a date. A date is read by the provider's own clock: without its
/// `Date` it says nothing.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let date = |text: &str| OffsetDateTime::parse(text, &Rfc2822).ok();
    let wait = text("retry-after-ms").and_then(|ms| seconds(ms.parse::<f64>().ok()? / 1000.0)).or_else(|| {
        let asked = text(header::RETRY_AFTER.as_str())?;
        match asked.parse::<f64>() {
            Ok(number) => seconds(number),
            Err(_) => (date(asked)? - date(text(header::DATE.as_str())?)?).try_into().ok(),
        }
    });
    wait.map(|wait| wait.min(RETRY_AFTER_MAX))
}

/// The error in a refusal's body: OpenAI's envelope, the forms that others use (Gemini puts it into a list), or plain
/// text.
fn message(body: &[u8]) -> SaidError {
    let text = String::from_utf8_lossy(body);
    let Ok(json) = serde_json::from_str::<Value>(&text) else {
        // Somebody's page for people says nothing.
        let message = if text.trim_start().starts_with('<') { String::new() } else { text.into_owned() };
        return SaidError { kind: String::new(), message };
    };
    let found = ["/error", "/0/error", "/detail", ""].into_iter().filter_map(|pointer| json.pointer(pointer));
    match found.map(reply::said).find(|error| !error.message.is_empty()) {
        Some(error) => error,
        None => SaidError { kind: String::new(), message: text.into_owned() },
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(key: &str) -> Asked<'_> {
        Asked { provider: "acme", model: "m-1", key_of: KeyOf::Tenant, key }
    }

    #[test]
    fn a_message_is_found_cleaned_and_cut() {
        let said = |body: &[u8]| asked("sk-1").clean(&message(body).message);
        for (body, expected) in [
            (r#"{"error":{"message":"bad sk-1 thing","type":"x"}}"#, "bad [key] thing"),
            (r#"{"error":"plain"}"#, "plain"),
            (r#"{"message":"line\nline"}"#, "line line"),
            (r#"{"detail":"d"}"#, "d"),
            (r#"[{"error":{"code":400,"message":"listed","status":"INVALID_ARGUMENT"}}]"#, "listed"),
            (r#"{"type":"error","error":{"type":"invalid_request_error","message":"named"}}"#, "named"),
            (" just text sk-1sk-1\n", "just text [key][key]"),
            ("<html><body>Bad gateway</body></html>", ""),
            ("", ""),
        ] {
            assert_eq!(said(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(said(&[b'x'; 4000]).len(), 500);
        assert_eq!(asked("").clean(&"é".repeat(4000)).chars().count(), 500);
        assert_eq!(said(&[0xff, b'a']), "\u{fffd}a");
    }

    #[test]
    fn a_refusal_means_one_thing() {
        for (status, body, code) in [
            (
                400,
                r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
                "provider.key_refused",
            ),
            (400, r#"{"error":{"message":"bad","type":"invalid_request_error"}}"#, "provider.request_refused"),
            (401, "", "provider.key_refused"),
            (402, r#"{"error":{"message":"Insufficient credits","code":402}}"#, "provider.quota_used_up"),
            (413, r#"{"type":"error","error":{"type":"request_too_large","message":"x"}}"#, "provider.request_refused"),
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
                "provider.quota_used_up",
            ),
            (429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"x"}}"#, "provider.rate_limited"),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                "provider.unavailable",
            ),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = asked("").by_status(status, &HeaderMap::new(), body.as_bytes());
            assert_eq!(domain::Problem::code(&error), code, "{status} {body}");
        }
        for (kind, code) in [
            ("overloaded_error", "provider.unavailable"),
            ("api_error", "provider.unavailable"),
            ("", "provider.unavailable"),
            ("rate_limit_error", "provider.rate_limited"),
            ("429 RESOURCE_EXHAUSTED", "provider.rate_limited"),
            ("invalid_request_error", "provider.request_refused"),
            ("400 INVALID_ARGUMENT", "provider.request_refused"),
            ("authentication_error", "provider.key_refused"),
            ("not_found_error", "provider.model_not_found"),
            ("billing_error", "provider.quota_used_up"),
            ("insufficient_quota", "provider.quota_used_up"),
        ] {
            let error = asked("").by_kind(&SaidError { kind: kind.into(), message: String::new() });
            assert_eq!(domain::Problem::code(&error), code, "{kind}");
        }
    }

    #[test]
    fn a_wait_is_read_in_every_form() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (headers, expected_ms) in [
            (vec![], None),
            (vec![("retry-after", "7")], Some(7000)),
            (vec![("retry-after", " 0 ")], Some(0)),
            (vec![("retry-after", "1.5")], Some(1500)),
            (vec![("retry-after-ms", "250"), ("retry-after", "1")], Some(250)),
            (vec![("retry-after-ms", "soon"), ("retry-after", "1")], Some(1000)),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "-1")], None),
            (vec![("retry-after", "NaN")], None),
            (vec![("retry-after", "1e300")], None),
            (vec![("retry-after", "99999999999")], Some(86_400_000)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT"), date], Some(20_000)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:17 GMT"), date], None),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT")], None),
        ] {
            let found = HeaderMap::from_iter(
                headers
                    .iter()
                    .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value))),
            );
            let expected = expected_ms.map(Duration::from_millis);
            assert_eq!(retry_after(&found), expected, "{headers:?}");
        }
    }
}
