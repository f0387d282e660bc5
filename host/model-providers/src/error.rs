//! What can go wrong with a provider, in words that say whose turn it is.

use std::{fmt, time::Duration};

use domain::{Kind, Problem};
use egress::EgressError;

/// Whose key a provider was asked with, and so who can mend what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOf {
    /// The operator's.
    Platform,
    /// A stored provider key.
    Tenant,
    /// `X-Provider-Key` of the request.
    Request,
}

#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("there is no model provider `{provider}`; add a provider key named `{provider}`, or choose another model")]
    Unknown { provider: String },
    #[error("provider key `{provider}` has no base_url; an OpenAI-compatible provider needs one")]
    BaseUrlMissing { provider: String },
    #[error("provider `{provider}` refused {}", Mend { provider, key: *key, wrong: Wrong::Key })]
    KeyRefused { provider: String, key: KeyOf },
    #[error("provider `{provider}` answers that {}", Mend { provider, key: *key, wrong: Wrong::Quota })]
    QuotaUsedUp { provider: String, key: KeyOf },
    #[error("provider `{provider}` does not know the model `{model}`; check its name, and the provider key's base_url")]
    ModelNotFound { provider: String, model: String },
    #[error("provider `{provider}` answers that {}", Mend { provider, key: *key, wrong: Wrong::Rate })]
    RateLimited { provider: String, key: KeyOf, retry_after: Option<Duration> },
    #[error("provider `{provider}` refused the request: {said}")]
    RequestRefused { provider: String, said: String },
    #[error("provider `{provider}` is not available at the moment ({said}); try again")]
    Unavailable { provider: String, said: String, retry_after: Option<Duration> },
    #[error(
        "provider `{provider}` has failed several times in a row and is left alone for {} more seconds; try again then, or give the agent `fallback_models`",
        seconds(*retry_after)
    )]
    CircuitOpen { provider: String, retry_after: Duration },
    #[error("provider `{provider}` did not answer in time; try again")]
    Timeout { provider: String },
    #[error(
        "provider `{provider}` sent an answer that cannot be read: {reason}; check the kind and the base_url of its provider key"
    )]
    BadStream { provider: String, reason: &'static str },
    #[error("provider `{provider}` broke off in the middle of its answer; try again")]
    CutShort { provider: String },
    #[error(transparent)]
    Egress(#[from] EgressError),
}

impl ProviderError {
    /// Whether the same request may succeed a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            ProviderError::RateLimited { .. } => true,
            other => other.is_failure_of_provider(),
        }
    }

    /// Whether the provider itself is in trouble, whatever it is asked.
    pub(crate) fn is_failure_of_provider(&self) -> bool {
        match self {
            ProviderError::Unavailable { .. } | ProviderError::Timeout { .. } => true,
            ProviderError::Egress(error) => {
                matches!(error, EgressError::ConnectFailed { .. } | EgressError::Timeout { .. })
            }
            _ => false,
        }
    }

    /// How long to wait, where somebody said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ProviderError::RateLimited { retry_after, .. } | ProviderError::Unavailable { retry_after, .. } => {
                *retry_after
            }
            ProviderError::CircuitOpen { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

impl Problem for ProviderError {
    fn kind(&self) -> Kind {
        match self {
            ProviderError::Unknown { .. } | ProviderError::BaseUrlMissing { .. } => Kind::Invalid,
            ProviderError::Egress(error) => error.kind(),
            _ => Kind::Upstream,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ProviderError::Unknown { .. } => "provider.unknown",
            ProviderError::BaseUrlMissing { .. } => "provider.base_url_missing",
            ProviderError::KeyRefused { .. } => "provider.key_refused",
            ProviderError::QuotaUsedUp { .. } => "provider.quota_used_up",
            ProviderError::ModelNotFound { .. } => "provider.model_not_found",
            ProviderError::RateLimited { .. } => "provider.rate_limited",
            ProviderError::RequestRefused { .. } => "provider.request_refused",
            ProviderError::Unavailable { .. } => "provider.unavailable",
            ProviderError::CircuitOpen { .. } => "provider.circuit_open",
            ProviderError::Timeout { .. } => "provider.timeout",
            ProviderError::BadStream { .. } => "provider.bad_stream",
            ProviderError::CutShort { .. } => "provider.cut_short",
            ProviderError::Egress(error) => error.code(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after().map(seconds)
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000) as u64
}

/// What is wrong with a key, and who does what about it.
struct Mend<'e> {
    provider: &'e str,
    key: KeyOf,
    wrong: Wrong,
}

enum Wrong {
    Key,
    Quota,
    Rate,
}

impl fmt::Display for Mend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mend { provider, key, wrong } = self;
        match (wrong, key) {
            (Wrong::Key, KeyOf::Tenant) => write!(f, "the API key; set a valid provider key named `{provider}`"),
            (Wrong::Key, KeyOf::Request) => write!(f, "the key in `X-Provider-Key`; send a valid one of `{provider}`"),
            (Wrong::Key, KeyOf::Platform) => write!(
                f,
                "the platform's own key, which only its operator can mend; until then set a provider key of your own \
                 named `{provider}`, or choose another model"
            ),
            (Wrong::Quota, KeyOf::Tenant | KeyOf::Request) => {
                f.write_str("your quota or credit there is used up; add to it there, or use another key")
            }
            (Wrong::Quota, KeyOf::Platform) => write!(
                f,
                "the platform's quota there is used up, which only its operator can mend; until then set a provider key \
                 of your own named `{provider}`, or choose another model"
            ),
            (Wrong::Rate, KeyOf::Tenant | KeyOf::Request) => {
                f.write_str("there were too many requests with your key; try later, or raise its limit there")
            }
            (Wrong::Rate, KeyOf::Platform) => write!(
                f,
                "there were too many requests from this platform; try later, or set a provider key of your own named \
                 `{provider}`"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_say_whose_turn_it_is() {
        let provider = || "acme".to_owned();
        for (error, words, not) in [
            (ProviderError::KeyRefused { provider: provider(), key: KeyOf::Tenant }, "set a valid", "operator"),
            (ProviderError::KeyRefused { provider: provider(), key: KeyOf::Request }, "`X-Provider-Key`", "operator"),
            (ProviderError::KeyRefused { provider: provider(), key: KeyOf::Platform }, "operator", "valid"),
            (ProviderError::QuotaUsedUp { provider: provider(), key: KeyOf::Tenant }, "your quota", "operator"),
            (ProviderError::QuotaUsedUp { provider: provider(), key: KeyOf::Platform }, "operator", "your quota"),
            (
                ProviderError::RateLimited { provider: provider(), key: KeyOf::Tenant, retry_after: None },
                "your key",
                "platform",
            ),
            (
                ProviderError::RateLimited { provider: provider(), key: KeyOf::Platform, retry_after: None },
                "from this platform",
                "your key",
            ),
            (
                ProviderError::CircuitOpen { provider: provider(), retry_after: Duration::from_millis(4001) },
                "5 more seconds",
                "key",
            ),
        ] {
            let said = error.to_string();
            assert!(said.contains("`acme`") && said.contains(words) && !said.contains(not), "{said}");
        }
    }
}
