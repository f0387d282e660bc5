//! Totals of usage events: sums and nothing else, so that they equal the events.

use std::{collections::BTreeMap, str::FromStr};

use domain::{AgentId, Amount, ApiKeyId, Money, Timestamp};
use rust_decimal::Decimal;
use serde::Serialize;
use tenancy::TenantTx;
use time::{Date, Month};
use uuid::Uuid;

use super::UsageError;
use crate::prices;

/// Most groups in one report: an answer stays small however many users a tenant has.
pub const GROUPS_MAX: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// In UTC.
    Day,
    Agent,
    Kind,
    Tool,
    Model,
    ExternalUserId,
    ApiKey,
}

/// What was used from `from` to `to` (not included).
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct UsageReport {
    pub from: Timestamp,
    pub to: Timestamp,
    pub group_by: Vec<GroupBy>,
    /// A row for each group, and for each currency when the price books of that time had several.
    pub totals: Vec<UsageGroup>,
    /// Everything. Its cost is in the currency of the present price book.
    pub total: UsageGroup,
    /// What was billed in the currencies of earlier price books.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_currencies: Vec<Money>,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct UsageGroup {
    /// By the names of `group_by`; null for events that have none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub group: BTreeMap<String, Option<String>>,
    pub events: u64,
    pub quantities: Quantities,
    pub cost: Money,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Quantities {
    /// All input, as in a run's usage: also what came from a cache.
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub output_tokens: u64,
    pub fuel: u64,
    #[serde(serialize_with = "super::text")]
    #[schema(value_type = String, example = "1048576.25")]
    pub memory_byte_seconds: Decimal,
}

impl GroupBy {
    const ALL: [GroupBy; 7] = [
        GroupBy::Day,
        GroupBy::Agent,
        GroupBy::Kind,
        GroupBy::Tool,
        GroupBy::Model,
        GroupBy::ExternalUserId,
        GroupBy::ApiKey,
    ];
    pub(super) const NAMES: [&str; 7] = ["day", "agent", "kind", "tool", "model", "external_user_id", "api_key"];

    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl FromStr for GroupBy {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        Self::ALL.into_iter().find(|by| by.as_str() == text).ok_or(UsageError::BadGroupBy)
    }
}

/// A list separated by commas; empty is no grouping, a name twice counts once.
pub fn group_by(text: &str) -> Result<Vec<GroupBy>, UsageError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = Vec::new();
    for by in text.split(',') {
        let by = by.parse()?;
        if !list.contains(&by) {
            list.push(by);
        }
    }
    Ok(list)
}

/// `from` (included) and `to` (not included), as given in RFC 3339. Without `to`: the end of this UTC month. Without
/// `from`: the begin of the month that `to` ends.
pub fn range(from: Option<&str>, to: Option<&str>, now: Timestamp) -> Result<(Timestamp, Timestamp), UsageError> {
    let time = |name, text: Option<&str>| match text {
        Some(text) => Timestamp::parse(text).map(Some).ok_or(UsageError::BadTime(name)),
        None => Ok(None),
    };
    let from = time("from", from)?;
    let to = match time("to", to)? {
        Some(to) => to,
        None => {
            let date = now.offset().date();
            let year = if date.month() == Month::December { date.year() + 1 } else { date.year() };
            month_begin(year, date.month().next())?
        }
    };
    let from = match from {
        Some(from) => from,
        None => {
            let last = Timestamp::from_unix_us(to.unix_us().saturating_sub(1)).offset();
            month_begin(last.year(), last.month())?
        }
    };
    if from < to { Ok((from, to)) } else { Err(UsageError::BadRange) }
}

fn month_begin(year: i32, month: Month) -> Result<Timestamp, UsageError> {
    let date = Date::from_calendar_date(year, month, 1).map_err(|_| UsageError::BadRange)?;
    Ok(date.midnight().assume_utc().into())
}

