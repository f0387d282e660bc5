//! One function called without a model. Recorded and billed like any other call.

use std::{collections::BTreeMap, sync::Arc};

use agent_config::{
    secrets::SecretError,
    tools::{self, ToolError, VersionRef},
};
use billing_meter::{
    prices,
    usage::{self, Cause},
};
use domain::{
    ApiKeyId, CallId, FieldError, FunctionName, Grants, Kind, LimitsRequest, Problem, ToolName,
    grants::{GrantsError, NoUser},
    limits::LimitError,
    nul,
};
use serde_json::Value;
use tenancy::{
    DbError, Tenant,
    tenants::{self, TenantError},
};
use tool_api::{CallContext, CallError, ToolCall};

use crate::{
    AgentRuntime,
    calls::Executed,
    changes::{self, AfterApply},
    commit,
    fit::{self, Unfit},
    host::TenantHost,
    load::share,
    recordings,
    runs::RunError,
    start::CONTEXT_BYTES_MAX,
    tool_calls::{self, NewToolCall, Origin, ToolCallRow},
};

/// A call as the caller asks for it.
#[derive(Debug, Clone)]
pub struct DirectCall {
    pub tool: ToolName,
    pub version: VersionRef,
    pub function: FunctionName,
    pub arguments: Value,
    pub grants: Grants,
    pub limits: LimitsRequest,
    pub external_user_id: Option<String>,
    pub context: BTreeMap<String, String>,
    /// Keep what the host gives to the call, so that it can be run again.
    pub record: bool,
    pub api_key: Option<ApiKeyId>,
}

