//! A tenant's own keys for model providers, sealed. A key goes in and never comes out but to call the provider.

use domain::{ExposeSecret, FieldError, Kind, Problem, SecretString, Timestamp, names::ProviderName, page::Page};
use serde::{Deserialize, Serialize};
use tenancy::{
    DbError, TenantTx,
    seal::{self, MasterKey, Sealed},
};
use url::Url;

/// Bytes of a key: longer than any that a provider gives.
pub const API_KEY_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a base URL: it becomes part of every request.
pub const BASE_URL_BYTES_MAX: usize = 2 * 1024;
/// Keys of one tenant: their list is one page.
pub const KEYS_MAX: i64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    Openai,
    /// Any URL that speaks OpenAI's chat completions.
    OpenaiCompatible,
    Anthropic,
    Gemini,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ProviderKey {
    /// What a model's `provider` names.
    pub name: ProviderName,
    pub kind: ProviderKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A key as it is written, always whole: with another `base_url` the key is given again.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderKeySpec {
    pub kind: ProviderKind,
    #[schema(value_type = String, format = Password)]
    pub api_key: SecretString,
    /// Required for `openai_compatible`: up to the path before `/chat/completions` (of `anthropic`, before `/messages`), such
    /// as `https://api.example/v1`. Without it, the provider's own.
    #[serde(default)]
    pub base_url: Option<String>,
}

/// A key on its way to its provider.
#[derive(Debug, Clone)]
pub struct OpenedKey {
    pub kind: ProviderKind,
    pub base_url: Option<String>,
    pub api_key: SecretString,
}

#[derive(Debug, thiserror::Error)]
pub enum ProviderKeyError {
    #[error("no such provider key; `GET /v1/provider-keys` lists yours")]
    NotFound,
    #[error("`api_key` is not a key: give 1 to {API_KEY_BYTES_MAX} visible ASCII characters")]
    BadKey,
    #[error("`X-Provider-Key` is not a key: send it once, 1 to {API_KEY_BYTES_MAX} visible ASCII characters")]
    BadRequestKey,
    #[error("`base_url` {0}")]
    BadBaseUrl(&'static str),
    #[error("you have {KEYS_MAX} provider keys; delete one first")]
    TooMany,
    #[error(transparent)]
    Seal(#[from] seal::SealError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for ProviderKeyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for ProviderKeyError {
    fn kind(&self) -> Kind {
        match self {
            ProviderKeyError::NotFound => Kind::NotFound,
            ProviderKeyError::BadKey
            | ProviderKeyError::BadRequestKey
            | ProviderKeyError::BadBaseUrl(_)
            | ProviderKeyError::TooMany => Kind::Invalid,
            ProviderKeyError::Seal(error) => error.kind(),
            ProviderKeyError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ProviderKeyError::NotFound => "provider_key.not_found",
            ProviderKeyError::BadKey | ProviderKeyError::BadRequestKey => "provider_key.bad_key",
            ProviderKeyError::BadBaseUrl(_) => "provider_key.bad_base_url",
            ProviderKeyError::TooMany => "provider_key.too_many",
            ProviderKeyError::Seal(error) => error.code(),
            ProviderKeyError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let at = |pointer: &str| vec![FieldError::new(pointer, self.to_string())];
        match self {
            ProviderKeyError::BadKey => at("/api_key"),
            ProviderKeyError::BadBaseUrl(_) => at("/base_url"),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            ProviderKeyError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl ProviderKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ProviderKind::Openai => "openai",
            ProviderKind::OpenaiCompatible => "openai_compatible",
            ProviderKind::Anthropic => "anthropic",
            ProviderKind::Gemini => "gemini",
        }
    }

    fn stored(text: &str) -> Result<Self, sqlx::Error> {
        [ProviderKind::Openai, ProviderKind::OpenaiCompatible, ProviderKind::Anthropic, ProviderKind::Gemini]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| crate::unreadable("unknown provider kind"))
    }
}

impl ProviderKeySpec {
    /// What can be said without asking the network. Whether the address may be reached, egress decides.
    fn check(&self) -> Result<(), ProviderKeyError> {
        if !is_key(self.api_key.expose_secret().as_bytes()) {
            return Err(ProviderKeyError::BadKey);
        }
        match (self.kind, &self.base_url) {
            (ProviderKind::OpenaiCompatible, None) => Err(ProviderKeyError::BadBaseUrl(
                "is missing; give the provider's URL, such as `https://api.example/v1`",
            )),
            (_, None) => Ok(()),
            (_, Some(url)) => base_url(url).map_err(ProviderKeyError::BadBaseUrl),
        }
    }
}

fn is_key(key: &[u8]) -> bool {
    (1..=API_KEY_BYTES_MAX).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic)
}

/// The key that a request brings in its header.
pub fn of_request(header: &[u8]) -> Result<SecretString, ProviderKeyError> {
    let text = std::str::from_utf8(header).ok().filter(|_| is_key(header));
    text.map(SecretString::from).ok_or(ProviderKeyError::BadRequestKey)
}

fn base_url(text: &str) -> Result<(), &'static str> {
    if text.len() > BASE_URL_BYTES_MAX {
        return Err("is longer than 2048 bytes; shorten it");
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err("contains a space or a control character; remove it");
    }
    let url = Url::parse(text).map_err(|_| "is not a URL; write one such as `https://api.example/v1`")?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err("is not an `https` or `http` URL; write one such as `https://api.example/v1`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user name or a password; the key goes into `api_key`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment; leave them out");
    }
    Ok(())
}

