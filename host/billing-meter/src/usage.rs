//! Usage events: written in the transaction of what they bill, never changed.

mod totals;
mod used;

use domain::{
    AgentId, Amount, ApiKeyId, CallId, FieldError, Kind, Money, Problem, RunId, TenantId, Timestamp, UsageEventId,
    ids::Ids,
    page::{Page, PageRequest},
};
use rust_decimal::Decimal;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tenancy::{DbError, TenantTx};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::prices::{PriceBook, PriceError};

pub use totals::{GROUPS_MAX, GroupBy, Quantities, UsageGroup, UsageReport, group_by, range, totals};
#[cfg(test)]
pub(crate) use used::QUANTITY_MAX;
pub use used::{UsageKind, Used};

/// What an event bills, and for whom. `dedup` names it within the tenant: the same name is never billed twice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cause {
    pub dedup: String,
    pub agent_id: Option<AgentId>,
    pub run_id: Option<RunId>,
    pub call_id: Option<CallId>,
    pub api_key_id: Option<ApiKeyId>,
    pub external_user_id: Option<String>,
    /// As price books name it; `prices::own_key` for a tenant's own.
    pub provider: Option<String>,
    pub model: Option<String>,
    pub tool: Option<String>,
    pub function: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub used: Used,
    pub cause: Cause,
}