/// Sums the events of `from` to `to` (not included), by group.
pub async fn totals(
    tx: &mut TenantTx,
    from: Timestamp,
    to: Timestamp,
    group_by: &[GroupBy],
) -> Result<UsageReport, UsageError> {
    let by = |by: GroupBy| group_by.contains(&by);
    // A column that is not asked for is NULL in every row, so it parts no group.
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT CASE WHEN $4 THEN to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') END AS day,
                  CASE WHEN $5 THEN agent_id END AS agent,
                  CASE WHEN $6 THEN kind END AS kind,
                  CASE WHEN $7 THEN tool END AS tool,
                  CASE WHEN $8 THEN model END AS model,
                  CASE WHEN $9 THEN external_user_id END AS external_user_id,
                  CASE WHEN $10 THEN api_key_id END AS api_key,
                  currency,
                  count(*) AS "events!",
                  coalesce(sum(quantity) FILTER (
                      WHERE kind IN ('model_input_tokens', 'model_cached_input_tokens')), 0)::bigint AS "input_tokens!",
                  coalesce(sum(quantity) FILTER (
                      WHERE kind = 'model_cached_input_tokens'), 0)::bigint AS "cached_input_tokens!",
                  coalesce(sum(quantity) FILTER (WHERE kind = 'model_output_tokens'), 0)::bigint AS "output_tokens!",
                  coalesce(sum(quantity) FILTER (WHERE kind = 'tool_fuel'), 0)::bigint AS "fuel!",
                  coalesce(sum(quantity) FILTER (
                      WHERE kind = 'tool_memory_byte_seconds'), 0) AS "memory_byte_seconds!",
                  sum(amount) AS "cost!"
           FROM usage_event
           WHERE tenant_id = $1 AND occurred_at >= $2 AND occurred_at < $3
           GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
           ORDER BY 1, 2, 3, 4, 5, 6, 7, 8
           LIMIT $11"#,
        tx.tenant().uuid(),
        from.offset(),
        to.offset(),
        by(GroupBy::Day),
        by(GroupBy::Agent),
        by(GroupBy::Kind),
        by(GroupBy::Tool),
        by(GroupBy::Model),
        by(GroupBy::ExternalUserId),
        by(GroupBy::ApiKey),
        i64::try_from(GROUPS_MAX).unwrap_or(i64::MAX).saturating_add(1),
    )
    .fetch_all(tx.conn())
    .await?;
    if rows.len() > GROUPS_MAX {
        return Err(UsageError::TooManyGroups);
    }
    let currency = prices::current(tx).await?.currency;
    let totals: Vec<UsageGroup> = rows.into_iter().map(|row| row.group(group_by)).collect();
    Ok(report(from, to, group_by, totals, currency))
}

/// The whole from its groups.
fn report(
    from: Timestamp,
    to: Timestamp,
    group_by: &[GroupBy],
    totals: Vec<UsageGroup>,
    currency: String,
) -> UsageReport {
    let mut costs: BTreeMap<&str, Amount> = BTreeMap::new();
    for group in &totals {
        let cost = costs.entry(&group.cost.currency).or_default();
        *cost = *cost + group.cost.amount;
    }
    let total = UsageGroup {
        group: BTreeMap::new(),
        events: totals.iter().map(|group| group.events).sum(),
        quantities: totals.iter().fold(Quantities::default(), |sum, group| sum.plus(&group.quantities)),
        cost: Money { amount: costs.remove(currency.as_str()).unwrap_or_default(), currency },
    };
    let other_currencies =
        costs.into_iter().map(|(currency, amount)| Money { amount, currency: currency.into() }).collect();
    UsageReport { from, to, group_by: group_by.to_vec(), totals, total, other_currencies }
}

impl Quantities {
    fn plus(self, other: &Quantities) -> Quantities {
        Quantities {
            input_tokens: self.input_tokens + other.input_tokens,
            cached_input_tokens: self.cached_input_tokens + other.cached_input_tokens,
            output_tokens: self.output_tokens + other.output_tokens,
            fuel: self.fuel + other.fuel,
            memory_byte_seconds: self.memory_byte_seconds + other.memory_byte_seconds,
        }
    }
}

struct Row {
    day: Option<String>,
    agent: Option<Uuid>,
    kind: Option<String>,
    tool: Option<String>,
    model: Option<String>,
    external_user_id: Option<String>,
    api_key: Option<Uuid>,
    currency: String,
    events: i64,
    input_tokens: i64,
    cached_input_tokens: i64,
    output_tokens: i64,
    fuel: i64,
    memory_byte_seconds: Decimal,
    cost: Decimal,
}