/// What binds a sealed key to its place, and to where it is sent.
fn context(name: &str, kind: &str, base_url: Option<&str>) -> String {
    format!("provider_key/{name}/{kind}/{}", base_url.unwrap_or_default())
}

/// Sets a key. The answer's second part says whether it is new.
pub async fn put(
    tx: &mut TenantTx,
    master: &MasterKey,
    name: &ProviderName,
    spec: ProviderKeySpec,
    now: Timestamp,
) -> Result<(ProviderKey, bool), ProviderKeyError> {
    spec.check()?;
    let kind = spec.kind;
    let context = context(name.as_str(), kind.as_str(), spec.base_url.as_deref());
    let sealed = seal::seal(tx, master, &context, spec.api_key.expose_secret().as_bytes(), now).await?;
    let row = sqlx::query!(
        r#"
        INSERT INTO provider_key
            (tenant_id, name, kind, base_url, sealed, data_key_version, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
        ON CONFLICT (tenant_id, name) DO UPDATE
        SET kind = excluded.kind, base_url = excluded.base_url, sealed = excluded.sealed,
            data_key_version = excluded.data_key_version, updated_at = excluded.updated_at
        RETURNING created_at, xmax = 0 AS "new!",
            (SELECT count(*) FROM provider_key WHERE tenant_id = $1) AS "others!"
        "#,
        tx.tenant().uuid(),
        name.as_str(),
        kind.as_str(),
        spec.base_url.as_deref(),
        sealed.bytes,
        sealed.data_key_version,
        now.offset(),
    )
    .fetch_one(tx.conn())
    .await?;
    // The count is of before this statement. The caller does not commit after an error.
    if row.new && row.others >= KEYS_MAX {
        return Err(ProviderKeyError::TooMany);
    }
    let created_at = row.created_at.into();
    Ok((ProviderKey { name: name.clone(), kind, base_url: spec.base_url, created_at, updated_at: now }, row.new))
}

/// All keys, by name, without what they hold.
pub async fn list(tx: &mut TenantTx) -> Result<Page<ProviderKey>, ProviderKeyError> {
    let rows = sqlx::query!(
        r#"
        SELECT name, kind, base_url, created_at, updated_at FROM provider_key
        WHERE tenant_id = $1
        ORDER BY name
        "#,
        tx.tenant().uuid(),
    )
    .fetch_all(tx.conn())
    .await?;
    let data = rows
        .into_iter()
        .map(|row| {
            Ok(ProviderKey {
                name: row.name.parse().map_err(crate::unreadable)?,
                kind: ProviderKind::stored(&row.kind)?,
                base_url: row.base_url,
                created_at: row.created_at.into(),
                updated_at: row.updated_at.into(),
            })
        })
        .collect::<Result<_, ProviderKeyError>>()?;
    Ok(Page { data, next: None })
}

pub async fn delete(tx: &mut TenantTx, name: &ProviderName) -> Result<(), ProviderKeyError> {
    let deleted =
        sqlx::query!("DELETE FROM provider_key WHERE tenant_id = $1 AND name = $2", tx.tenant().uuid(), name.as_str(),)
            .execute(tx.conn())
            .await?;
    if deleted.rows_affected() == 0 { Err(ProviderKeyError::NotFound) } else { Ok(()) }
}

/// The key of this name, opened for whoever asks its provider.
pub async fn open(tx: &mut TenantTx, master: &MasterKey, name: &str) -> Result<Option<OpenedKey>, ProviderKeyError> {
    let row = sqlx::query!(
        "SELECT kind, base_url, sealed, data_key_version FROM provider_key WHERE tenant_id = $1 AND name = $2",
        tx.tenant().uuid(),
        name,
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let sealed = Sealed { bytes: row.sealed, data_key_version: row.data_key_version };
    let plain = seal::open(tx, master, &context(name, &row.kind, row.base_url.as_deref()), &sealed).await?;
    // `put` takes ASCII only.
    let api_key = std::str::from_utf8(&plain).map_err(crate::unreadable)?;
    Ok(Some(OpenedKey {
        kind: ProviderKind::stored(&row.kind)?,
        base_url: row.base_url,
        api_key: SecretString::from(api_key),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ProviderKind, api_key: &str, base_url: Option<&str>) -> ProviderKeySpec {
        ProviderKeySpec { kind, api_key: api_key.into(), base_url: base_url.map(Into::into) }
    }

    #[test]
    fn a_key_that_cannot_be_used_is_not_kept() {
        use ProviderKind::*;
        for (spec, code) in [
            (spec(Anthropic, "", None), "provider_key.bad_key"),
            (spec(Gemini, "k", Some("http://")), "provider_key.bad_base_url"),
            (spec(Openai, "", None), "provider_key.bad_key"),
            (spec(Openai, "a b", None), "provider_key.bad_key"),
            (spec(Openai, "a\r\nHost: b", None), "provider_key.bad_key"),
            (spec(Openai, &"k".repeat(API_KEY_BYTES_MAX + 1), None), "provider_key.bad_key"),
            (spec(OpenaiCompatible, "k", None), "provider_key.bad_base_url"),
            (spec(OpenaiCompatible, "k", Some("api.example")), "provider_key.bad_base_url"),
            (spec(OpenaiCompatible, "k", Some("file:///etc/passwd")), "provider_key.bad_base_url"),
            (spec(OpenaiCompatible, "k", Some("https://u:p@api.example")), "provider_key.bad_base_url"),
            (spec(OpenaiCompatible, "k", Some("https://api.example/?a=1")), "provider_key.bad_base_url"),
            (spec(OpenaiCompatible, "k", Some("https://api.example/#a")), "provider_key.bad_base_url"),
            (spec(OpenaiCompatible, "k", Some("https://api.example/\n")), "provider_key.bad_base_url"),
        ] {
            assert_eq!(spec.check().unwrap_err().code(), code, "{:?} {:?}", spec.kind, spec.base_url);
        }
        for kind in [Openai, Anthropic, Gemini] {
            assert!(spec(kind, "k", None).check().is_ok(), "{kind:?}");
        }
        assert!(spec(OpenaiCompatible, "k", Some("http://localhost:8000/v1")).check().is_ok());
        for header in [&b""[..], b"a b", b"a\0", b"a\xff", &[b'k'; API_KEY_BYTES_MAX + 1]] {
            assert_eq!(of_request(header).unwrap_err().code(), "provider_key.bad_key", "{header:?}");
        }
        assert_eq!(of_request(b"sk-1").unwrap().expose_secret(), "sk-1");
    }
}
