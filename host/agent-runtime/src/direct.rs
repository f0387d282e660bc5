//! One function called without a model. Recorded and billed like any other call.

use std::{collections::BTreeMap, sync::Arc};

use agent_config::{
    AgentError, bindings,
    secrets::SecretError,
    tools::{self, ToolError, VersionRef},
};
use billing_meter::{
    Spend, Standing, prices,
    usage::{self, Cause},
};
use domain::{
    AgentName, Amount, ApiKeyId, CallId, FieldError, FunctionName, Grants, Kind, LimitsRequest, Problem, ToolName,
    grants::{GrantsError, NoUser},
    limits::LimitError,
    nul,
};
use serde_json::Value;
use tenancy::{
    DbError, Tenant,
    idempotency::{self, IdempotencyError, Opened, Reservation, Way},
    tenants::{self, TenantError},
};
use tool_api::{CallContext, CallError, ToolCall};

use crate::{
    AgentRuntime,
    calls::Executed,
    changes::{self, AfterApply},
    commit, fault,
    fit::{self, Unfit},
    host::TenantHost,
    intents::{self, AfterCut, Sending, Sent},
    load::share,
    recordings,
    runs::RunError,
    spending::{self, Unpaid},
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

/// A call that is made once, however often it is asked for.
#[derive(Debug)]
pub enum Called {
    Now(ToolCallRow),
    /// An earlier request made it.
    Before(ToolCallRow),
}

/// A call that is going to be made.
struct Begun {
    id: CallId,
    attempt: u32,
    reserved: Option<Reservation>,
}

#[derive(Debug, thiserror::Error)]
pub enum DirectCallError {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    NoUser(#[from] NoUser),
    #[error("`context` has more than {CONTEXT_BYTES_MAX} bytes of JSON; send less")]
    ContextTooLarge,
    #[error("`{function}` needs a person's approval where the agent `{agent}` calls it; ask that agent to call it")]
    NeedsApproval { function: FunctionName, agent: AgentName },
    #[error(transparent)]
    Agent(#[from] AgentError),
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

impl Problem for DirectCallError {
    fn kind(&self) -> Kind {
        match self {
            DirectCallError::NoUser(_)
            | DirectCallError::ContextTooLarge
            | DirectCallError::Limit(_)
            | DirectCallError::Grants(_) => Kind::Invalid,
            DirectCallError::NeedsApproval { .. } => Kind::Forbidden,
            DirectCallError::Agent(error) => error.kind(),
            DirectCallError::Unfit(error) => error.kind(),
            DirectCallError::Secret(error) => error.kind(),
            DirectCallError::Tool(error) => error.kind(),
            DirectCallError::Tenant(error) => error.kind(),
            DirectCallError::Unpaid(error) => error.kind(),
            DirectCallError::Call(error) => error.kind(),
            DirectCallError::Run(error) => error.kind(),
            DirectCallError::Idempotency(error) => error.kind(),
            DirectCallError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            DirectCallError::Unfit(error) => error.code(),
            DirectCallError::NoUser(_) => "tool_call.no_external_user",
            DirectCallError::ContextTooLarge => "tool_call.context_too_large",
            DirectCallError::NeedsApproval { .. } => "tool_call.needs_approval",
            DirectCallError::Agent(error) => error.code(),
            DirectCallError::Limit(_) => "tool_call.limit_above_plan",
            DirectCallError::Grants(_) => "tool_call.bad_grants",
            DirectCallError::Secret(error) => error.code(),
            DirectCallError::Tool(error) => error.code(),
            DirectCallError::Tenant(error) => error.code(),
            DirectCallError::Unpaid(error) => error.code(),
            DirectCallError::Call(error) => error.code(),
            DirectCallError::Run(error) => error.code(),
            DirectCallError::Idempotency(error) => error.code(),
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
            DirectCallError::Idempotency(error) => error.retry_after_seconds(),
            DirectCallError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl AgentRuntime {
    /// Calls a function and records the call. An error: the guest never started, nothing is recorded or billed.
    pub async fn call_tool(&self, tenant: &Tenant, call: DirectCall) -> Result<ToolCallRow, DirectCallError> {
        let id = CallId::new(self.0.parts.ids.as_ref());
        Box::pin(self.make_call(tenant, call, Begun { id, attempt: 1, reserved: None })).await
    }

    /// The same once, however often this is asked. It is reserved first, under the id that it has on every try: so that
    /// its requests carry the same key after a crash, and one that may have taken effect is not sent again.
    pub async fn call_tool_once(
        &self,
        tenant: &Tenant,
        call: DirectCall,
        request: idempotency::Request,
    ) -> Result<Called, DirectCallError> {
        let parts = &self.0.parts;
        let id = CallId::new(parts.ids.as_ref());
        let reservation = Reservation { request, by: parts.ids.uuid() };
        let mut tx = tenant.begin().await?;
        let way = Way::Reserved { by: reservation.by, call: Some(id) };
        let opened = idempotency::open(&mut tx, &parts.master_key, &request, way, parts.clock.now()).await?;
        let (id, found) = match opened {
            Opened::First => (id, AfterCut::Run { attempt: 1 }),
            Opened::Again(call) => {
                let id = call.unwrap_or(id);
                let sent = intents::of_calls(&mut tx, &[id]).await?.remove(&id).unwrap_or_default();
                (id, intents::after_cut(&sent))
            }
            Opened::Call(id) => {
                return Ok(Called::Before(tool_calls::get(&mut tx, id).await?.ok_or(RunError::NotFound)?));
            }
            Opened::Answered(_) | Opened::Run { .. } => return Err(IdempotencyError::Unkept.into()),
        };
        tx.commit().await?;
        fault::point("direct.reserved");
        let made = match found {
            AfterCut::Unknown(sent) => self.record_unknown(tenant, &call, id, &sent, &reservation).await,
            AfterCut::Run { attempt } => {
                let begun = Begun { id, attempt, reserved: Some(reservation) };
                let making = Box::pin(self.make_call(tenant, call, begun));
                reservation.renewing(tenant, parts.clock.as_ref(), making).await?
            }
        };
        if made.is_err()
            && let Err(error) = self.give_up(tenant, id, &reservation).await
        {
            tracing::warn!(tool_call.id = %id, error = %error, "a call that was not made is reserved until its lease ends");
        }
        made.map(Called::Now)
    }

    /// After an error: a call that has sent nothing was never asked for.
    async fn give_up(&self, tenant: &Tenant, id: CallId, reservation: &Reservation) -> Result<(), RunError> {
        let mut tx = tenant.begin().await?;
        match intents::of_calls(&mut tx, &[id]).await?.is_empty() {
            true => reservation.release(&mut tx).await?,
            false => reservation.give_up(&mut tx, self.0.parts.clock.now()).await?,
        }
        Ok(tx.commit().await?)
    }

    /// A call that was cut off after it had sent something is told as it is, and not made again.
    async fn record_unknown(
        &self,
        tenant: &Tenant,
        call: &DirectCall,
        id: CallId,
        sent: &Sent,
        reservation: &Reservation,
    ) -> Result<ToolCallRow, DirectCallError> {
        let mut arguments = call.arguments.clone();
        nul::replace(&mut arguments);
        let outcome = intents::outcome_unknown(id, sent);
        let mut tx = tenant.begin().await?;
        let book = prices::current(&mut tx).await.map_err(RunError::from)?;
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
            artifact: None,
            arguments: &arguments,
            outcome: &outcome,
            receipt: None,
            price: Amount::ZERO,
        };
        tool_calls::record(&mut tx, &origin, &[new], self.0.parts.clock.now()).await?;
        let row = tool_calls::get(&mut tx, id).await?.ok_or(RunError::NotFound)?;
        reservation.end(&mut tx).await?;
        tx.commit().await?;
        Ok(row)
    }

    async fn make_call(&self, tenant: &Tenant, call: DirectCall, begun: Begun) -> Result<ToolCallRow, DirectCallError> {
        let (owner, mut holds) = (begun.id.uuid(), false);
        let made = self.try_call(tenant, call, begun, &mut holds).await;
        if holds && made.is_err() {
            self.release(tenant, owner).await;
        }
        made
    }

    /// `holds` is set once something is held of budgets; it is settled with the call.
    async fn try_call(
        &self,
        tenant: &Tenant,
        call: DirectCall,
        begun: Begun,
        holds: &mut bool,
    ) -> Result<ToolCallRow, DirectCallError> {
        let parts = &self.0.parts;
        let id = begun.id;
        let mut arguments = call.arguments;
        nul::replace(&mut arguments);
        if serde_json::json!(call.context).to_string().len() > CONTEXT_BYTES_MAX {
            return Err(DirectCallError::ContextTooLarge);
        }

        let mut tx = tenant.begin().await?;
        let (tool_id, version) = tools::callable(&mut tx, &call.tool, call.version).await?;
        let asks = bindings::needs_approval(&mut tx, tool_id, &call.function).await?;
        let plan = tenants::get(&mut tx).await?.plan;
        // The call is held for and billed by this one, whatever is published meanwhile.
        let Standing { book, has_budgets: is_bounded } = prices::standing(&mut tx).await.map_err(RunError::from)?;
        drop(tx);
        let mut limits = call.limits.resolve(plan.tool_limits)?;
        call.grants.check()?;
        let grants = call.grants.for_call(call.external_user_id.as_deref())?;
        fit::check(&version, &call.function, &arguments)?;
        if let Some(agent) = asks {
            return Err(DirectCallError::NeedsApproval { function: call.function.clone(), agent });
        }
        let secrets = self.open_secrets(tenant, &call.grants.secret_names()).await?;
        if is_bounded {
            let (tx, user) = (tenant.begin().await?, call.external_user_id.as_deref());
            limits = spending::hold_for_call(tx, id.uuid(), user, limits, &book, parts.clock.now()).await?;
            *holds = true;
        }
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
                attempt: begun.attempt,
                external_user_id: call.external_user_id.clone(),
                entries: Arc::new(call.context),
                ..CallContext::default()
            },
            share: share(&plan),
            record: call.record,
        };
        // Until its changes are applied in the transaction that commits it.
        let (mut tx, now, finished, given) = loop {
            let attempt = tool_call.context.attempt;
            let sending =
                Sending { call: id, attempt, clock: parts.clock.clone(), step: None, reserved: begun.reserved };
            let host = Arc::new(TenantHost::new(tenant, &self.0.store_reads, sending));
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
        if let Some(reservation) = &begun.reserved {
            reservation.end(&mut tx).await?;
        }
        if *holds {
            let spent = Spend { money: price, tokens: 0 };
            spending::settle(&mut tx, id.uuid(), None, spent, parts.ids.as_ref(), now).await?;
        }
        fault::point("direct.committing");
        tx.commit().await?;
        fault::point("direct.committed");
        Ok(row)
    }
}