impl Row {
    fn group(self, group_by: &[GroupBy]) -> UsageGroup {
        let value = |by| match by {
            GroupBy::Day => self.day.clone(),
            GroupBy::Agent => self.agent.map(|id| AgentId::from(id).to_string()),
            GroupBy::Kind => self.kind.clone(),
            GroupBy::Tool => self.tool.clone(),
            GroupBy::Model => self.model.clone(),
            GroupBy::ExternalUserId => self.external_user_id.clone(),
            GroupBy::ApiKey => self.api_key.map(|id| ApiKeyId::from(id).to_string()),
        };
        UsageGroup {
            group: group_by.iter().map(|by| (by.as_str().into(), value(*by))).collect(),
            events: self.events.unsigned_abs(),
            quantities: Quantities {
                input_tokens: self.input_tokens.unsigned_abs(),
                cached_input_tokens: self.cached_input_tokens.unsigned_abs(),
                output_tokens: self.output_tokens.unsigned_abs(),
                fuel: self.fuel.unsigned_abs(),
                memory_byte_seconds: self.memory_byte_seconds,
            },
            // A sum of rounded amounts has no more digits than they have: this changes nothing.
            cost: Money { amount: Amount::rounded(self.cost), currency: self.currency },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_this_month_unless_told() {
        let now = Timestamp::parse("2026-12-24T22:00:00Z").unwrap();
        let told = |from, to| range(from, to, now).map(|(from, to)| (from.to_string(), to.to_string()));
        for (from, to, begin, end) in [
            (None, None, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Some("2026-11-30T00:00:00Z"), None, "2026-11-30T00:00:00Z", "2027-01-01T00:00:00Z"),
            (None, Some("2026-03-01T00:00:00Z"), "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            (None, Some("2026-03-01T00:00:01Z"), "2026-03-01T00:00:00Z", "2026-03-01T00:00:01Z"),
            (
                Some("2026-01-01T01:00:00+02:00"),
                Some("2026-01-01T00:00:00Z"),
                "2025-12-31T23:00:00Z",
                "2026-01-01T00:00:00Z",
            ),
        ] {
            assert_eq!(told(from, to).unwrap(), (begin.into(), end.into()), "{from:?} to {to:?}");
        }
        for (from, to, code) in [
            (Some("yesterday"), None, "usage.bad_range"),
            (None, Some("2026-13-01T00:00:00Z"), "usage.bad_range"),
            (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:00Z"), "usage.bad_range"),
            (Some("2027-02-01T00:00:00Z"), None, "usage.bad_range"),
        ] {
            use domain::Problem;
            let error = told(from, to).unwrap_err();
            assert_eq!((error.code(), error.fields().len()), (code, 1), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn groups_have_the_names_of_the_api() {
        for (by, name) in GroupBy::ALL.into_iter().zip(GroupBy::NAMES) {
            assert_eq!(serde_json::to_value(by).unwrap(), name);
            assert_eq!(name.parse::<GroupBy>().unwrap(), by);
        }
        assert_eq!(group_by("").unwrap(), []);
        assert_eq!(group_by("day,model,day").unwrap(), [GroupBy::Day, GroupBy::Model]);
        for wrong in ["month", "day,", "day, model", "Day"] {
            assert!(group_by(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn currencies_are_never_added() {
        let group = |amount: &str, currency: &str| UsageGroup {
            group: BTreeMap::new(),
            events: 1,
            quantities: Quantities { fuel: 2, ..Default::default() },
            cost: Money { amount: Amount::rounded(amount.parse().unwrap()), currency: currency.into() },
        };
        let now = Timestamp::from_unix_us(0);
        let groups = vec![group("1.5", "EUR"), group("2", "USD"), group("0.25", "EUR")];
        let report = report(now, now, &[], groups, "EUR".into());
        assert_eq!((report.total.events, report.total.quantities.fuel), (3, 6));
        assert_eq!(
            serde_json::to_value(&report.total.cost).unwrap(),
            serde_json::json!({"amount": "1.75", "currency": "EUR"})
        );
        assert_eq!(
            serde_json::to_value(&report.other_currencies).unwrap(),
            serde_json::json!([{"amount": "2", "currency": "USD"}])
        );
    }
}
