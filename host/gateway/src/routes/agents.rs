//! Agents and their revisions.

use agent_config::{Agent, AgentError, AgentRef, AgentSpec, BindingSpec, agents, revisions, secrets::NamingRight};
use axum::{extract::State, response::Response};
use domain::AgentId;
use serde_json::Value;
use tenancy::{
    TenantTx,
    keys::Scope,
    tenants::{self, TenantInfo},
};

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    idempotency::Once,
    json::Json,
    page::{List, Listing, PageParams},
    path::{Named, Revision},
    problem::Refusal,
};

/// Creates an agent, at revision 1. Scope `agents:write`; and `secrets:write`, where a grant sends a secret to a host that
/// the secret's own `hosts` do not name.
#[utoipa::path(post, path = "/v1/agents", request_body = AgentSpec<BindingSpec>, responses((status = 201, body = Agent)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Json(body): Json<Value>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::AgentsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let TenantInfo { plan, settings, .. } = tenants::get(&mut tx).await?;
    let spec = AgentSpec::parse(AgentSpec::with_default_model(body, settings.default_model))?;
    let right = naming_right(&caller);
    let agent = agents::create(&mut tx, &plan, spec, right, &*gateway.ids, gateway.clock.now()).await?;
    once.commit(tx, Made::created(format!("/v1/agents/{}", agent.id), agent)).await
}

/// Agents that are not archived, each at its active revision. Scope `agents:read`.
#[utoipa::path(get, path = "/v1/agents", params(PageParams), responses((status = 200, body = List<Agent>)))]
pub(crate) async fn list(caller: Caller, listing: Listing) -> Answer<List<Agent>> {
    caller.require(Scope::AgentsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let page = agents::list(&mut tx, caller.agents(), listing.page).await?;
    Ok(listing.answer(page))
}

/// An agent at its active revision. `{agent}` is an id or a name. Scope `agents:read`.
#[utoipa::path(get, path = "/v1/agents/{agent}", responses((status = 200, body = Agent)))]
pub(crate) async fn show(caller: Caller, Named(agent): Named<AgentRef>) -> Answer<Agent> {
    caller.require(Scope::AgentsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let agent = seen(&mut tx, &caller, &agent).await?;
    Ok(Json(agent))
}

/// Publishes a new revision: the active one with this merge patch (RFC 7396) over it. Scope `agents:write`; and
/// `secrets:write`, where a new grant sends a secret to a host that the secret's own `hosts` do not name.
#[utoipa::path(patch, path = "/v1/agents/{agent}", request_body = Object, responses((status = 200, body = Agent)))]
pub(crate) async fn publish(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(agent): Named<AgentRef>,
    Json(patch): Json<Value>,
) -> Answer<Agent> {
    caller.require_unbound(Scope::AgentsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let plan = tenants::get(&mut tx).await?.plan;
    let agent = agents::publish(&mut tx, &plan, &agent, patch, naming_right(&caller), gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Json(agent))
}

/// Archives an agent and frees its name; conversations and runs stay. Scope `agents:write`.
#[utoipa::path(delete, path = "/v1/agents/{agent}", responses((status = 204)))]
pub(crate) async fn archive(State(gateway): State<Gateway>, caller: Caller, Named(agent): Named<AgentRef>) -> Done {
    caller.require_unbound(Scope::AgentsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    agents::archive(&mut tx, &agent, gateway.clock.now()).await?;
    tx.commit().await?;
    DONE
}

/// An agent's revisions, newest first. Scope `agents:read`.
#[utoipa::path(get, path = "/v1/agents/{agent}/revisions", params(PageParams), responses((status = 200, body = List<Agent>)))]
pub(crate) async fn revisions(caller: Caller, Named(agent): Named<AgentRef>, listing: Listing) -> Answer<List<Agent>> {
    caller.require(Scope::AgentsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let id = seen(&mut tx, &caller, &agent).await?.id;
    let page = revisions::list(&mut tx, &AgentRef::Id(id), listing.page).await?;
    Ok(listing.answer(page))
}

/// One revision of an agent. Scope `agents:read`.
#[utoipa::path(get, path = "/v1/agents/{agent}/revisions/{revision}", responses((status = 200, body = Agent)))]
pub(crate) async fn revision(caller: Caller, Named((agent, revision)): Named<(AgentRef, Revision)>) -> Answer<Agent> {
    caller.require(Scope::AgentsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let id = seen(&mut tx, &caller, &agent).await?.id;
    let agent = revisions::get(&mut tx, &AgentRef::Id(id), revision.0).await?;
    Ok(Json(agent))
}

/// Makes a revision the active one. Scope `agents:write`.
#[utoipa::path(post, path = "/v1/agents/{agent}/revisions/{revision}/activate", responses((status = 200, body = Agent)))]
pub(crate) async fn activate(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named((agent, revision)): Named<(AgentRef, Revision)>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::AgentsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let agent = revisions::activate(&mut tx, &agent, revision.0, gateway.clock.now()).await?;
    once.commit(tx, Made::told(agent)).await
}

/// An agent that the key may know of.
pub(crate) async fn seen(tx: &mut TenantTx, caller: &Caller, agent: &AgentRef) -> Result<Agent, AgentError> {
    let agent = agents::get(tx, agent).await?;
    if sees(caller, agent.id) { Ok(agent) } else { Err(AgentError::NotFound) }
}

/// The agent that a filter names: an id as it is, so that what an archived agent did can be found.
pub(crate) async fn filtered(tx: &mut TenantTx, agent: Option<&str>) -> Result<Option<AgentId>, Refusal> {
    match agent.map(str::parse::<AgentRef>).transpose()? {
        None => Ok(None),
        Some(AgentRef::Id(id)) => Ok(Some(id)),
        Some(name) => Ok(Some(agents::get(tx, &name).await?.id)),
    }
}

/// For which hosts the key may name a secret in a grant.
fn naming_right(caller: &Caller) -> NamingRight {
    match caller.require(Scope::SecretsWrite) {
        Ok(()) => NamingRight::Anywhere,
        Err(_) => NamingRight::WithinHosts,
    }
}

fn sees(caller: &Caller, agent: AgentId) -> bool {
    caller.agents().is_none_or(|agents| agents.contains(&agent))
}
