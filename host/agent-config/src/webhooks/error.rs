//! What can be wrong with a webhook.

use domain::{FieldError, Kind, Problem};
use tenancy::{DbError, seal::SealError};

use super::{URL_BYTES_MAX, WEBHOOKS_MAX};

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("no such webhook; `GET /v1/webhooks` lists yours")]
    NotFound,
    #[error("the webhook has no such delivery; `GET /v1/webhooks/{{id}}/deliveries` lists those it has")]
    DeliveryNotFound,
    #[error("`url` is 1 to {URL_BYTES_MAX} bytes without spaces; write one such as `https://example.com/hooks`")]
    BadUrl,
    #[error("`events` is empty; name what the webhook is to be told of, such as `run.completed`")]
    NoEvents,
    #[error("you have {WEBHOOKS_MAX} webhooks; delete one first")]
    TooMany,
    #[error("the webhook is disabled; enable it first, by a PATCH with `\"enabled\": true`")]
    Disabled,
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for WebhookError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for WebhookError {
    fn kind(&self) -> Kind {
        match self {
            WebhookError::NotFound | WebhookError::DeliveryNotFound => Kind::NotFound,
            WebhookError::BadUrl | WebhookError::NoEvents | WebhookError::TooMany => Kind::Invalid,
            WebhookError::Disabled => Kind::Conflict,
            WebhookError::Seal(error) => error.kind(),
            WebhookError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            WebhookError::NotFound => "webhook.not_found",
            WebhookError::DeliveryNotFound => "delivery.not_found",
            WebhookError::BadUrl => "webhook.bad_url",
            WebhookError::NoEvents => "webhook.no_events",
            WebhookError::TooMany => "webhook.too_many",
            WebhookError::Disabled => "webhook.disabled",
            WebhookError::Seal(error) => error.code(),
            WebhookError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let at = |pointer: &str| vec![FieldError::new(pointer, self.to_string())];
        match self {
            WebhookError::BadUrl => at("/url"),
            WebhookError::NoEvents => at("/events"),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            WebhookError::Seal(error) => error.retry_after_seconds(),
            WebhookError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}
