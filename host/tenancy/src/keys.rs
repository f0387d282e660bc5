//! API keys: made, hashed, listed, revoked.

use std::collections::HashSet;

use domain::{
    AgentId, ApiKeyId, Ids, Kind, Problem, SecretString, Timestamp,
    page::{Page, PageRequest},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{DbError, TenantTx, seal};

/// Random base62 digits of a key: 256 bits.
const RANDOM_DIGITS: usize = 43;
/// Base62 digits of the CRC-32 over what comes before: a mistyped key never reaches the database.
const CHECK_DIGITS: usize = 6;
/// Longest name of a key, in characters.
const NAME_CHARS_MAX: usize = 100;
/// Agents that one key is bound to: they are read with every request.
const AGENTS_MAX: usize = 100;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Scope {
    /// Everything, the tenant's own settings included.
    #[serde(rename = "admin")]
    Admin,
    #[serde(rename = "keys:write")]
    KeysWrite,
    #[serde(rename = "agents:read")]
    AgentsRead,
    #[serde(rename = "agents:write")]
    AgentsWrite,
    #[serde(rename = "chat")]
    Chat,
    #[serde(rename = "tools:read")]
    ToolsRead,
    #[serde(rename = "tools:write")]
    ToolsWrite,
    #[serde(rename = "tools:call")]
    ToolsCall,
    #[serde(rename = "runs:read")]
    RunsRead,
    #[serde(rename = "conversations:read")]
    ConversationsRead,
    #[serde(rename = "conversations:write")]
    ConversationsWrite,
    #[serde(rename = "secrets:write")]
    SecretsWrite,
    #[serde(rename = "usage:read")]
    UsageRead,
    #[serde(rename = "approvals:write")]
    ApprovalsWrite,
    #[serde(rename = "budgets:write")]
    BudgetsWrite,
}

impl Scope {
    pub const ALL: [Scope; 15] = [
        Scope::Admin,
        Scope::KeysWrite,
        Scope::AgentsRead,
        Scope::AgentsWrite,
        Scope::Chat,
        Scope::ToolsRead,
        Scope::ToolsWrite,
        Scope::ToolsCall,
        Scope::RunsRead,
        Scope::ConversationsRead,
        Scope::ConversationsWrite,
        Scope::SecretsWrite,
        Scope::UsageRead,
        Scope::ApprovalsWrite,
        Scope::BudgetsWrite,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Admin => "admin",
            Scope::KeysWrite => "keys:write",
            Scope::AgentsRead => "agents:read",
            Scope::AgentsWrite => "agents:write",
            Scope::Chat => "chat",
            Scope::ToolsRead => "tools:read",
            Scope::ToolsWrite => "tools:write",
            Scope::ToolsCall => "tools:call",
            Scope::RunsRead => "runs:read",
            Scope::ConversationsRead => "conversations:read",
            Scope::ConversationsWrite => "conversations:write",
            Scope::SecretsWrite => "secrets:write",
            Scope::UsageRead => "usage:read",
            Scope::ApprovalsWrite => "approvals:write",
            Scope::BudgetsWrite => "budgets:write",
        }
    }

    pub fn parse(text: &str) -> Option<Scope> {
        Scope::ALL.into_iter().find(|scope| scope.as_str() == text)
    }

    /// Whether a key with these scopes may do what `self` names.
    pub fn held_in(self, scopes: &[Scope]) -> bool {
        scopes.contains(&self) || scopes.contains(&Scope::Admin)
    }
}

/// Turns keys into what is stored of them: HMAC-SHA256 under a pepper that is not in the database. A fast hash is right:
/// keys have 256 random bits.
#[derive(Clone)]
pub struct KeyHasher(Zeroizing<[u8; 32]>);

impl KeyHasher {
    pub fn new(master: &seal::MasterKey) -> Self {
        Self(master.derive("belljar api key pepper 1"))
    }

    /// `None` for a text that cannot be a key.
    pub(crate) fn hash(&self, presented: &str) -> Option<[u8; 32]> {
        let well_formed = ["bj_live_", "bj_test_"].iter().any(|prefix| presented.starts_with(prefix))
            && presented.len() == 8 + RANDOM_DIGITS + CHECK_DIGITS
            && presented.is_ascii();
        let (body, check) = presented.split_at_checked(8 + RANDOM_DIGITS)?;
        (well_formed && check_digits(body) == check).then(|| seal::hmac(&self.0[..], presented.as_bytes()))
    }
}

fn check_digits(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut digits = [b'0'; CHECK_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % 62];
        rest /= 62;
    }
    digits.iter().map(|digit| *digit as char).collect()
}

/// Keys of development installations say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    Live,
    Test,
}

fn random_key(kind: KeyKind) -> Result<Zeroizing<String>, KeyError> {
    let mut text = Zeroizing::new(String::from(if kind == KeyKind::Live { "bj_live_" } else { "bj_test_" }));
    while text.len() < 8 + RANDOM_DIGITS {
        let mut byte = [0];
        getrandom::fill(&mut byte).map_err(|_| KeyError::NoRandomness)?;
        // Six bits; the two values past 61 are drawn again, so that all digits are equally likely.
        if let Some(digit) = BASE62.get(usize::from(byte[0] & 63)) {
            text.push(*digit as char);
        }
    }
    let check = check_digits(&text);
    text.push_str(&check);
    Ok(text)
}

