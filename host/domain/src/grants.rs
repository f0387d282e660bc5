//! What a tool may touch. Deny by default: an absent grant is a denial.

pub mod http;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::SecretName;
pub use http::HttpGrant;

/// Values that one call may see through `wasi:config`, in bytes of keys and values: they are held per call.
const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// Grants of one kind in one binding: each is looked at on every use.
const GRANTS_OF_A_KIND_MAX: usize = 32;
/// Longest namespace, in bytes, as it is written and after the user's id is filled in.
const NAMESPACE_BYTES_MAX: usize = 128;
const RESOLVED_NAMESPACE_BYTES_MAX: usize = 1024;
/// The largest scratch directory: it lies on the host's disk while the call runs.
pub const SCRATCH_BYTES_MAX: u64 = 64 << 20;
/// Stands for the call's `external_user_id` in a namespace or a config value.
const USER: &str = "{external_user_id}";

/// What one binding (or one direct call) grants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Hosts the tool may send requests to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpGrant>,
    /// Namespaces of the tenant's key-value store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_value: Vec<KeyValueGrant>,
    /// Secrets the tool may read by name. Each must be stored as `readable` too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// Values the tool reads by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Size of an empty directory `/scratch` that lives as long as the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_bytes: Option<u64>,
}

/// A namespace of the tenant's key-value store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyValueGrant {
    /// May contain `{external_user_id}`: then each end user has one of their own.
    pub namespace: String,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    /// Includes reading.
    Write,
}

/// Grants of one call: places for the user's id are filled in. Kept with a recorded call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallGrants {
    pub http: Vec<HttpGrant>,
    pub key_value: Vec<OpenNamespace>,
    pub secrets: Vec<SecretName>,
    pub config: BTreeMap<String, String>,
    pub scratch_bytes: Option<u64>,
}

/// A namespace that a call may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenNamespace {
    /// As the grant writes it: the name by which a tool opens it, and by which a receipt names the grant.
    pub granted: String,
    /// Where its entries are.
    pub namespace: String,
    pub access: Access,
}

/// Why grants cannot be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrantsError {
    #[error("`config` holds {0} bytes, more than {CONFIG_BYTES_MAX}; give the tool less")]
    ConfigTooLarge(usize),
    #[error("`config` has a key that is empty or longer than 128 bytes; rename it")]
    BadConfigKey,
    #[error("`{kind}` has {count} entries, more than {GRANTS_OF_A_KIND_MAX}; grant less, or bind the tool twice")]
    TooMany { kind: &'static str, count: usize },
    #[error("`http/{index}/{field}`: {why}")]
    Http { index: usize, field: &'static str, why: String },
    #[error(
        "the namespace `{0}` is not one: use 1 to {NAMESPACE_BYTES_MAX} of the characters a-z A-Z 0-9 . _ / -, and \
         `{{external_user_id}}` for one namespace a user"
    )]
    BadNamespace(String),
    #[error("`scratch_bytes` is {0}; use 1 to {SCRATCH_BYTES_MAX}")]
    ScratchBytes(u64),
}

impl GrantsError {
    /// Where in the grants the mistake is, as a JSON pointer.
    pub fn pointer(&self) -> String {
        match self {
            GrantsError::ConfigTooLarge(_) | GrantsError::BadConfigKey => "/config".into(),
            GrantsError::TooMany { kind, .. } => format!("/{kind}"),
            GrantsError::Http { index, field, .. } => format!("/http/{index}/{field}"),
            GrantsError::BadNamespace(_) => "/key_value".into(),
            GrantsError::ScratchBytes(_) => "/scratch_bytes".into(),
        }
    }
}

impl Grants {
    pub fn check(&self) -> Result<(), GrantsError> {
        let counts = [("http", self.http.len()), ("key_value", self.key_value.len()), ("secrets", self.secrets.len())];
        if let Some((kind, count)) = counts.into_iter().find(|(_, count)| *count > GRANTS_OF_A_KIND_MAX) {
            return Err(GrantsError::TooMany { kind, count });
        }
        if self.config.keys().any(|key| key.is_empty() || key.len() > 128) {
            return Err(GrantsError::BadConfigKey);
        }
        let bytes = self.config.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > CONFIG_BYTES_MAX {
            return Err(GrantsError::ConfigTooLarge(bytes));
        }
        for (index, grant) in self.http.iter().enumerate() {
            grant.check().map_err(|(field, why)| GrantsError::Http { index, field, why })?;
        }
        if let Some(bad) = self.key_value.iter().find(|grant| !is_namespace(&grant.namespace)) {
            return Err(GrantsError::BadNamespace(bad.namespace.chars().take(80).collect()));
        }
        match self.scratch_bytes {
            Some(bytes) if !(1..=SCRATCH_BYTES_MAX).contains(&bytes) => Err(GrantsError::ScratchBytes(bytes)),
            _ => Ok(()),
        }
    }

