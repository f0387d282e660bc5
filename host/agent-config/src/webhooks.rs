//! Webhooks: where a tenant wants to be told of what happens, and the key that signs what is sent there.

pub mod deliveries;
mod error;
mod event;

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use domain::{
    Ids, SecretString, Timestamp, WebhookId,
    page::{Page, PageRequest},
};
use serde::{Deserialize, Deserializer, Serialize};
use tenancy::{
    TenantTx,
    seal::{self, MasterKey, Sealed},
};
use zeroize::Zeroizing;

pub use deliveries::{Delivery, DeliveryDetail, DeliveryStatus, Notice};
pub use error::WebhookError;
pub use event::EventKind;

/// Webhooks of one tenant: each is looked at whenever something happens.
pub const WEBHOOKS_MAX: i64 = 20;
/// Bytes of a URL: as many as the way out takes.
pub const URL_BYTES_MAX: usize = 2048;
/// How long the key before the newest one signs too: a day, in which a receiver is given the new one.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a key, as many as the MAC's own output (RFC 2104).
const KEY_BYTES: usize = 32;

/// A webhook, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Webhook {
    pub id: WebhookId,
    pub url: String,
    pub events: BTreeSet<EventKind>,
    /// What happens while it is not enabled is not told to it; what was still to be delivered waits.
    pub enabled: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    /// Since when no delivery has arrived, where the last one did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// Until when the secret before the newest one signs too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_secret_until: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A new webhook.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSpec {
    /// Where each notice is sent, by POST: `https`, at a public address.
    pub url: String,
    pub events: BTreeSet<EventKind>,
}

/// A merge patch (RFC 7396): what is absent stays.
#[derive(Debug, Clone, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookChange {
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub url: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub events: Option<BTreeSet<EventKind>>,
    /// `true` after a failure: what waits is sent at once.
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub enabled: Option<bool>,
}

/// No field can be removed, so `null` is a mistake.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Where notices go, and what signs them: the newest key, and the one before it while it is good.
pub struct Target {
    pub url: String,
    pub keys: Vec<Zeroizing<Vec<u8>>>,
    pub failing_since: Option<Timestamp>,
}

fn check(url: &str, events: &BTreeSet<EventKind>) -> Result<(), WebhookError> {
    if url.is_empty() || url.len() > URL_BYTES_MAX || url.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(WebhookError::BadUrl);
    }
    if events.is_empty() { Err(WebhookError::NoEvents) } else { Ok(()) }
}

/// What binds a sealed key to its webhook.
fn context(id: WebhookId) -> String {
    format!("webhook/{id}")
}

/// A fresh key, sealed, and its text as Standard Webhooks writes it: the only time it is told.
async fn new_key(
    tx: &mut TenantTx,
    master: &MasterKey,
    id: WebhookId,
    now: Timestamp,
) -> Result<(Sealed, SecretString), WebhookError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut key[..]).map_err(|_| seal::SealError::NoRandomness)?;
    let sealed = seal::seal(tx, master, &context(id), &key[..], now).await?;
    let encoded = Zeroizing::new(BASE64_STANDARD.encode(&key[..]));
    Ok((sealed, SecretString::from(format!("whsec_{}", encoded.as_str()))))
}

fn texts(events: &BTreeSet<EventKind>) -> Vec<String> {
    events.iter().map(|event| event.as_str().to_owned()).collect()
}

fn events(texts: &[String]) -> BTreeSet<EventKind> {
    // A later release may know more.
    texts.iter().filter_map(|text| EventKind::parse(text)).collect()
}

