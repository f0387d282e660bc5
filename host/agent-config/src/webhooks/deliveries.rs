//! What is told to webhooks: written with what happened, in its transaction; then claimed, sent and settled, one attempt
//! after the other.

use std::time::Duration;

use domain::{
    Ids, NoticeId, RunId, Timestamp, WebhookId,
    page::{Page, PageRequest},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy::{TenantTx, seal::MasterKey};

use super::{EventKind, Target, WebhookError, target};

/// How long a delivery is kept, whatever came of it: long enough to look into last month's trouble.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Deliveries that one look may drop: a short transaction.
const DROPPED_AT_ONCE: i64 = 100;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Notice {
    pub event: EventKind,
    /// Whose it is: its notices are erased with it.
    pub run: Option<RunId>,
    pub data: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// Not delivered yet; it is tried at `next_attempt_at`, while the webhook is enabled.
    Pending,
    Delivered,
    /// Given up; it can be redelivered.
    Failed,
}

impl DeliveryStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryStatus::Pending => "pending",
            DeliveryStatus::Delivered => "delivered",
            DeliveryStatus::Failed => "failed",
        }
    }

    fn stored(text: &str) -> Result<Self, sqlx::Error> {
        [DeliveryStatus::Pending, DeliveryStatus::Delivered, DeliveryStatus::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| crate::unreadable("unknown status of a delivery"))
    }
}

/// A notice on its way to a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    /// The notice's id: the header `webhook-id` of every attempt, the same for all webhooks that are told of it.
    pub id: NoticeId,
    pub webhook_id: WebhookId,
    pub event: String,
    pub status: DeliveryStatus,
    pub attempts: u32,
    pub next_attempt_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempt: Option<LastAttempt>,
    pub created_at: Timestamp,
}

/// What came of the last attempt that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct LastAttempt {
    pub at: Timestamp,
    pub duration_ms: u32,
    /// Of the receiver's answer, where one came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<u16>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A delivery with what it tells.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct DeliveryDetail {
    #[serde(flatten)]
    pub delivery: Delivery,
    #[schema(value_type = Object)]
    pub data: Value,
}

/// A delivery that this process is to send now.
#[derive(Debug, Clone)]
pub struct Due {
    pub id: NoticeId,
    pub event: String,
    pub data: Value,
    /// Counts from 1, this one included. Only the newest may be settled.
    pub attempt: u32,
    pub created_at: Timestamp,
}

/// What an attempt came to, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    pub at: Timestamp,
    pub duration: Duration,
    pub response_status: Option<u16>,
    pub after: After,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    Delivered,
    Again {
        error: String,
        at: Timestamp,
    },
    GiveUp {
        error: String,
    },
    /// Given up, and nothing more is sent to this webhook until its tenant enables it.
    Disable {
        error: String,
        reason: String,
    },
}

/// The webhooks that want to be told of an event. Most tenants have none: this is what a run without them pays.
pub async fn wanted_by(tx: &mut TenantTx, event: EventKind) -> Result<Vec<WebhookId>, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        "SELECT webhook_id FROM webhook WHERE tenant_id = $1 AND enabled AND $2 = ANY(events)",
        tx.tenant().uuid(),
        event.as_str(),
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(WebhookId::from).collect())
}

/// Tells whoever wants to know, once the caller commits.
pub async fn notify(tx: &mut TenantTx, notice: Notice, ids: &dyn Ids, now: Timestamp) -> Result<(), sqlx::Error> {
    let webhooks = wanted_by(tx, notice.event).await?;
    tell(tx, &webhooks, notice, ids, now).await
}

