//! Secrets that tools use: sealed, bound to requests by grants. A value goes in and comes out only for a call.

mod error;
mod naming;

use std::collections::{BTreeMap, BTreeSet};

use domain::{ExposeSecret, Grants, SecretName, SecretString, Timestamp, grants::http::HostPattern};
use serde::{Deserialize, Serialize};
use tenancy::{
    TenantTx,
    seal::{self, MasterKey, Sealed},
};
use tool_api::OpenSecret;

pub use error::SecretError;
pub use naming::{NamingRight, Rule, may_bind};

use crate::page::{TextPage, TextPageRequest};

/// Bytes of a value: longer than any key, short enough to travel in a header.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Secrets of one tenant.
pub const SECRETS_MAX: i64 = 1_000;
/// Hosts of one secret: each is looked at when a grant names it.
pub const HOSTS_MAX: usize = 32;

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Secret {
    pub name: SecretName,
    /// Where grants may send it without a further right. Empty: anywhere that a grant says.
    #[schema(value_type = Vec<String>)]
    pub hosts: Vec<HostPattern>,
    /// A tool may read it by name, where a grant says so too.
    pub readable: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A secret as it is written, always whole.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretSpec {
    #[schema(value_type = String, format = Password)]
    pub value: SecretString,
    /// Hosts that grants may send it to: `name`, `name:port` or `*.name`. For another host, whoever writes the grant needs
    /// the scope `secrets:write`. Empty: anywhere that a grant says.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub hosts: Vec<HostPattern>,
    /// Whether a tool may read it by name, where a grant says so too. Otherwise the host adds it to requests, and no tool
    /// sees it.
    #[serde(default)]
    pub readable: bool,
}

impl SecretSpec {
    fn check(&self) -> Result<(), SecretError> {
        if !(1..=VALUE_BYTES_MAX).contains(&self.value.expose_secret().len()) {
            return Err(SecretError::BadValue);
        }
        if self.hosts.len() > HOSTS_MAX { Err(SecretError::TooManyHosts) } else { Ok(()) }
    }
}

/// What binds a sealed value to its place.
fn context(name: &SecretName) -> String {
    format!("secret/{name}")
}

/// Sets a secret. The answer's second part says whether it is new.
pub async fn put(
    tx: &mut TenantTx,
    master: &MasterKey,
    name: &SecretName,
    spec: SecretSpec,
    now: Timestamp,
) -> Result<(Secret, bool), SecretError> {
    spec.check()?;
    let sealed = seal::seal(tx, master, &context(name), spec.value.expose_secret().as_bytes(), now).await?;
    let hosts: Vec<String> = spec.hosts.iter().map(ToString::to_string).collect();
    let row = sqlx::query!(
        r#"
        INSERT INTO secret (tenant_id, name, sealed, data_key_version, hosts, readable, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
        ON CONFLICT (tenant_id, name) DO UPDATE
        SET sealed = excluded.sealed, data_key_version = excluded.data_key_version, hosts = excluded.hosts,
            readable = excluded.readable, updated_at = excluded.updated_at
        RETURNING created_at, xmax = 0 AS "new!", (SELECT count(*) FROM secret WHERE tenant_id = $1) AS "others!"
        "#,
        tx.tenant().uuid(),
        name.as_str(),
        sealed.bytes,
        sealed.data_key_version,
        &hosts,
        spec.readable,
        now.offset(),
    )
    .fetch_one(tx.conn())
    .await?;
    // The count is of before this statement. The caller does not commit after an error.
    if row.new && row.others >= SECRETS_MAX {
        return Err(SecretError::TooMany);
    }
    let SecretSpec { value: _, hosts, readable } = spec;
    let created_at = row.created_at.into();
    Ok((Secret { name: name.clone(), hosts, readable, created_at, updated_at: now }, row.new))
}

/// Secrets by name, without their values.
pub async fn list(tx: &mut TenantTx, page: TextPageRequest) -> Result<TextPage<Secret>, SecretError> {
    let rows = sqlx::query!(
        r#"
        SELECT name, hosts, readable, created_at, updated_at FROM secret
        WHERE tenant_id = $1 AND ($2::text IS NULL OR name > $2)
        ORDER BY name
        LIMIT $3
        "#,
        tx.tenant().uuid(),
        page.after.as_deref(),
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let secrets = rows
        .into_iter()
        .map(|row| {
            Ok(Secret {
                name: row.name.parse().map_err(crate::unreadable)?,
                hosts: hosts(row.hosts)?,
                readable: row.readable,
                created_at: row.created_at.into(),
                updated_at: row.updated_at.into(),
            })
        })
        .collect::<Result<_, SecretError>>()?;
    Ok(TextPage::cut(secrets, &page, |secret: &Secret| secret.name.as_str()))
}

/// Deletes a secret. Bindings that name it stay, and their calls fail by its name.
pub async fn delete(tx: &mut TenantTx, name: &SecretName) -> Result<(), SecretError> {
    let deleted =
        sqlx::query!("DELETE FROM secret WHERE tenant_id = $1 AND name = $2", tx.tenant().uuid(), name.as_str())
            .execute(tx.conn())
            .await?;
    if deleted.rows_affected() == 0 { Err(SecretError::NotFound) } else { Ok(()) }
}

/// The secrets that a call needs, in the clear. One that is not stored any more is an error that names it.
pub async fn open(
    tx: &mut TenantTx,
    master: &MasterKey,
    names: &BTreeSet<&SecretName>,
) -> Result<BTreeMap<SecretName, OpenSecret>, SecretError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query!(
        "SELECT name, sealed, data_key_version, readable FROM secret WHERE tenant_id = $1 AND name = ANY($2)",
        tx.tenant().uuid(),
        &texts(names),
    )
    .fetch_all(tx.conn())
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let name: SecretName = row.name.parse().map_err(crate::unreadable)?;
        let sealed = Sealed { bytes: row.sealed, data_key_version: row.data_key_version };
        found.push((context(&name), name, sealed, row.readable));
    }
    let missing: Vec<SecretName> =
        names.iter().filter(|name| !found.iter().any(|(_, has, ..)| has == **name)).copied().cloned().collect();
    if !missing.is_empty() {
        return Err(SecretError::Missing(missing));
    }
    let sealed: Vec<_> = found.iter().map(|(context, _, sealed, _)| (context.as_str(), sealed)).collect();
    let opened = seal::open_all(tx, master, &sealed).await?;
    let mut secrets = BTreeMap::new();
    for ((_, name, _, readable), plain) in found.into_iter().zip(opened) {
        // `put` takes text only.
        let value = SecretString::from(std::str::from_utf8(&plain).map_err(crate::unreadable)?);
        secrets.insert(name, OpenSecret { value, readable });
    }
    Ok(secrets)
}

/// Whether the holder of `right` may write these grants: the secrets that they name exist and allow it.
pub async fn check(tx: &mut TenantTx, grants: &Grants, right: NamingRight) -> Result<(), SecretError> {
    let stored = rules(tx, &grants.secret_names()).await?;
    may_bind(grants, &[], &stored, right)
}

/// What the secrets of these names allow, where they exist.
pub(crate) async fn rules(
    tx: &mut TenantTx,
    names: &BTreeSet<&SecretName>,
) -> Result<BTreeMap<SecretName, Rule>, SecretError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query!(
        "SELECT name, hosts, readable FROM secret WHERE tenant_id = $1 AND name = ANY($2)",
        tx.tenant().uuid(),
        &texts(names),
    )
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter()
        .map(|row| {
            let name = row.name.parse().map_err(crate::unreadable)?;
            Ok((name, Rule { hosts: hosts(row.hosts)?, readable: row.readable }))
        })
        .collect()
}

fn texts(names: &BTreeSet<&SecretName>) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn hosts(texts: Vec<String>) -> Result<Vec<HostPattern>, sqlx::Error> {
    texts.iter().map(|text| text.parse().map_err(crate::unreadable)).collect()
}