/// A key as it is shown: without its text.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub name: String,
    /// How the key begins.
    pub hint: String,
    pub scopes: Vec<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<Vec<AgentId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// What is asked for.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    pub name: String,
    pub scopes: Vec<Scope>,
    #[serde(default)]
    pub agents: Option<Vec<AgentId>>,
    #[serde(default)]
    pub external_user_id: Option<String>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("a key's name has 1 to {NAME_CHARS_MAX} characters")]
    BadName,
    #[error("a key is bound to at most {AGENTS_MAX} agents; name fewer, or leave `agents` out for all")]
    TooManyAgents,
    #[error("`expires_at` has passed; choose a later time")]
    Expired,
    #[error("no such API key")]
    NotFound,
    #[error("no randomness from the operating system")]
    NoRandomness,
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for KeyError {
    fn kind(&self) -> Kind {
        match self {
            KeyError::BadName | KeyError::TooManyAgents | KeyError::Expired => Kind::Invalid,
            KeyError::NotFound => Kind::NotFound,
            KeyError::NoRandomness => Kind::Internal,
            KeyError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            KeyError::BadName => "api_key.bad_name",
            KeyError::TooManyAgents => "api_key.too_many_agents",
            KeyError::Expired => "api_key.expired",
            KeyError::NotFound => "api_key.not_found",
            KeyError::NoRandomness => "internal",
            KeyError::Db(error) => error.code(),
        }
    }
}

impl From<sqlx::Error> for KeyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Makes a key. Its text is returned here and never again.
pub async fn mint(
    tx: &mut TenantTx,
    hasher: &KeyHasher,
    kind: KeyKind,
    mut new: NewKey,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(ApiKey, SecretString), KeyError> {
    if !(1..=NAME_CHARS_MAX).contains(&new.name.chars().count()) {
        return Err(KeyError::BadName);
    }
    if new.agents.as_ref().is_some_and(|agents| agents.len() > AGENTS_MAX) {
        return Err(KeyError::TooManyAgents);
    }
    let mut seen = HashSet::new();
    new.scopes.retain(|scope| seen.insert(*scope));
    if new.expires_at.is_some_and(|at| at <= now) {
        return Err(KeyError::Expired);
    }
    let text = random_key(kind)?;
    let hash = hasher.hash(&text).ok_or(KeyError::NoRandomness)?;
    let key = ApiKey {
        id: ApiKeyId::new(ids),
        name: new.name,
        hint: text[..12].to_owned(),
        scopes: new.scopes,
        agents: new.agents,
        external_user_id: new.external_user_id,
        expires_at: new.expires_at,
        revoked_at: None,
        created_at: now,
    };
    let scopes: Vec<String> = key.scopes.iter().map(|scope| scope.as_str().to_owned()).collect();
    let agents = key.agents.as_ref().map(|agents| agents.iter().map(|id| id.uuid()).collect::<Vec<_>>());
    sqlx::query!(
        r#"
        INSERT INTO api_key (tenant_id, api_key_id, name, hash, hint, scopes, agents, external_user_id, expires_at, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        "#,
        tx.tenant().uuid(),
        key.id.uuid(),
        key.name,
        &hash[..],
        key.hint,
        &scopes,
        agents.as_deref(),
        key.external_user_id,
        key.expires_at.map(Timestamp::offset),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok((key, SecretString::from(text.as_str())))
}

/// All keys, revoked ones too, newest first.
pub async fn list(tx: &mut TenantTx, page: PageRequest) -> Result<Page<ApiKey>, KeyError> {
    let rows = sqlx::query!(
        r#"
        SELECT api_key_id, name, hint, scopes, agents, external_user_id, expires_at, revoked_at, created_at
        FROM api_key
        WHERE tenant_id = $1 AND ($2::uuid IS NULL OR api_key_id < $2)
        ORDER BY api_key_id DESC LIMIT $3
        "#,
        tx.tenant().uuid(),
        page.after,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let keys = rows
        .into_iter()
        .map(|row| ApiKey {
            id: row.api_key_id.into(),
            name: row.name,
            hint: row.hint,
            scopes: row.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect(),
            agents: row.agents.map(|agents| agents.into_iter().map(AgentId::from).collect()),
            external_user_id: row.external_user_id,
            expires_at: row.expires_at.map(Timestamp::from),
            revoked_at: row.revoked_at.map(Timestamp::from),
            created_at: row.created_at.into(),
        })
        .collect();
    Ok(Page::cut(keys, page, |key: &ApiKey| key.id.uuid()))
}

/// From now on the key is refused. Revoking it again changes nothing.
pub async fn revoke(tx: &mut TenantTx, id: ApiKeyId, now: Timestamp) -> Result<(), KeyError> {
    let touched = sqlx::query!(
        "UPDATE api_key SET revoked_at = coalesce(revoked_at, $3) WHERE tenant_id = $1 AND api_key_id = $2",
        tx.tenant().uuid(),
        id.uuid(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    if touched.rows_affected() == 0 { Err(KeyError::NotFound) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_is_no_key() {
        let hasher = KeyHasher::new(&seal::MasterKey::new([1; 32]));
        let key = random_key(KeyKind::Test).unwrap();
        assert!(hasher.hash(&key).is_some());
        let mut wrong = key.to_string();
        let swapped = if wrong.ends_with('A') { 'B' } else { 'A' };
        wrong.pop();
        wrong.push(swapped);
        for text in [wrong.as_str(), "", "bj_test_", "Bearer x", &key[1..], &"é".repeat(40)] {
            assert_eq!(hasher.hash(text), None, "{text}");
        }
    }

    #[test]
    fn admin_holds_every_scope() {
        assert!(Scope::Chat.held_in(&[Scope::Admin]));
        assert!(!Scope::Admin.held_in(&[Scope::Chat, Scope::KeysWrite]));
        assert!(Scope::ALL.iter().all(|scope| Scope::parse(scope.as_str()) == Some(*scope)));
    }
}
