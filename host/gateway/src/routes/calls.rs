//! Tool calls: one made directly, and all that were made.

use std::collections::BTreeMap;

use agent_config::VersionRef;
use agent_runtime::{Called, DirectCall, ToolCallRow, recordings, tool_calls, tool_calls::ToolCallFilter};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use domain::{CallId, FunctionName, Grants, LimitsRequest, RunId, ToolName};
use serde::Deserialize;
use serde_json::{Map, Value};
use tenancy::{TenantTx, keys::Scope};
use tool_api::{
    ArtifactHash, Status,
    recorded::{RecordedCall, Replay},
};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Gateway,
    answer::Answer,
    caller::Caller,
    idempotency::{self, Once, Reserved},
    json::Json,
    page::{List, Listing, PageParams},
    path::{Name, Named},
    problem::{Refusal, RequestError},
    routes::agents,
};

/// A function to call, and what it gets.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CallBody {
    function: FunctionName,
    #[serde(default)]
    #[schema(value_type = Object)]
    arguments: Map<String, Value>,
    /// One that names a secret needs the scope `secrets:write`.
    #[serde(default)]
    grants: Grants,
    /// What is absent is the plan's default.
    #[serde(default)]
    limits: LimitsRequest,
    #[serde(default)]
    external_user_id: Option<String>,
    #[serde(default)]
    context: BTreeMap<String, String>,
    /// Keep what the host gives to the call, so that it can be replayed.
    #[serde(default)]
    record: bool,
}

/// The version that is tried on a recording.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayBody {
    /// `sha256:...` or `latest`.
    #[schema(value_type = String)]
    version: VersionRef,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CallQuery {
    tool: Option<ToolName>,
    version: Option<ArtifactHash>,
    function: Option<FunctionName>,
    #[param(inline)]
    status: Option<Status>,
    run: Option<RunId>,
    /// An id or a name.
    agent: Option<String>,
    external_user_id: Option<String>,
}

/// Calls one function without a model. 200 once the tool began, whatever it came to. Scope `tools:call`.
#[utoipa::path(
    post, path = "/v1/tools/{tool}/versions/{version}/calls", request_body = CallBody,
    responses((status = 200, body = ToolCallRow))
)]
pub(crate) async fn call(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named((tool, version)): Named<(ToolName, VersionRef)>,
    Json(body): Json<CallBody>,
) -> Result<Response, Refusal> {
    caller.require_any_agent(Scope::ToolsCall)?;
    let external_user_id = caller.speaks_for(body.external_user_id)?;
    if !body.grants.secret_names().is_empty() {
        caller.require(Scope::SecretsWrite)?;
    }
    let call = DirectCall {
        tool,
        version,
        function: body.function,
        arguments: Value::Object(body.arguments),
        grants: body.grants,
        limits: body.limits,
        external_user_id,
        context: body.context,
        api_key: Some(caller.key),
        record: body.record,
    };
    // On a task of its own: a client that leaves does not undo what the tool did, nor its price.
    let (runtime, tenant) = (gateway.runtime.clone(), caller.tenant().clone());
    let called = gateway.background.spawn(async move {
        match once.request() {
            None => runtime.call_tool(&tenant, call).await.map(Called::Now),
            Some(request) => runtime.call_tool_once(&tenant, call, request).await,
        }
    });
    Ok(match called.await.map_err(|error| RequestError::Panicked(error.to_string()))?? {
        Called::Now(row) => Json(row).into_response(),
        Called::Before(row) => idempotency::mark(Json(row).into_response()),
    })
}

/// Tool calls with outcome and receipt, newest first. Scope `runs:read`.
#[utoipa::path(
    get, path = "/v1/tool-calls", params(PageParams, CallQuery), responses((status = 200, body = List<ToolCallRow>))
)]
pub(crate) async fn list(caller: Caller, listing: Listing<CallQuery>) -> Answer<List<ToolCallRow>> {
    caller.require(Scope::RunsRead)?;
    let asked = &listing.filter;
    let mut tx = caller.tenant().begin().await?;
    let filter = ToolCallFilter {
        tool: asked.tool.clone(),
        version: asked.version,
        function: asked.function.clone(),
        status: asked.status,
        run: asked.run,
        agent: agents::filtered(&mut tx, asked.agent.as_deref()).await?,
        agents: caller.agents().map(<[_]>::to_vec),
        external_user_id: caller.speaks_for(asked.external_user_id.clone())?,
    };
    let page = tool_calls::list(&mut tx, &filter, listing.page).await?;
    Ok(listing.answer(page))
}

/// One tool call. Scope `runs:read`.
#[utoipa::path(get, path = "/v1/tool-calls/{id}", responses((status = 200, body = ToolCallRow)))]
pub(crate) async fn show(caller: Caller, Named(id): Named<CallId>) -> Answer<ToolCallRow> {
    caller.require(Scope::RunsRead)?;
    let mut tx = caller.tenant().begin().await?;
    Ok(Json(seen(&mut tx, &caller, id).await?))
}

/// What the host gave to a call that was recorded, with all that a replay needs. Scope `runs:read`.
#[utoipa::path(get, path = "/v1/tool-calls/{id}/recording", responses((status = 200, body = RecordedCall)))]
pub(crate) async fn recording(caller: Caller, Named(id): Named<CallId>) -> Answer<RecordedCall> {
    caller.require(Scope::RunsRead)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    let recorded = recordings::get(&mut tx, id).await?;
    Ok(Json(recorded))
}

/// Runs a recorded call again, on another version of its tool: nothing is sent, nothing is written. Answers how the two
/// differ in output, fuel and host calls. Scope `tools:call`.
#[utoipa::path(
    post, path = "/v1/tool-calls/{id}/replay", request_body = ReplayBody, responses((status = 200, body = Replay))
)]
pub(crate) async fn replay(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named(id): Named<CallId>,
    Json(body): Json<ReplayBody>,
) -> Result<Response, Refusal> {
    caller.require_any_agent(Scope::ToolsCall)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    drop(tx);
    // On a task of its own, like a call: it is billed whether the client waits or leaves.
    let (runtime, tenant, key) = (gateway.runtime.clone(), caller.tenant().clone(), caller.key);
    let replayed = gateway.background.spawn(async move {
        let reservation = match once.reserve(&tenant).await? {
            Reserved::Before(first) => return Ok(first),
            Reserved::Here(reservation) => reservation,
        };
        let replaying = async { Ok(runtime.replay(&tenant, id, body.version, Some(key), reservation.as_ref()).await?) };
        Ok(Json(Box::pin(once.renewing(&tenant, reservation, replaying)).await?).into_response())
    });
    replayed.await.map_err(|error| RequestError::Panicked(error.to_string()))?
}

/// A call that the key may know of.
async fn seen(tx: &mut TenantTx, caller: &Caller, id: CallId) -> Result<ToolCallRow, Refusal> {
    let found = tool_calls::get(tx, id).await?;
    let found = found.filter(|row| caller.sees(row.agent_id, row.external_user_id.as_deref()));
    Ok(found.ok_or(CallId::NOT_FOUND)?)
}
