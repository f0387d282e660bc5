//! What can go wrong with a provider, in words that say whose turn it is.

use std::time::Duration;

use domain::{Kind, Problem};
use egress::EgressError;

#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("there is no model provider `{provider}`; add a provider key named `{provider}`, or choose another model")]
    Unknown { provider: String },
    #[error("provider key `{provider}` has no base_url; an OpenAI-compatible provider needs one")]
    BaseUrlMissing { provider: String },
    #[error("provider `{provider}` refused the API key; set a valid provider key named `{provider}`")]
    KeyRefused { provider: String },
    #[error("provider `{provider}` does not know the model `{model}`; check its name, and the provider key's base_url")]
    ModelNotFound { provider: String, model: String },
    #[error(
        "provider `{provider}` answers that there were too many requests or that its quota is used up; try later, or raise the limit there"
    )]
    RateLimited { provider: String, retry_after: Option<Duration> },
    #[error("provider `{provider}` refused the request: {said}")]
    RequestRefused { provider: String, said: String },
    #[error("provider `{provider}` is not available at the moment ({said}); try again")]
    Unavailable { provider: String, said: String, retry_after: Option<Duration> },
    #[error("provider `{provider}` did not answer in time; try again")]
    Timeout { provider: String },
    #[error(
        "provider `{provider}` sent an answer that cannot be read: {reason}; check that its base_url is an OpenAI-compatible one"
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
            ProviderError::RateLimited { .. } | ProviderError::Unavailable { .. } | ProviderError::Timeout { .. } => {
                true
            }
            ProviderError::Egress(error) => {
                matches!(error, EgressError::ConnectFailed { .. } | EgressError::Timeout { .. })
            }
            _ => false,
        }
    }

    /// How long the provider asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ProviderError::RateLimited { retry_after, .. } | ProviderError::Unavailable { retry_after, .. } => {
                *retry_after
            }
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
            ProviderError::ModelNotFound { .. } => "provider.model_not_found",
            ProviderError::RateLimited { .. } => "provider.rate_limited",
            ProviderError::RequestRefused { .. } => "provider.request_refused",
            ProviderError::Unavailable { .. } => "provider.unavailable",
            ProviderError::Timeout { .. } => "provider.timeout",
            ProviderError::BadStream { .. } => "provider.bad_stream",
            ProviderError::CutShort { .. } => "provider.cut_short",
            ProviderError::Egress(error) => error.code(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after().map(|wait| wait.as_secs())
    }
}
