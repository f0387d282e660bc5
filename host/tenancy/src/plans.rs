//! What the operator offers.

use domain::{Amount, Kind, Limits, Money, Problem, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{DbError, GlobalTx};

/// A plan. `tool_limits` are the ceilings of every tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub name: String,
    pub requests_per_minute: i32,
    pub concurrent_runs: i32,
    pub concurrent_tool_calls: i32,
    /// Unlimited when absent.
    #[serde(default)]
    pub tokens_per_month: Option<i64>,
    pub weight: i32,
    pub tool_limits: Limits,
    /// Of one component.
    pub upload_bytes: i64,
    /// Of all components and key-value entries of the tenant.
    pub storage_bytes: i64,
    pub monthly_fee: Money,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("no plan `{0}`; list them with GET /operator/v1/plans")]
    NotFound(String),
    #[error("a plan's name is ^[a-z][a-z0-9-]{{0,29}}$")]
    BadName,
    #[error("`monthly_fee` is an amount of zero or more in a currency such as USD")]
    BadFee,
    #[error("`{0}` must be greater than zero")]
    NotPositive(&'static str),
    #[error("`tool_limits` exceed what the engine is built for: {0:?}")]
    AboveEngine(Limits),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for PlanError {
    fn kind(&self) -> Kind {
        match self {
            PlanError::NotFound(_) => Kind::NotFound,
            PlanError::BadName | PlanError::BadFee | PlanError::NotPositive(_) | PlanError::AboveEngine(_) => {
                Kind::Invalid
            }
            PlanError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            PlanError::NotFound(_) => "plan.not_found",
            PlanError::BadName => "plan.bad_name",
            PlanError::BadFee => "plan.bad_fee",
            PlanError::NotPositive(_) => "plan.not_positive",
            PlanError::AboveEngine(_) => "plan.above_engine",
            PlanError::Db(error) => error.code(),
        }
    }
}

impl From<sqlx::Error> for PlanError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Plan {
    pub fn check(&self) -> Result<(), PlanError> {
        if self.name.parse::<domain::ToolName>().is_err() {
            return Err(PlanError::BadName);
        }
        let Money { amount, currency } = &self.monthly_fee;
        if *amount < Amount::ZERO || currency.len() != 3 || !currency.bytes().all(|b| b.is_ascii_uppercase()) {
            return Err(PlanError::BadFee);
        }
        for (name, value) in [
            ("requests_per_minute", i64::from(self.requests_per_minute)),
            ("concurrent_runs", i64::from(self.concurrent_runs)),
            ("concurrent_tool_calls", i64::from(self.concurrent_tool_calls)),
            ("weight", i64::from(self.weight)),
            ("tokens_per_month", self.tokens_per_month.unwrap_or(1)),
            ("upload_bytes", self.upload_bytes),
            ("storage_bytes", self.storage_bytes),
        ] {
            if value <= 0 {
                return Err(PlanError::NotPositive(name));
            }
        }
        if self.tool_limits.min(Limits::CEILING) != self.tool_limits {
            return Err(PlanError::AboveEngine(Limits::CEILING));
        }
        Ok(())
    }
}

pub async fn list(tx: &mut GlobalTx) -> Result<Vec<Plan>, PlanError> {
    let rows = sqlx::query!(
        r#"
        SELECT name, requests_per_minute, concurrent_runs, concurrent_tool_calls, tokens_per_month, weight,
               tool_limits, upload_bytes, storage_bytes, monthly_fee, currency
        FROM plan ORDER BY name
        "#
    )
    .fetch_all(tx.conn())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Plan {
                name: row.name,
                requests_per_minute: row.requests_per_minute,
                concurrent_runs: row.concurrent_runs,
                concurrent_tool_calls: row.concurrent_tool_calls,
                tokens_per_month: row.tokens_per_month,
                weight: row.weight,
                tool_limits: serde_json::from_value(row.tool_limits)
                    .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
                upload_bytes: row.upload_bytes,
                storage_bytes: row.storage_bytes,
                monthly_fee: Money { amount: Amount::rounded(row.monthly_fee), currency: row.currency },
            })
        })
        .collect()
}

pub async fn get(tx: &mut GlobalTx, name: &str) -> Result<Plan, PlanError> {
    list(tx).await?.into_iter().find(|plan| plan.name == name).ok_or_else(|| PlanError::NotFound(name.to_owned()))
}

/// Writes a plan. Answers whether it is new.
pub async fn put(tx: &mut GlobalTx, plan: &Plan, now: Timestamp) -> Result<bool, PlanError> {
    plan.check()?;
    let limits = serde_json::to_value(plan.tool_limits).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let new = sqlx::query_scalar!(
        r#"
        INSERT INTO plan AS p (name, requests_per_minute, concurrent_runs, concurrent_tool_calls, tokens_per_month,
                               weight, tool_limits, upload_bytes, storage_bytes, monthly_fee, currency, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        ON CONFLICT (name) DO UPDATE SET
            requests_per_minute = $2, concurrent_runs = $3, concurrent_tool_calls = $4, tokens_per_month = $5,
            weight = $6, tool_limits = $7, upload_bytes = $8, storage_bytes = $9, monthly_fee = $10, currency = $11,
            updated_at = $12
        RETURNING (xmax = 0) AS "new!"
        "#,
        plan.name,
        plan.requests_per_minute,
        plan.concurrent_runs,
        plan.concurrent_tool_calls,
        plan.tokens_per_month,
        plan.weight,
        limits,
        plan.upload_bytes,
        plan.storage_bytes,
        plan.monthly_fee.amount.decimal(),
        plan.monthly_fee.currency,
        now.offset(),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(new)
}