/// One line of a bill: `amount` is `quantity * unit_price / per`, rounded half to even to 12 decimal places.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct UsageEvent {
    pub id: UsageEventId,
    pub occurred_at: Timestamp,
    pub kind: UsageKind,
    #[serde(serialize_with = "text")]
    #[schema(value_type = String, example = "1200")]
    pub quantity: Decimal,
    /// The price of `per` units, as the price book has it.
    #[serde(serialize_with = "text")]
    #[schema(value_type = String, example = "0.15")]
    pub unit_price: Decimal,
    pub per: u64,
    pub amount: Money,
    /// The version of the price book.
    pub price_book: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_id: Option<ApiKeyId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A promise of our own is broken: whoever writes usage has fenced out everybody else.
    #[error("this usage is on the bill already")]
    AlreadyRecorded,
    #[error("`{0}` is not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
    BadTime(&'static str),
    #[error("`from` must be before `to`")]
    BadRange,
    #[error("`group_by` is a list, separated by commas, of {}", GroupBy::NAMES.join(", "))]
    BadGroupBy,
    #[error("there are more than {GROUPS_MAX} groups; choose a shorter time, or group by less")]
    TooManyGroups,
    #[error("a stored usage event cannot be read")]
    Unreadable,
    #[error(transparent)]
    Price(#[from] PriceError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for UsageError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for UsageError {
    fn kind(&self) -> Kind {
        match self {
            Self::AlreadyRecorded | Self::Unreadable => Kind::Internal,
            Self::BadTime(_) | Self::BadRange | Self::BadGroupBy | Self::TooManyGroups => Kind::Invalid,
            Self::Price(error) => error.kind(),
            Self::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::AlreadyRecorded => "usage.already_recorded",
            Self::Unreadable => "usage.unreadable",
            Self::BadTime(_) | Self::BadRange => "usage.bad_range",
            Self::BadGroupBy => "usage.bad_group_by",
            Self::TooManyGroups => "usage.too_many_groups",
            Self::Price(error) => error.code(),
            Self::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let pointer = match self {
            Self::BadTime(name) => format!("/{name}"),
            Self::BadRange => "/from".into(),
            Self::BadGroupBy | Self::TooManyGroups => "/group_by".into(),
            _ => return Vec::new(),
        };
        vec![FieldError::new(pointer, self.to_string())]
    }
}

/// Prices and writes what was used, in the caller's transaction.
pub async fn record(
    tx: &mut TenantTx,
    book: &PriceBook,
    new: &[NewEvent],
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<Vec<UsageEvent>, UsageError> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let events: Vec<UsageEvent> = new.iter().map(|new| priced(new, book, ids, now)).collect();
    // One array a column: one statement, however many events a step has.
    let uuids = |of: fn(&UsageEvent) -> Option<Uuid>| -> Vec<Option<Uuid>> { events.iter().map(of).collect() };
    let texts = |of: fn(&UsageEvent) -> &Option<String>| -> Vec<Option<String>> {
        events.iter().map(|event| of(event).clone()).collect()
    };
    let event_ids: Vec<Uuid> = events.iter().map(|event| event.id.uuid()).collect();
    let dedups: Vec<String> = new.iter().map(|new| new.cause.dedup.clone()).collect();
    let kinds: Vec<String> = events.iter().map(|event| event.kind.as_str().into()).collect();
    let quantities: Vec<Decimal> = events.iter().map(|event| event.quantity).collect();
    let unit_prices: Vec<Decimal> = events.iter().map(|event| event.unit_price).collect();
    let amounts: Vec<Decimal> = events.iter().map(|event| event.amount.amount.decimal()).collect();
    sqlx::query!(
        "INSERT INTO usage_event (tenant_id, occurred_at, currency, price_book, event_id, dedup, kind, quantity,
                                  unit_price, amount, provider, model, tool, function, agent_id, run_id, call_id,
                                  api_key_id, external_user_id)
         SELECT $1, $2, $3, $4, n.event_id, n.dedup, n.kind, n.quantity, n.unit_price, n.amount, n.provider, n.model,
                n.tool, n.function, n.agent_id, n.run_id, n.call_id, n.api_key_id, n.external_user_id
         FROM UNNEST($5::uuid[], $6::text[], $7::text[], $8::numeric[], $9::numeric[], $10::numeric[], $11::text[],
                     $12::text[], $13::text[], $14::text[], $15::uuid[], $16::uuid[], $17::uuid[], $18::uuid[],
                     $19::text[])
                  AS n (event_id, dedup, kind, quantity, unit_price, amount, provider, model, tool, function, agent_id,
                        run_id, call_id, api_key_id, external_user_id)",
        tx.tenant().uuid(),
        now.offset(),
        book.currency,
        i32::try_from(book.version).unwrap_or(i32::MAX),
        &event_ids,
        &dedups,
        &kinds,
        &quantities,
        &unit_prices,
        &amounts,
        &texts(|event| &event.provider) as &[Option<String>],
        &texts(|event| &event.model) as &[Option<String>],
        &texts(|event| &event.tool) as &[Option<String>],
        &texts(|event| &event.function) as &[Option<String>],
        &uuids(|event| event.agent_id.map(AgentId::uuid)) as &[Option<Uuid>],
        &uuids(|event| event.run_id.map(RunId::uuid)) as &[Option<Uuid>],
        &uuids(|event| event.call_id.map(CallId::uuid)) as &[Option<Uuid>],
        &uuids(|event| event.api_key_id.map(ApiKeyId::uuid)) as &[Option<Uuid>],
        &texts(|event| &event.external_user_id) as &[Option<String>],
    )
    .execute(tx.conn())
    .await
    // Not ON CONFLICT DO NOTHING: whoever bills a thing twice has also done or stored it twice, and must not commit.
    .map_err(|error| match DbError::violates(&error, "usage_event_dedup") {
        true => UsageError::AlreadyRecorded,
        false => error.into(),
    })?;
    Ok(events)
}

/// What a call's receipt costs: the sum of the events that it makes.
pub fn price_call(book: &PriceBook, fuel_used: u64, memory_peak_bytes: u64, total_us: u64) -> Amount {
    let used = Used::tool_call(fuel_used, memory_peak_bytes, total_us);
    used.iter().map(|used| book.price(used, None, None).amount).sum()
}

/// The events of `from` to `to` (not included), newest first.
pub async fn events(
    tx: &mut TenantTx,
    from: Timestamp,
    to: Timestamp,
    page: PageRequest,
) -> Result<Page<UsageEvent>, UsageError> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT event_id, occurred_at, kind, quantity, unit_price, amount, currency, price_book, provider, model, tool,
                function, agent_id, run_id, call_id, api_key_id, external_user_id
         FROM usage_event
         WHERE tenant_id = $1 AND occurred_at >= $2 AND occurred_at < $3
           AND ($4::uuid IS NULL OR (occurred_at, event_id) <
                (SELECT last.occurred_at, last.event_id FROM usage_event last
                 WHERE last.tenant_id = $1 AND last.event_id = $4))
         ORDER BY occurred_at DESC, event_id DESC
         LIMIT $5",
        tx.tenant().uuid(),
        from.offset(),
        to.offset(),
        page.after,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let events = rows.into_iter().map(UsageEvent::try_from).collect::<Result<_, _>>()?;
    Ok(Page::cut(events, page, |event: &UsageEvent| event.id.uuid()))
}