#[derive(Debug, thiserror::Error)]
pub enum DirectCallError {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    NoUser(#[from] NoUser),
    #[error("`context` has more than {CONTEXT_BYTES_MAX} bytes of JSON; send less")]
    ContextTooLarge,
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Grants(#[from] GrantsError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for DirectCallError {
    fn kind(&self) -> Kind {
        match self {
            DirectCallError::NoUser(_)
            | DirectCallError::ContextTooLarge
            | DirectCallError::Limit(_)
            | DirectCallError::Grants(_) => Kind::Invalid,
            DirectCallError::Unfit(error) => error.kind(),
            DirectCallError::Secret(error) => error.kind(),
            DirectCallError::Tool(error) => error.kind(),
            DirectCallError::Tenant(error) => error.kind(),
            DirectCallError::Call(error) => error.kind(),
            DirectCallError::Run(error) => error.kind(),
            DirectCallError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            DirectCallError::Unfit(error) => error.code(),
            DirectCallError::NoUser(_) => "tool_call.no_external_user",
            DirectCallError::ContextTooLarge => "tool_call.context_too_large",
            DirectCallError::Limit(_) => "tool_call.limit_above_plan",
            DirectCallError::Grants(_) => "tool_call.bad_grants",
            DirectCallError::Secret(error) => error.code(),
            DirectCallError::Tool(error) => error.code(),
            DirectCallError::Tenant(error) => error.code(),
            DirectCallError::Call(error) => error.code(),
            DirectCallError::Run(error) => error.code(),
            DirectCallError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            DirectCallError::Unfit(error) => error.fields(),
            DirectCallError::Limit(error) => {
                vec![FieldError::new(format!("/limits/{}", error.name), error.to_string())]
            }
            DirectCallError::Grants(error) => {
                vec![FieldError::new(format!("/grants{}", error.pointer()), error.to_string())]
            }
            DirectCallError::NoUser(error) => {
                vec![FieldError::new("/external_user_id", error.to_string())]
            }
            DirectCallError::Secret(error) if error.kind() == Kind::Invalid => {
                vec![FieldError::new("/grants", error.to_string())]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            DirectCallError::Call(error) => error.retry_after_seconds(),
            DirectCallError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl AgentRuntime {
    /// Calls a function and records the call. An error: the guest never started, nothing is recorded or billed.
    pub async fn call_tool(&self, tenant: &Tenant, call: DirectCall) -> Result<ToolCallRow, DirectCallError> {
        let parts = &self.0.parts;
        let id = CallId::new(parts.ids.as_ref());
        let mut arguments = call.arguments;
        nul::replace(&mut arguments);
        if serde_json::json!(call.context).to_string().len() > CONTEXT_BYTES_MAX {
            return Err(DirectCallError::ContextTooLarge);
        }

        let mut tx = tenant.begin().await?;
        let (_, version) = tools::callable(&mut tx, &call.tool, call.version).await?;
        let plan = tenants::get(&mut tx).await?.plan;
        drop(tx);
        let limits = call.limits.resolve(plan.tool_limits)?;
        call.grants.check()?;
        let grants = call.grants.for_call(call.external_user_id.as_deref())?;
        fit::check(&version, &call.function, &arguments)?;
        let secrets = self.open_secrets(tenant, &call.grants.secret_names()).await?;
        let mut tool_call = ToolCall {
            id,
            tenant: tenant.id(),
            tool: call.tool.clone(),
            artifact: version.version,
            function: call.function.clone(),
            arguments: arguments.clone(),
            grants: Arc::new(grants),
            secrets: Arc::new(secrets),
            limits,
            context: CallContext {
                idempotency_key: id.to_string(),
                attempt: 1,
                external_user_id: call.external_user_id.clone(),
                entries: Arc::new(call.context),
                ..CallContext::default()
            },
            share: share(&plan),
            record: call.record,
        };
        // Until its changes are applied in the transaction that commits it.
        let (mut tx, now, finished, given) = loop {
            let host = Arc::new(TenantHost::new(tenant, &self.0.store_reads));
            let Executed { mut finished, given } = self.execute(tenant, tool_call.clone(), host).await?;
            let now = parts.clock.now();
            let mut tx = tenant.begin().await?;
            let left = [(id, std::mem::take(&mut finished.changes), Some(&finished.receipt))];
            let tried = changes::apply(&mut tx, plan.storage_bytes, &left, now).await?;
            match changes::after_apply(&tried, true) {
                AfterApply::Commit(settled) => {
                    settled.into_iter().for_each(|(_, outcome)| finished.outcome = outcome);
                    break (tx, now, finished, given);
                }
                AfterApply::Rerun(_) => {
                    drop(tx);
                    tool_call.context.attempt += 1;
                }
            }
        };

        let book = prices::current(&mut tx).await.map_err(RunError::from)?;
        let cause = Cause {
            call_id: Some(id),
            api_key_id: call.api_key,
            external_user_id: call.external_user_id.clone(),
            tool: Some(call.tool.to_string()),
            function: Some(call.function.to_string()),
            ..Cause::default()
        };
        let used = commit::call_usage(id, &finished.receipt, &cause);
        let price = used.iter().map(|event| book.price(&event.used, None, None).amount).sum();
        let origin = Origin {
            run: None,
            agent: None,
            external_user_id: call.external_user_id.as_deref(),
            currency: &book.currency,
            price_book: book.version,
        };
        let new = NewToolCall {
            id,
            tool: call.tool.as_str(),
            function: call.function.as_str(),
            artifact: Some(version.version),
            arguments: &arguments,
            outcome: &finished.outcome,
            receipt: Some(&finished.receipt),
            price,
        };
        tool_calls::record(&mut tx, &origin, &[new], now).await?;
        let recorded: Vec<_> = given.iter().map(|given| (id, given)).collect();
        recordings::record(&mut tx, &recorded, now).await?;
        usage::record(&mut tx, &book, &used, parts.ids.as_ref(), now).await.map_err(RunError::from)?;
        let row = tool_calls::get(&mut tx, id).await?.ok_or(RunError::NotFound)?;
        tx.commit().await?;
        Ok(row)
    }
}
