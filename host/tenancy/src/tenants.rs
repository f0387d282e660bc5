//! Tenants: born, changed and erased by the operator; their settings changed by themselves.

use domain::{Amount, Ids, Kind, Money, Problem, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Db, DbError, Placement, Tenant, TenantTx,
    plans::{self, Plan, PlanError},
};

/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 100;
/// Bytes of `metadata`: it is read with every look at the tenant.
const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the name of a model.
const DEFAULT_MODEL_BYTES_MAX: usize = 200;
/// Origins that a browser may call from.
const CORS_ORIGINS_MAX: usize = 32;

/// What a tenant chooses for itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The model of agents that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_model: Option<String>,
    pub cors_origins: Vec<String>,
}

/// A tenant as the operator and the tenant see it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct TenantInfo {
    pub id: TenantId,
    pub name: String,
    /// With the tenant's overrides applied.
    pub plan: Plan,
    /// The fields of the plan that differ for this tenant.
    #[schema(value_type = Object)]
    pub overrides: Map<String, Value>,
    /// `database/schema`: where the tenant's rows live.
    pub placement: String,
    pub suspended: bool,
    pub settings: Settings,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub created_at: Timestamp,
}

/// What the operator says of a new tenant.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    pub name: String,
    /// `free` when absent.
    #[serde(default)]
    pub plan: Option<String>,
    /// Fields of the plan that differ for this tenant.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub overrides: Map<String, Value>,
}

/// A change; what is absent stays.
#[derive(Debug, Clone, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantChange {
    pub name: Option<String>,
    pub plan: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub overrides: Option<Map<String, Value>>,
    pub suspended: Option<bool>,
    pub settings: Option<Settings>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    #[error("no such tenant")]
    NotFound,
    #[error("a tenant's name has 1 to {NAME_CHARS_MAX} characters")]
    BadName,
    #[error("`metadata` has more than {METADATA_BYTES_MAX} bytes of JSON; store less")]
    MetadataTooLarge,
    #[error("`settings.default_model` has at most {DEFAULT_MODEL_BYTES_MAX} bytes, such as openai/gpt-5")]
    BadDefaultModel,
    #[error("`settings.cors_origins` holds at most {CORS_ORIGINS_MAX} origins such as https://app.example.com")]
    BadOrigins,
    #[error("`overrides` are fields of a plan: {0}")]
    BadOverrides(String),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for TenantError {
    fn kind(&self) -> Kind {
        match self {
            TenantError::NotFound => Kind::NotFound,
            TenantError::Plan(PlanError::NotFound(_)) => Kind::Invalid,
            TenantError::Plan(error) => error.kind(),
            TenantError::Db(error) => error.kind(),
            _ => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            TenantError::NotFound => "tenant.not_found",
            TenantError::BadName => "tenant.bad_name",
            TenantError::MetadataTooLarge => "tenant.metadata_too_large",
            TenantError::BadDefaultModel => "tenant.bad_default_model",
            TenantError::BadOrigins => "tenant.bad_origins",
            TenantError::BadOverrides(_) => "tenant.bad_overrides",
            TenantError::Plan(error) => error.code(),
            TenantError::Db(error) => error.code(),
        }
    }
}

