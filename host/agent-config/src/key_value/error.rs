//! What can be wrong with an entry.

use domain::{FieldError, Kind, Problem};
use tenancy::DbError;

use super::{ENTRIES_MAX, KEY_BYTES_MAX, NAMESPACE_BYTES_MAX, VALUE_BYTES_MAX};

#[derive(Debug, thiserror::Error)]
pub enum KeyValueError {
    #[error("no such entry; `GET /v1/key-value/{{namespace}}` lists a namespace's keys")]
    NotFound,
    #[error(
        "a namespace has 1 to {NAMESPACE_BYTES_MAX} of the characters a-z A-Z 0-9 . _ / -, an end user's id in it is \
         percent-encoded, as `GET /v1/key-value` shows it"
    )]
    BadNamespace,
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes of UTF-8, without NUL")]
    BadKey,
    #[error("the value has {0} bytes; an entry takes {VALUE_BYTES_MAX} at most: split it")]
    ValueTooLarge(usize),
    #[error(
        "the entry would bring what you store to {bytes} bytes; this plan stores {max}: delete entries, or versions that no \
         agent uses"
    )]
    Quota { bytes: i64, max: i64 },
    #[error("you have {ENTRIES_MAX} entries; delete some first")]
    TooManyEntries,
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for KeyValueError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for KeyValueError {
    fn kind(&self) -> Kind {
        match self {
            KeyValueError::NotFound => Kind::NotFound,
            KeyValueError::BadNamespace | KeyValueError::BadKey => Kind::Invalid,
            KeyValueError::ValueTooLarge(_) | KeyValueError::Quota { .. } | KeyValueError::TooManyEntries => {
                Kind::TooLarge
            }
            KeyValueError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            KeyValueError::NotFound => "kv.not_found",
            KeyValueError::BadNamespace => "kv.bad_namespace",
            KeyValueError::BadKey => "kv.bad_key",
            KeyValueError::ValueTooLarge(_) => "kv.value_too_large",
            KeyValueError::Quota { .. } | KeyValueError::TooManyEntries => "kv.quota",
            KeyValueError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            KeyValueError::BadNamespace => vec![FieldError::new("/namespace", self.to_string())],
            KeyValueError::BadKey => vec![FieldError::new("/key", self.to_string())],
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            KeyValueError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}