/// Creates a webhook. The second part is its secret.
pub async fn create(
    tx: &mut TenantTx,
    master: &MasterKey,
    spec: WebhookSpec,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(Webhook, SecretString), WebhookError> {
    check(&spec.url, &spec.events)?;
    let id = WebhookId::new(ids);
    let (sealed, secret) = new_key(tx, master, id, now).await?;
    let others = sqlx::query_scalar!(
        r#"
        INSERT INTO webhook (tenant_id, webhook_id, url, events, sealed, data_key_version, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
        RETURNING (SELECT count(*) FROM webhook WHERE tenant_id = $1) AS "others!"
        "#,
        tx.tenant().uuid(),
        id.uuid(),
        spec.url,
        &texts(&spec.events),
        sealed.bytes,
        sealed.data_key_version,
        now.offset(),
    )
    .fetch_one(tx.conn())
    .await?;
    // The count is of before this statement. The caller does not commit after an error.
    if others >= WEBHOOKS_MAX {
        return Err(WebhookError::TooMany);
    }
    Ok((get(tx, id).await?, secret))
}

pub async fn get(tx: &mut TenantTx, id: WebhookId) -> Result<Webhook, WebhookError> {
    let row = sqlx::query_as!(
        Row,
        r#"
        SELECT webhook_id, url, events, enabled, disabled_reason, failing_since, previous_until, created_at, updated_at
        FROM webhook WHERE tenant_id = $1 AND webhook_id = $2
        "#,
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    row.map(Webhook::from).ok_or(WebhookError::NotFound)
}

/// Newest first.
pub async fn list(tx: &mut TenantTx, page: PageRequest) -> Result<Page<Webhook>, WebhookError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT webhook_id, url, events, enabled, disabled_reason, failing_since, previous_until, created_at, updated_at
        FROM webhook WHERE tenant_id = $1 AND ($2::uuid IS NULL OR webhook_id < $2)
        ORDER BY webhook_id DESC
        LIMIT $3
        "#,
        tx.tenant().uuid(),
        page.after,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let webhooks = rows.into_iter().map(Webhook::from).collect();
    Ok(Page::cut(webhooks, page, |webhook: &Webhook| webhook.id.uuid()))
}

/// Enabling one forgets that it failed.
pub async fn change(
    tx: &mut TenantTx,
    id: WebhookId,
    change: WebhookChange,
    now: Timestamp,
) -> Result<Webhook, WebhookError> {
    let present = get(tx, id).await?;
    let url = change.url.unwrap_or(present.url);
    let events = change.events.unwrap_or(present.events);
    check(&url, &events)?;
    sqlx::query!(
        r#"
        UPDATE webhook
        SET url = $3, events = $4, updated_at = $6,
            enabled = coalesce($5, enabled),
            failing_since = CASE WHEN $5 THEN NULL ELSE failing_since END,
            disabled_reason = CASE WHEN $5 THEN NULL WHEN NOT $5 AND enabled THEN 'by you' ELSE disabled_reason END
        WHERE tenant_id = $1 AND webhook_id = $2
        "#,
        tx.tenant().uuid(),
        id.uuid(),
        url,
        &texts(&events),
        change.enabled,
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    if change.enabled == Some(true) && !present.enabled {
        deliveries::send_now(tx, id, now).await?;
    }
    get(tx, id).await
}

/// Deletes a webhook with its deliveries.
pub async fn delete(tx: &mut TenantTx, id: WebhookId) -> Result<(), WebhookError> {
    let deleted =
        sqlx::query!("DELETE FROM webhook WHERE tenant_id = $1 AND webhook_id = $2", tx.tenant().uuid(), id.uuid())
            .execute(tx.conn())
            .await?;
    if deleted.rows_affected() == 0 { Err(WebhookError::NotFound) } else { Ok(()) }
}

/// A new secret, which signs from now on. The one before it signs beside it for a day; the one before that no more.
pub async fn rotate(
    tx: &mut TenantTx,
    master: &MasterKey,
    id: WebhookId,
    now: Timestamp,
) -> Result<(Webhook, SecretString), WebhookError> {
    get(tx, id).await?;
    let (sealed, secret) = new_key(tx, master, id, now).await?;
    sqlx::query!(
        r#"
        UPDATE webhook
        SET previous_sealed = sealed, previous_data_key_version = data_key_version, previous_until = $5,
            sealed = $3, data_key_version = $4, updated_at = $6
        WHERE tenant_id = $1 AND webhook_id = $2
        "#,
        tx.tenant().uuid(),
        id.uuid(),
        sealed.bytes,
        sealed.data_key_version,
        now.plus(OVERLAP).offset(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok((get(tx, id).await?, secret))
}

/// Where to send, with the opened keys. `None`: it was deleted or disabled.
async fn target(
    tx: &mut TenantTx,
    master: &MasterKey,
    id: WebhookId,
    now: Timestamp,
) -> Result<Option<Target>, WebhookError> {
    let row = sqlx::query!(
        r#"
        SELECT url, failing_since, sealed, data_key_version, previous_sealed, previous_data_key_version, previous_until
        FROM webhook WHERE tenant_id = $1 AND webhook_id = $2 AND enabled
        "#,
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let mut sealed = vec![Sealed { bytes: row.sealed, data_key_version: row.data_key_version }];
    if let (Some(bytes), Some(data_key_version), Some(until)) =
        (row.previous_sealed, row.previous_data_key_version, row.previous_until)
        && now < until.into()
    {
        sealed.push(Sealed { bytes, data_key_version });
    }
    let context = context(id);
    let values: Vec<_> = sealed.iter().map(|sealed| (context.as_str(), sealed)).collect();
    let keys = seal::open_all(tx, master, &values).await?;
    Ok(Some(Target { url: row.url, keys, failing_since: row.failing_since.map(Into::into) }))
}

struct Row {
    webhook_id: uuid::Uuid,
    url: String,
    events: Vec<String>,
    enabled: bool,
    disabled_reason: Option<String>,
    failing_since: Option<time::OffsetDateTime>,
    previous_until: Option<time::OffsetDateTime>,
    created_at: time::OffsetDateTime,
    updated_at: time::OffsetDateTime,
}

impl From<Row> for Webhook {
    fn from(row: Row) -> Webhook {
        Webhook {
            id: row.webhook_id.into(),
            url: row.url,
            events: events(&row.events),
            enabled: row.enabled,
            disabled_reason: row.disabled_reason,
            failing_since: row.failing_since.map(Into::into),
            previous_secret_until: row.previous_until.map(Into::into),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        }
    }
}