impl From<sqlx::Error> for TenantError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// A tenant is born in the shared schema.
pub async fn create(
    db: &Db,
    new: NewTenant,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(Tenant, TenantInfo), TenantError> {
    let (tenant, info, tx) = begin(db, new, ids, now).await?;
    tx.commit().await?;
    Ok((tenant, info))
}

/// The same, in a transaction that is not committed yet.
pub async fn begin(
    db: &Db,
    new: NewTenant,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(Tenant, TenantInfo, TenantTx), TenantError> {
    let plan = new.plan.as_deref().unwrap_or("free");
    let mut global = db.global().await?;
    check_name(&new.name)?;
    with_overrides(plans::get(&mut global, plan).await?, &new.overrides)?;
    drop(global);
    let tenant = Tenant::new(TenantId::new(ids), Placement::shared(), db.clone());
    let mut tx = tenant.begin().await?;
    sqlx::query!(
        r#"
        INSERT INTO tenant (tenant_id, name, plan, overrides, database, schema, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        "#,
        tx.tenant().uuid(),
        new.name,
        plan,
        Value::Object(new.overrides),
        tenant.placement().database(),
        tenant.placement().schema(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    let info = get(&mut tx).await?;
    Ok((tenant, info, tx))
}

/// The tenant of this transaction, which no other transaction changes until this one ends: for reading, changing and
/// writing.
pub async fn lock(tx: &mut TenantTx) -> Result<TenantInfo, TenantError> {
    sqlx::query_scalar!("SELECT tenant_id FROM tenant WHERE tenant_id = $1 FOR UPDATE", tx.tenant().uuid())
        .fetch_optional(tx.conn())
        .await?;
    get(tx).await
}

/// The tenant of this transaction.
pub async fn get(tx: &mut TenantTx) -> Result<TenantInfo, TenantError> {
    let row = sqlx::query!(
        r#"
        SELECT t.name, t.overrides, t.suspended, t.settings, t.metadata, t.created_at,
               p.name AS plan, p.requests_per_minute, p.concurrent_runs, p.concurrent_tool_calls, p.tokens_per_month,
               p.weight, p.tool_limits, p.upload_bytes, p.storage_bytes, p.monthly_fee, p.currency,
               t.database, t.schema
        FROM tenant t JOIN plan p ON p.name = t.plan
        WHERE t.tenant_id = $1
        "#,
        tx.tenant().uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(TenantError::NotFound)?;
    let decode = |error: serde_json::Error| sqlx::Error::Decode(Box::new(error));
    let plan = Plan {
        name: row.plan,
        requests_per_minute: row.requests_per_minute,
        concurrent_runs: row.concurrent_runs,
        concurrent_tool_calls: row.concurrent_tool_calls,
        tokens_per_month: row.tokens_per_month,
        weight: row.weight,
        tool_limits: serde_json::from_value(row.tool_limits).map_err(decode)?,
        upload_bytes: row.upload_bytes,
        storage_bytes: row.storage_bytes,
        monthly_fee: Money { amount: Amount::rounded(row.monthly_fee), currency: row.currency },
    };
    let overrides = serde_json::from_value(row.overrides).map_err(decode)?;
    Ok(TenantInfo {
        id: tx.tenant(),
        name: row.name,
        plan: with_overrides(plan, &overrides)?,
        overrides,
        placement: format!("{}/{}", row.database, row.schema),
        suspended: row.suspended,
        settings: serde_json::from_value(row.settings).map_err(decode)?,
        metadata: serde_json::from_value(row.metadata).map_err(decode)?,
        created_at: row.created_at.into(),
    })
}

pub async fn update(tx: &mut TenantTx, change: TenantChange) -> Result<TenantInfo, TenantError> {
    if let Some(name) = &change.name {
        check_name(name)?;
    }
    if let Some(metadata) = &change.metadata
        && Value::Object(metadata.clone()).to_string().len() > METADATA_BYTES_MAX
    {
        return Err(TenantError::MetadataTooLarge);
    }
    if let Some(settings) = &change.settings {
        if settings.default_model.as_ref().is_some_and(|model| model.len() > DEFAULT_MODEL_BYTES_MAX) {
            return Err(TenantError::BadDefaultModel);
        }
        let origin = |text: &String| {
            url::Url::parse(text)
                .is_ok_and(|url| url.origin().is_tuple() && url.origin().ascii_serialization() == *text)
        };
        if settings.cors_origins.len() > CORS_ORIGINS_MAX || !settings.cors_origins.iter().all(origin) {
            return Err(TenantError::BadOrigins);
        }
    }
    let encode = |error: serde_json::Error| sqlx::Error::Encode(Box::new(error));
    let settings = change.settings.map(serde_json::to_value).transpose().map_err(encode)?;
    let updated = sqlx::query!(
        r#"
        UPDATE tenant SET
            name = coalesce($2, name), plan = coalesce($3, plan), overrides = coalesce($4, overrides),
            suspended = coalesce($5, suspended), settings = coalesce($6, settings), metadata = coalesce($7, metadata)
        WHERE tenant_id = $1
        "#,
        tx.tenant().uuid(),
        change.name,
        change.plan,
        change.overrides.map(Value::Object),
        change.suspended,
        settings,
        change.metadata.map(Value::Object),
    )
    .execute(tx.conn())
    .await;
    match updated {
        Err(error) if DbError::violates(&error, "tenant_plan_fkey") => {
            Err(PlanError::NotFound(change.plan.unwrap_or_default()).into())
        }
        Err(error) => Err(error.into()),
        // Reading it back also checks the overrides against the plan, before anything is committed.
        Ok(_) => get(tx).await,
    }
}

/// Erases the tenant and everything that is its own.
pub async fn delete(tx: &mut TenantTx) -> Result<(), TenantError> {
    // One statement goes through all of its rows.
    sqlx::query_scalar!("SELECT set_config('statement_timeout', '15min', true)").fetch_one(tx.conn()).await?;
    sqlx::query!("DELETE FROM tenant WHERE tenant_id = $1", tx.tenant().uuid()).execute(tx.conn()).await?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), TenantError> {
    if (1..=NAME_CHARS_MAX).contains(&name.chars().count()) { Ok(()) } else { Err(TenantError::BadName) }
}

/// A plan with some of its fields replaced.
fn with_overrides(plan: Plan, overrides: &Map<String, Value>) -> Result<Plan, TenantError> {
    if overrides.is_empty() {
        return Ok(plan);
    }
    let bad = |error: serde_json::Error| TenantError::BadOverrides(error.to_string());
    if overrides.contains_key("name") {
        return Err(TenantError::BadOverrides("`name` is not one that can be overridden".into()));
    }
    let Value::Object(mut fields) = serde_json::to_value(plan).map_err(bad)? else {
        unreachable!("a plan is an object")
    };
    fields.extend(overrides.clone());
    let plan: Plan = serde_json::from_value(Value::Object(fields)).map_err(bad)?;
    plan.check()?;
    Ok(plan)
}