/// The same for webhooks that are known to want it.
pub async fn tell(
    tx: &mut TenantTx,
    webhooks: &[WebhookId],
    notice: Notice,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    if webhooks.is_empty() {
        return Ok(());
    }
    let webhooks: Vec<_> = webhooks.iter().map(|webhook| webhook.uuid()).collect();
    // One that is deleted at this moment is left out.
    sqlx::query!(
        r#"
        INSERT INTO delivery (tenant_id, webhook_id, notice_id, event, data, run_id, next_attempt_at, created_at)
        SELECT $1, w.webhook_id, $3, $4, $5, $6, $7, $7
        FROM (SELECT webhook_id FROM webhook WHERE tenant_id = $1 AND webhook_id = ANY($2) ORDER BY webhook_id FOR KEY SHARE) w
        "#,
        tx.tenant().uuid(),
        &webhooks,
        NoticeId::new(ids).uuid(),
        notice.event.as_str(),
        notice.data,
        notice.run.map(RunId::uuid),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Takes up to `limit` deliveries that are due: until `until` no other process sends them. Drops what is too old on the
/// way. `None`: the webhook was deleted or disabled.
pub async fn claim(
    tx: &mut TenantTx,
    master: &MasterKey,
    webhook: WebhookId,
    (now, until): (Timestamp, Timestamp),
    limit: i64,
) -> Result<Option<(Target, Vec<Due>)>, WebhookError> {
    let Some(target) = target(tx, master, webhook, now).await? else { return Ok(None) };
    drop_old(tx, webhook, now).await?;
    let mut rows = sqlx::query!(
        r#"
        WITH c AS MATERIALIZED (
            SELECT notice_id FROM delivery
            WHERE tenant_id = $1 AND webhook_id = $2 AND status = 'pending' AND next_attempt_at <= $3
            ORDER BY next_attempt_at LIMIT $5 FOR UPDATE SKIP LOCKED
        )
        UPDATE delivery d SET attempts = d.attempts + 1, next_attempt_at = $4
        FROM c
        WHERE d.tenant_id = $1 AND d.webhook_id = $2 AND d.notice_id = c.notice_id
        RETURNING d.notice_id, d.event, d.data, d.attempts, d.created_at
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        now.offset(),
        until.offset(),
        limit,
    )
    .fetch_all(tx.conn())
    .await?;
    rows.sort_by_key(|row| row.notice_id);
    let due = rows.into_iter().map(|row| Due {
        id: row.notice_id.into(),
        event: row.event,
        data: row.data,
        attempt: row.attempts.cast_unsigned(),
        created_at: row.created_at.into(),
    });
    Ok(Some((target, due.collect())))
}

/// Ids follow time, so the oldest are looked at and no more.
async fn drop_old(tx: &mut TenantTx, webhook: WebhookId, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        DELETE FROM delivery d
        USING (
            SELECT notice_id, created_at FROM delivery WHERE tenant_id = $1 AND webhook_id = $2
            ORDER BY notice_id LIMIT $4
        ) o
        WHERE d.tenant_id = $1 AND d.webhook_id = $2 AND d.notice_id = o.notice_id AND o.created_at < $3
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        now.minus(KEPT).offset(),
        DROPPED_AT_ONCE,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Writes what an attempt came to. False: it was another process's by now, or the delivery is gone, and nothing is written.
pub async fn settle(
    tx: &mut TenantTx,
    webhook: WebhookId,
    id: NoticeId,
    attempt: u32,
    attempted: &Attempted,
) -> Result<bool, WebhookError> {
    let (status, error, again_at) = match &attempted.after {
        After::Delivered => (DeliveryStatus::Delivered, None, None),
        After::Again { error, at } => (DeliveryStatus::Pending, Some(error), Some(at.offset())),
        After::GiveUp { error } | After::Disable { error, .. } => (DeliveryStatus::Failed, Some(error), None),
    };
    // The webhook first, as whoever changes it does.
    health(tx, webhook, attempted).await?;
    let touched = sqlx::query!(
        r#"
        UPDATE delivery
        SET status = $5, next_attempt_at = $6, attempted_at = $7, response_status = $8, error = $9, duration_ms = $10
        WHERE tenant_id = $1 AND webhook_id = $2 AND notice_id = $3 AND attempts = $4 AND status = 'pending'
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        id.uuid(),
        attempt.cast_signed(),
        status.as_str(),
        again_at,
        attempted.at.offset(),
        attempted.response_status.map(i32::from),
        error,
        i32::try_from(attempted.duration.as_millis()).unwrap_or(i32::MAX),
    )
    .execute(tx.conn())
    .await?;
    Ok(touched.rows_affected() == 1)
}

/// Whether the webhook works, as far as this attempt tells.
async fn health(tx: &mut TenantTx, webhook: WebhookId, attempted: &Attempted) -> Result<(), sqlx::Error> {
    let (failing, reason) = match &attempted.after {
        After::Delivered => (None, None),
        After::Disable { reason, .. } => (Some(attempted.at.offset()), Some(reason.as_str())),
        After::Again { .. } | After::GiveUp { .. } => (Some(attempted.at.offset()), None),
    };
    sqlx::query!(
        r#"
        UPDATE webhook
        SET failing_since = CASE WHEN $3::timestamptz IS NULL THEN NULL ELSE coalesce(failing_since, $3) END,
            enabled = enabled AND $4::text IS NULL,
            disabled_reason = coalesce(disabled_reason, $4)
        WHERE tenant_id = $1 AND webhook_id = $2
          AND ($4::text IS NOT NULL OR (failing_since IS NULL) <> ($3::timestamptz IS NULL))
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        failing,
        reason,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What waits for this webhook is due now.
pub(super) async fn send_now(tx: &mut TenantTx, webhook: WebhookId, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        UPDATE delivery SET next_attempt_at = $3
        WHERE tenant_id = $1 AND webhook_id = $2 AND status = 'pending' AND next_attempt_at > $3
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Sends a delivery again, at once: the same notice, so that a receiver who has it knows it by its id.
pub async fn redeliver(
    tx: &mut TenantTx,
    webhook: WebhookId,
    id: NoticeId,
    now: Timestamp,
) -> Result<Delivery, WebhookError> {
    if !super::get(tx, webhook).await?.enabled {
        // Of a delivery that there is not, the caller learns that first.
        get(tx, webhook, id).await?;
        return Err(WebhookError::Disabled);
    }
    sqlx::query!(
        r#"
        UPDATE delivery SET status = 'pending', next_attempt_at = $4
        WHERE tenant_id = $1 AND webhook_id = $2 AND notice_id = $3
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        id.uuid(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(get(tx, webhook, id).await?.delivery)
}

pub async fn get(tx: &mut TenantTx, webhook: WebhookId, id: NoticeId) -> Result<DeliveryDetail, WebhookError> {
    super::get(tx, webhook).await?;
    let row = sqlx::query!(
        r#"
        SELECT notice_id, event, data, status, attempts, next_attempt_at, attempted_at, response_status, error,
               duration_ms, created_at
        FROM delivery WHERE tenant_id = $1 AND webhook_id = $2 AND notice_id = $3
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(WebhookError::DeliveryNotFound)?;
    let data = row.data;
    let delivery = Row {
        notice_id: row.notice_id,
        event: row.event,
        status: row.status,
        attempts: row.attempts,
        next_attempt_at: row.next_attempt_at,
        attempted_at: row.attempted_at,
        response_status: row.response_status,
        error: row.error,
        duration_ms: row.duration_ms,
        created_at: row.created_at,
    };
    Ok(DeliveryDetail { delivery: delivery.read(webhook)?, data })
}

/// Newest first, without what they tell.
pub async fn list(
    tx: &mut TenantTx,
    webhook: WebhookId,
    status: Option<DeliveryStatus>,
    page: PageRequest,
) -> Result<Page<Delivery>, WebhookError> {
    super::get(tx, webhook).await?;
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT notice_id, event, status, attempts, next_attempt_at, attempted_at, response_status, error, duration_ms,
               created_at
        FROM delivery
        WHERE tenant_id = $1 AND webhook_id = $2 AND ($3::uuid IS NULL OR notice_id < $3)
          AND ($4::text IS NULL OR status = $4)
        ORDER BY notice_id DESC
        LIMIT $5
        "#,
        tx.tenant().uuid(),
        webhook.uuid(),
        page.after,
        status.map(DeliveryStatus::as_str),
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let deliveries = rows.into_iter().map(|row| row.read(webhook)).collect::<Result<_, _>>()?;
    Ok(Page::cut(deliveries, page, |delivery: &Delivery| delivery.id.uuid()))
}

struct Row {
    notice_id: uuid::Uuid,
    event: String,
    status: String,
    attempts: i32,
    next_attempt_at: Option<time::OffsetDateTime>,
    attempted_at: Option<time::OffsetDateTime>,
    response_status: Option<i32>,
    error: Option<String>,
    duration_ms: Option<i32>,
    created_at: time::OffsetDateTime,
}

impl Row {
    fn read(self, webhook: WebhookId) -> Result<Delivery, sqlx::Error> {
        let last_attempt = self.attempted_at.map(|at| LastAttempt {
            at: at.into(),
            duration_ms: self.duration_ms.unwrap_or(0).cast_unsigned(),
            response_status: self.response_status.and_then(|status| u16::try_from(status).ok()),
            error: self.error,
        });
        Ok(Delivery {
            id: self.notice_id.into(),
            webhook_id: webhook,
            event: self.event,
            status: DeliveryStatus::stored(&self.status)?,
            attempts: self.attempts.cast_unsigned(),
            next_attempt_at: self.next_attempt_at.map(Into::into),
            last_attempt,
            created_at: self.created_at.into(),
        })
    }
}