    /// The secrets that a call under these grants needs: bound to a request, or readable.
    pub fn secret_names(&self) -> BTreeSet<&SecretName> {
        let bound = self.http.iter().flat_map(HttpGrant::secret_names);
        bound.chain(&self.secrets).collect()
    }

    /// The grants of one call: `{external_user_id}` in a config value or a namespace becomes that id. `Err` names the
    /// grant that asks for the id of a call that has none.
    pub fn for_call(&self, external_user_id: Option<&str>) -> Result<CallGrants, NoUser> {
        let fill = |grant, text: &str, encode: fn(&str) -> String| match (text.contains(USER), external_user_id) {
            (false, _) => Ok(text.to_owned()),
            (true, Some(id)) => Ok(text.replace(USER, &encode(id))),
            (true, None) => Err(NoUser { grant }),
        };
        let config = self
            .config
            .iter()
            .map(|(key, value)| Ok((key.clone(), fill("config", value, str::to_owned)?)))
            .collect::<Result<_, _>>()?;
        let key_value = self
            .key_value
            .iter()
            .map(|grant| {
                let namespace = fill("key_value", &grant.namespace, encoded)?;
                if namespace.len() > RESOLVED_NAMESPACE_BYTES_MAX {
                    return Err(NoUser { grant: "key_value" });
                }
                Ok(OpenNamespace { granted: grant.namespace.clone(), namespace, access: grant.access })
            })
            .collect::<Result<_, _>>()?;
        Ok(CallGrants {
            http: self.http.clone(),
            key_value,
            secrets: self.secrets.clone(),
            config,
            scratch_bytes: self.scratch_bytes,
        })
    }
}

/// A grant is for an end user, and the call has none (or one whose id is too long for a namespace).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the grant `{grant}` is for an end user, and this call has no external_user_id; send one")]
pub struct NoUser {
    /// `config` or `key_value`.
    pub grant: &'static str,
}

/// Whether a text may be a namespace, with or without a place for the user's id.
pub fn is_namespace(text: &str) -> bool {
    let plain = text.replace(USER, "u");
    (1..=NAMESPACE_BYTES_MAX).contains(&text.len())
        && plain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
}

/// A user's id with everything but letters, digits, `_`, `-` and `.` percent-encoded (RFC 3986), so that no id can
/// reach into the namespace of another.
fn encoded(id: &str) -> String {
    id.bytes().fold(String::with_capacity(id.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_value(namespace: &str) -> Grants {
        let grant = KeyValueGrant { namespace: namespace.into(), access: Access::Read };
        Grants { key_value: vec![grant], ..Grants::default() }
    }

    #[test]
    fn a_value_for_a_user_needs_one() {
        let grants = Grants { config: [("path".into(), "u/{external_user_id}".into())].into(), ..Grants::default() };
        assert_eq!(grants.for_call(None), Err(NoUser { grant: "config" }));
        assert_eq!(grants.for_call(Some("ada")).unwrap().config["path"], "u/ada");
    }

    #[test]
    fn no_user_reaches_the_namespace_of_another() {
        let grants = key_value("notes/{external_user_id}");
        assert_eq!(grants.for_call(None), Err(NoUser { grant: "key_value" }));
        let of = |user| grants.for_call(Some(user)).unwrap().key_value[0].namespace.clone();
        assert_eq!(of("ada"), "notes/ada");
        assert_eq!(of("ada/x"), "notes/ada%2Fx");
        assert_eq!(of("../ada%"), "notes/..%2Fada%25");
        assert_eq!(of("{external_user_id}"), "notes/%7Bexternal_user_id%7D");
        assert!(grants.for_call(Some(&"x".repeat(2_000))).is_err());
    }

    #[test]
    fn grants_that_cannot_be_given() {
        for bad in ["", "a b", "a{user}", "ä", "%2F", &"x".repeat(129)] {
            assert!(matches!(key_value(bad).check(), Err(GrantsError::BadNamespace(_))), "{bad}");
        }
        for good in ["notes", "notes/{external_user_id}", "{external_user_id}", "A.b_c-d/9"] {
            assert_eq!(key_value(good).check(), Ok(()), "{good}");
        }
        for bytes in [0, SCRATCH_BYTES_MAX + 1] {
            let grants = Grants { scratch_bytes: Some(bytes), ..Grants::default() };
            assert_eq!(grants.check(), Err(GrantsError::ScratchBytes(bytes)));
        }
    }
}
