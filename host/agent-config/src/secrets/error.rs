//! What can be wrong with a secret, or with a grant that names one.

use domain::{FieldError, Kind, Problem, SecretName, grants::http::HostPattern};
use tenancy::{DbError, seal::SealError};

use super::{HOSTS_MAX, SECRETS_MAX, VALUE_BYTES_MAX};

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("no such secret; `GET /v1/secrets` lists yours")]
    NotFound,
    #[error("a secret's `value` has 1 to {VALUE_BYTES_MAX} bytes")]
    BadValue,
    #[error("a secret has at most {HOSTS_MAX} `hosts`; use `*.name` for many of one name")]
    TooManyHosts,
    #[error("you have {SECRETS_MAX} secrets; delete one first")]
    TooMany,
    /// Named by grants and not stored.
    #[error("there is no secret {}; store it with `PUT /v1/secrets/{{name}}`", listed(.0))]
    Missing(Vec<SecretName>),
    #[error(
        "the secret `{name}` is not stored as readable, so no tool may read it by name; bind it to a request in `http`, or \
         store it again with `readable: true`"
    )]
    NotReadable { pointer: String, name: SecretName },
    #[error(
        "the secret `{name}` is for {} only; to send it to `{host}`, use a key with the scope `secrets:write`, or store the \
         secret again with this host",
        listed(hosts)
    )]
    HostOutside { pointer: String, name: SecretName, host: HostPattern, hosts: Vec<HostPattern> },
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Db(#[from] DbError),
}

fn listed(names: &[impl ToString]) -> String {
    names.iter().map(|name| format!("`{}`", name.to_string())).collect::<Vec<_>>().join(", ")
}

impl SecretError {
    /// Where in the grants the mistake is, as a JSON pointer.
    pub fn pointer(&self) -> &str {
        match self {
            SecretError::NotReadable { pointer, .. } | SecretError::HostOutside { pointer, .. } => pointer,
            _ => "",
        }
    }
}

impl From<sqlx::Error> for SecretError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for SecretError {
    fn kind(&self) -> Kind {
        match self {
            SecretError::NotFound => Kind::NotFound,
            SecretError::BadValue
            | SecretError::TooManyHosts
            | SecretError::TooMany
            | SecretError::Missing(_)
            | SecretError::NotReadable { .. } => Kind::Invalid,
            SecretError::HostOutside { .. } => Kind::Forbidden,
            SecretError::Seal(error) => error.kind(),
            SecretError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            SecretError::NotFound | SecretError::Missing(_) => "secret.not_found",
            SecretError::BadValue => "secret.bad_value",
            SecretError::TooManyHosts => "secret.too_many_hosts",
            SecretError::TooMany => "secret.too_many",
            SecretError::NotReadable { .. } => "secret.not_readable",
            SecretError::HostOutside { .. } => "secret.host_outside",
            SecretError::Seal(error) => error.code(),
            SecretError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let at = |pointer: &str| vec![FieldError::new(pointer, self.to_string())];
        match self {
            SecretError::BadValue => at("/value"),
            SecretError::TooManyHosts => at("/hosts"),
            SecretError::Missing(_) | SecretError::NotReadable { .. } | SecretError::HostOutside { .. } => {
                at(&format!("/grants{}", self.pointer()))
            }
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            SecretError::Seal(error) => error.retry_after_seconds(),
            SecretError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}
