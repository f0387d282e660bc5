//! What every crate's error tells a stranger.

use serde::{Deserialize, Serialize};

/// What kind of answer a problem is. The gateway turns it into an HTTP status, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be read at all.
    Malformed,
    /// No key, or a wrong one.
    Unauthenticated,
    /// There is no money left for it, or not enough.
    PaymentRequired,
    Forbidden,
    /// Also everything that belongs to another tenant.
    NotFound,
    /// It contradicts the present state.
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    /// It can be read, and is wrong.
    Invalid,
    TooMany,
    /// A third party that the caller chose has failed.
    Upstream,
    /// Come back later.
    Unavailable,
    /// A broken promise of our own: logged with the request's id, told without detail.
    Internal,
}

/// One field of a request and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// RFC 6901.
    pub pointer: String,
    pub detail: String,
}

impl FieldError {
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

/// An error with a stable code. `Display` says what to do, in words fit for a stranger: no SQL, no path, no secret.
pub trait Problem: std::error::Error + Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// `noun.reason`; never changes.
    fn code(&self) -> &'static str;

    /// For invalid input: which fields.
    fn fields(&self) -> Vec<FieldError> {
        Vec::new()
    }

    /// Seconds to wait, where waiting helps.
    fn retry_after_seconds(&self) -> Option<u64> {
        None
    }
}
