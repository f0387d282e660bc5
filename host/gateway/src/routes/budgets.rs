//! How much may be spent, and how much of it is left.

use axum::{extract::State, response::Response};
use billing_meter::{
    Budget, BudgetPatch, BudgetSpec,
    budgets::{self, EACH, Scope as Whose},
    prices,
};
use domain::BudgetId;
use serde::Deserialize;
use tenancy::{TenantTx, keys::Scope};
use utoipa::IntoParams;

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    idempotency::Once,
    json::Json,
    page::{Asked, List, Listing, PageParams},
    path::Named,
    problem::Refusal,
    routes::agents,
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct BudgetQuery {
    /// Of a budget with the subject `*`: whose spending is told. Who has the least left when absent.
    subject: Option<String>,
}

/// Makes a budget. It counts what is spent from now on, by runs and calls that begin now or later; a model or a tool is
/// not asked when what is left does not pay for it. For the scope `agent` the subject may be a name. Scope `budgets:write`.
#[utoipa::path(post, path = "/v1/budgets", request_body = BudgetSpec, responses((status = 201, body = Budget)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Json(spec): Json<BudgetSpec>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::BudgetsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let spec = with_agents_id(&mut tx, spec).await?;
    let currency = prices::current(&mut tx).await?.currency;
    let budget = budgets::create(&mut tx, spec, &currency, &*gateway.ids, gateway.clock.now()).await?;
    once.commit(tx, Made::created(format!("/v1/budgets/{}", budget.id), budget)).await
}

/// Budgets, newest first, with what is left of each in its present window. Scope `budgets:write`.
#[utoipa::path(get, path = "/v1/budgets", params(PageParams), responses((status = 200, body = List<Budget>)))]
pub(crate) async fn list(State(gateway): State<Gateway>, caller: Caller, listing: Listing) -> Answer<List<Budget>> {
    caller.require_unbound(Scope::BudgetsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let page = budgets::list(&mut tx, listing.page, gateway.clock.now()).await?;
    Ok(listing.answer(page))
}

/// A budget, with what is left of it in its present window. Scope `budgets:write`.
#[utoipa::path(get, path = "/v1/budgets/{id}", params(BudgetQuery), responses((status = 200, body = Budget)))]
pub(crate) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(id): Named<BudgetId>,
    Asked(asked): Asked<BudgetQuery>,
) -> Answer<Budget> {
    caller.require_unbound(Scope::BudgetsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let budget = budgets::get(&mut tx, id, asked.subject.as_deref(), gateway.clock.now()).await?;
    Ok(Json(budget))
}

/// Changes amount and thresholds, by a merge patch. What is spent stays spent. Scope `budgets:write`.
#[utoipa::path(patch, path = "/v1/budgets/{id}", request_body = BudgetPatch, responses((status = 200, body = Budget)))]
pub(crate) async fn change(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(id): Named<BudgetId>,
    Json(patch): Json<BudgetPatch>,
) -> Answer<Budget> {
    caller.require_unbound(Scope::BudgetsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let currency = prices::current(&mut tx).await?.currency;
    let budget = budgets::update(&mut tx, id, patch, &currency, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Json(budget))
}

/// Deletes a budget: it bounds nothing any more. Scope `budgets:write`.
#[utoipa::path(delete, path = "/v1/budgets/{id}", responses((status = 204)))]
pub(crate) async fn delete(caller: Caller, Named(id): Named<BudgetId>) -> Done {
    caller.require_unbound(Scope::BudgetsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    budgets::delete(&mut tx, id).await?;
    tx.commit().await?;
    DONE
}

/// A name may become another agent's; an id does not.
async fn with_agents_id(tx: &mut TenantTx, spec: BudgetSpec) -> Result<BudgetSpec, Refusal> {
    match spec.subject.as_deref() {
        Some(agent) if spec.scope == Whose::Agent && agent != EACH => {
            let id = agents::filtered(tx, Some(agent)).await?;
            Ok(BudgetSpec { subject: id.map(|id| id.to_string()), ..spec })
        }
        _ => Ok(spec),
    }
}
