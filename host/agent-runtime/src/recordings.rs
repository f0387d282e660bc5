//! What the host gave to recorded calls.

use agent_config::ToolError;
use domain::{CallId, FieldError, Kind, Problem, Timestamp, names::BadName};
use serde_json::Value;
use tenancy::{DbError, TenantTx, idempotency::IdempotencyError, tenants::TenantError};
use tool_api::{CallError, Given, RecordedCall};

use crate::{fit::Unfit, runs::RunError, spending::Unpaid, tool_calls};

/// Why a recording cannot be had, or its call cannot be run again.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("no such call, or it was not recorded: set `record` on the binding or the direct call before the next one")]
    NotFound,
    #[error(
        "the call took more from its host than a recording holds, so what came later is missing; record a call that \
         reads less"
    )]
    Truncated,
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error(transparent)]
    Unpaid(#[from] Unpaid),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Idempotency(#[from] IdempotencyError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for RecordingError {
    fn kind(&self) -> Kind {
        match self {
            RecordingError::NotFound => Kind::NotFound,
            RecordingError::Truncated => Kind::Conflict,
            RecordingError::Unfit(error) => error.kind(),
            RecordingError::Tool(error) => error.kind(),
            RecordingError::Tenant(error) => error.kind(),
            RecordingError::Unpaid(error) => error.kind(),
            RecordingError::Call(error) => error.kind(),
            RecordingError::Run(error) => error.kind(),
            RecordingError::Idempotency(error) => error.kind(),
            RecordingError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            RecordingError::NotFound => "recording.not_found",
            RecordingError::Truncated => "recording.truncated",
            RecordingError::Unfit(error) => error.code(),
            RecordingError::Tool(error) => error.code(),
            RecordingError::Tenant(error) => error.code(),
            RecordingError::Unpaid(error) => error.code(),
            RecordingError::Call(error) => error.code(),
            RecordingError::Run(error) => error.code(),
            RecordingError::Idempotency(error) => error.code(),
            RecordingError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            RecordingError::Unfit(error) => error.fields(),
            RecordingError::Tool(error) => error.fields(),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            RecordingError::Call(error) => error.retry_after_seconds(),
            RecordingError::Idempotency(error) => error.retry_after_seconds(),
            RecordingError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for RecordingError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// Writes recordings of calls that the same transaction has written.
pub(crate) async fn record(tx: &mut TenantTx, recorded: &[(CallId, &Given)], now: Timestamp) -> Result<(), RunError> {
    if recorded.is_empty() {
        return Ok(());
    }
    let body = |given: &Given| {
        let mut body = serde_json::to_value(given).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        domain::nul::replace(&mut body);
        Ok(body)
    };
    let bodies = recorded.iter().map(|(_, given)| body(given)).collect::<Result<Vec<_>, sqlx::Error>>()?;
    sqlx::query!(
        r#"
        INSERT INTO recording (tenant_id, call_id, body, created_at)
        SELECT $1, call_id, body, $2 FROM unnest($3::uuid[], $4::jsonb[]) AS r (call_id, body)
        "#,
        tx.tenant().uuid(),
        now.offset(),
        &recorded.iter().map(|(id, _)| id.uuid()).collect::<Vec<_>>(),
        &bodies,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A recorded call, whole.
pub async fn get(tx: &mut TenantTx, id: CallId) -> Result<RecordedCall, RecordingError> {
    let body: Option<Value> = sqlx::query_scalar!(
        "SELECT body FROM recording WHERE tenant_id = $1 AND call_id = $2",
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    let given: Given =
        serde_json::from_value(body.ok_or(RecordingError::NotFound)?).map_err(|error| unreadable(error.into()))?;
    let call = tool_calls::get(tx, id).await?.ok_or(RecordingError::NotFound)?;
    let (Some(receipt), Some(version)) = (call.receipt, call.version) else { return Err(RecordingError::NotFound) };
    Ok(RecordedCall {
        id,
        tool: call.tool.parse().map_err(|error: BadName| unreadable(error.into()))?,
        version,
        function: call.function.parse().map_err(|error: BadName| unreadable(error.into()))?,
        arguments: call.arguments,
        outcome: call.outcome,
        receipt: receipt.receipt,
        given,
    })
}