/// An event in the JSON format of CloudEvents 1.0. Numbers are strings, so that no reader makes floats of them.
pub fn cloud_event(event: &UsageEvent, tenant: TenantId) -> Value {
    json!({
        "specversion": "1.0",
        "id": event.id,
        "source": "belljar",
        "type": format!("belljar.usage.{}", event.kind.as_str()),
        "subject": tenant,
        "time": event.occurred_at,
        "datacontenttype": "application/json",
        "data": {
            "kind": event.kind,
            "quantity": event.quantity.to_string(),
            "unit_price": event.unit_price.to_string(),
            "per": event.per.to_string(),
            "amount": event.amount.amount.to_string(),
            "currency": event.amount.currency,
            "price_book": event.price_book.to_string(),
            "provider": event.provider,
            "model": event.model,
            "tool": event.tool,
            "function": event.function,
            "agent_id": event.agent_id,
            "run_id": event.run_id,
            "call_id": event.call_id,
            "api_key_id": event.api_key_id,
            "external_user_id": event.external_user_id,
        },
    })
}

pub(crate) fn priced(new: &NewEvent, book: &PriceBook, ids: &dyn Ids, now: Timestamp) -> UsageEvent {
    let NewEvent { used, cause } = new;
    let priced = book.price(used, cause.provider.as_deref(), cause.model.as_deref());
    UsageEvent {
        id: UsageEventId::new(ids),
        occurred_at: now,
        kind: used.kind(),
        quantity: used.quantity(),
        unit_price: priced.unit_price,
        per: used.kind().per(),
        amount: Money { amount: priced.amount, currency: book.currency.clone() },
        price_book: book.version,
        provider: cause.provider.clone(),
        model: cause.model.clone(),
        tool: cause.tool.clone(),
        function: cause.function.clone(),
        agent_id: cause.agent_id,
        run_id: cause.run_id,
        call_id: cause.call_id,
        api_key_id: cause.api_key_id,
        external_user_id: cause.external_user_id.clone(),
    }
}

fn text<S: Serializer>(value: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.normalize())
}

struct Row {
    event_id: Uuid,
    occurred_at: OffsetDateTime,
    kind: String,
    quantity: Decimal,
    unit_price: Decimal,
    amount: Decimal,
    currency: String,
    price_book: i32,
    provider: Option<String>,
    model: Option<String>,
    tool: Option<String>,
    function: Option<String>,
    agent_id: Option<Uuid>,
    run_id: Option<Uuid>,
    call_id: Option<Uuid>,
    api_key_id: Option<Uuid>,
    external_user_id: Option<String>,
}

impl TryFrom<Row> for UsageEvent {
    type Error = UsageError;

    fn try_from(row: Row) -> Result<Self, UsageError> {
        let kind = UsageKind::parse(&row.kind).ok_or(UsageError::Unreadable)?;
        Ok(Self {
            id: row.event_id.into(),
            occurred_at: row.occurred_at.into(),
            kind,
            quantity: row.quantity.normalize(),
            unit_price: row.unit_price.normalize(),
            per: kind.per(),
            // Written rounded: this changes nothing.
            amount: Money { amount: Amount::rounded(row.amount), currency: row.currency },
            price_book: row.price_book.unsigned_abs(),
            provider: row.provider,
            model: row.model,
            tool: row.tool,
            function: row.function,
            agent_id: row.agent_id.map(AgentId::from),
            run_id: row.run_id.map(RunId::from),
            call_id: row.call_id.map(CallId::from),
            api_key_id: row.api_key_id.map(ApiKeyId::from),
            external_user_id: row.external_user_id,
        })
    }
}
