//! Runs: followed, cancelled, listed.

use agent_runtime::{Run, RunDetail, RunError, RunStatus, runs, runs::RunFilter, timeline};
use axum::{extract::State, response::Response};
use domain::RunId;
use http::HeaderMap;
use serde::Deserialize;
use tenancy::{TenantTx, keys::Scope};
use utoipa::IntoParams;

use crate::{
    Gateway,
    answer::{Answer, Made},
    caller::Caller,
    idempotency::Once,
    json::Json,
    page::{Asked, List, Listing, PageParams},
    path::Named,
    problem::Refusal,
    routes::agents,
    sse,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunQuery {
    /// An id or a name.
    agent: Option<String>,
    #[param(inline)]
    status: Option<RunStatus>,
    conversation_id: Option<domain::ConversationId>,
    external_user_id: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// The `id` of the last event that was seen; the same as `Last-Event-ID`.
    after: Option<String>,
}

/// Runs, newest first. Scope `runs:read`.
#[utoipa::path(get, path = "/v1/runs", params(PageParams, RunQuery), responses((status = 200, body = List<Run>)))]
pub(crate) async fn list(caller: Caller, listing: Listing<RunQuery>) -> Answer<List<Run>> {
    caller.require(Scope::RunsRead)?;
    let RunQuery { agent, status, conversation_id: conversation, external_user_id } = &listing.filter;
    let mut tx = caller.tenant().begin().await?;
    let agent = agents::filtered(&mut tx, agent.as_deref()).await?;
    let external_user_id = caller.speaks_for(external_user_id.clone())?;
    let filter = RunFilter {
        agent,
        agents: caller.agents().map(<[_]>::to_vec),
        status: *status,
        conversation: *conversation,
        external_user_id,
    };
    let page = runs::list(&mut tx, &filter, listing.page).await?;
    Ok(listing.answer(page))
}

/// A run with its steps, usage and cost. Scope `runs:read`.
#[utoipa::path(get, path = "/v1/runs/{id}", responses((status = 200, body = RunDetail)))]
pub(crate) async fn show(caller: Caller, Named(id): Named<RunId>) -> Answer<RunDetail> {
    caller.require(Scope::RunsRead)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    let detail = timeline::detail(&mut tx, id).await?;
    Ok(Json(detail))
}

/// A run's events, as server-sent events, from the beginning or after the one named. After `run.resumed {attempt,
/// restarts_after}`, with which another process goes on, what came after the event `restarts_after` is void: it comes
/// anew. Scope `runs:read`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/events", params(EventsQuery),
    responses((status = 200, body = String, content_type = "text/event-stream"))
)]
pub(crate) async fn events(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(id): Named<RunId>,
    headers: HeaderMap,
    Asked(asked): Asked<EventsQuery>,
) -> Result<Response, Refusal> {
    caller.require(Scope::RunsRead)?;
    let after = sse::after(&headers, asked.after.as_deref())?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    drop(tx);
    let place = gateway.shared.stream(caller.tenant().id())?;
    let events = gateway.runtime.follow(caller.tenant(), id, after).await?;
    Ok(sse::told(&gateway, place, id, events))
}

/// Stops a run. One that has ended stays as it is. Scope `chat`.
#[utoipa::path(post, path = "/v1/runs/{id}/cancel", responses((status = 200, body = Run)))]
pub(crate) async fn cancel(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named(id): Named<RunId>,
) -> Result<Response, Refusal> {
    caller.require(Scope::Chat)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    drop(tx);
    let cancelling = async { Ok(Made::told(gateway.runtime.cancel(caller.tenant(), id).await?)) };
    once.around(caller.tenant(), cancelling).await
}

/// A run that the key may know of.
pub(super) async fn seen(tx: &mut TenantTx, caller: &Caller, id: RunId) -> Result<Run, RunError> {
    runs::get(tx, id).await?.filter(|run| sees(caller, run)).ok_or(RunError::NotFound)
}

fn sees(caller: &Caller, run: &Run) -> bool {
    caller.sees(Some(run.agent_id), run.external_user_id.as_deref())
}
