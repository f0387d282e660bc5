//! What the operator does: tenants, their keys, plans, price books.

use agent_runtime::Queue;
use axum::{extract::State, response::Response};
use billing_meter::{
    PriceBook, UsageReport,
    prices::{self, Prices},
};
use domain::TenantId;
use serde::Deserialize;
use serde_json::Value;
use tenancy::{
    Tenant,
    keys::{self, NewKey},
    plans::{self, Plan},
    tenants::{self, NewTenant, TenantChange, TenantError, TenantInfo},
};
use utoipa::IntoParams;

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Operator,
    idempotency::Once,
    json::{self, Json},
    page::{Asked, List, Listing, PageParams},
    path::Named,
    problem::{Refusal, RequestError},
    routes::{keys::MintedKey, tenant::changed, usage::UsageQuery},
};

/// What the operator may change of a tenant, besides its settings and metadata.
const REPLACED: [&str; 4] = ["name", "plan", "overrides", "suspended"];

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OperatorUsageQuery {
    tenant: TenantId,
    /// RFC 3339, included. The begin of the month when absent.
    from: Option<String>,
    /// RFC 3339, not included. The end of this month when absent.
    to: Option<String>,
    /// Of `day`, `agent`, `kind`, `tool`, `model`, `external_user_id` and `api_key`, separated by commas.
    group_by: Option<String>,
}

/// Creates a tenant.
#[utoipa::path(post, path = "/operator/v1/tenants", request_body = NewTenant, responses((status = 201, body = TenantInfo)))]
pub(crate) async fn create_tenant(
    State(gateway): State<Gateway>,
    _: Operator,
    once: Once,
    Json(new): Json<NewTenant>,
) -> Result<Response, Refusal> {
    let (_, info, mut tx) = tenants::begin(&gateway.db, new, &*gateway.ids, gateway.clock.now()).await?;
    if let Some(first) = once.operator_answered(&mut tx).await? {
        return Ok(first);
    }
    once.operator_commit(tx, Made::created(format!("/operator/v1/tenants/{}", info.id), info)).await
}

/// Tenants, newest first.
#[utoipa::path(get, path = "/operator/v1/tenants", params(PageParams), responses((status = 200, body = List<TenantInfo>)))]
pub(crate) async fn tenants(State(gateway): State<Gateway>, _: Operator, listing: Listing) -> Answer<List<TenantInfo>> {
    let found = gateway.db.tenants(listing.page).await?;
    let page = domain::page::Page::cut(found, listing.page, |tenant: &Tenant| tenant.id().uuid());
    let mut data = Vec::with_capacity(page.data.len());
    for tenant in &page.data {
        data.push(tenants::get(&mut tenant.begin().await?).await?);
    }
    Ok(listing.answer(domain::page::Page { data, next: page.next }))
}

/// A tenant.
#[utoipa::path(get, path = "/operator/v1/tenants/{id}", responses((status = 200, body = TenantInfo)))]
pub(crate) async fn tenant(
    State(gateway): State<Gateway>,
    _: Operator,
    Named(id): Named<TenantId>,
) -> Answer<TenantInfo> {
    let mut tx = find(&gateway, id).await?.begin().await?;
    let info = tenants::get(&mut tx).await?;
    Ok(Json(info))
}

/// Changes a tenant: settings and metadata are merged (RFC 7396), `overrides` are replaced as a whole.
#[utoipa::path(
    patch, path = "/operator/v1/tenants/{id}", request_body = TenantChange, responses((status = 200, body = TenantInfo))
)]
pub(crate) async fn change_tenant(
    State(gateway): State<Gateway>,
    _: Operator,
    Named(id): Named<TenantId>,
    Json(patch): Json<Value>,
) -> Answer<TenantInfo> {
    let mut tx = find(&gateway, id).await?.begin().await?;
    let present = tenants::lock(&mut tx).await?;
    let info = tenants::update(&mut tx, changed(&present, patch, &REPLACED)?).await?;
    tx.commit().await?;
    Ok(Json(info))
}

/// Erases a tenant and everything that is its own.
#[utoipa::path(delete, path = "/operator/v1/tenants/{id}", responses((status = 204)))]
pub(crate) async fn delete_tenant(State(gateway): State<Gateway>, _: Operator, Named(id): Named<TenantId>) -> Done {
    let mut tx = find(&gateway, id).await?.begin().await?;
    tenants::delete(&mut tx).await?;
    tx.commit().await?;
    DONE
}

/// Makes a key of a tenant, with any scopes.
#[utoipa::path(
    post, path = "/operator/v1/tenants/{id}/api-keys", request_body = NewKey, responses((status = 201, body = MintedKey))
)]
pub(crate) async fn create_key(
    State(gateway): State<Gateway>,
    _: Operator,
    once: Once,
    Named(id): Named<TenantId>,
    Json(new): Json<NewKey>,
) -> Result<Response, Refusal> {
    let mut tx = find(&gateway, id).await?.begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let (kind, now) = (gateway.key_kind, gateway.clock.now());
    let (shown, key) = keys::mint(&mut tx, &gateway.hasher, kind, new, &*gateway.ids, now).await?;
    once.commit(tx, MintedKey::answer(shown, &key)).await
}

/// All plans.
#[utoipa::path(get, path = "/operator/v1/plans", responses((status = 200, body = List<Plan>)))]
pub(crate) async fn plans(State(gateway): State<Gateway>, _: Operator) -> Answer<List<Plan>> {
    let mut tx = gateway.db.global().await?;
    let plans = plans::list(&mut tx).await?;
    Ok(Json(List::whole(plans)))
}

/// A plan.
#[utoipa::path(get, path = "/operator/v1/plans/{name}", responses((status = 200, body = Plan)))]
pub(crate) async fn plan(State(gateway): State<Gateway>, _: Operator, Named(name): Named<String>) -> Answer<Plan> {
    let mut tx = gateway.db.global().await?;
    let plan = plans::get(&mut tx, &name).await?;
    Ok(Json(plan))
}

/// Writes a plan, whole. It holds at once for every tenant that has it.
#[utoipa::path(
    put, path = "/operator/v1/plans/{name}", request_body = Plan,
    responses((status = 201, body = Plan), (status = 200, body = Plan, description = "It replaced one."))
)]
pub(crate) async fn put_plan(
    State(gateway): State<Gateway>,
    _: Operator,
    Named(name): Named<String>,
    Json(body): Json<Value>,
) -> Result<Made<Plan>, Refusal> {
    let plan = named(&name, body)?;
    let mut tx = gateway.db.global().await?;
    let new = plans::put(&mut tx, &plan, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Made::put(new, format!("/operator/v1/plans/{name}"), plan))
}

/// All price books, newest first.
#[utoipa::path(get, path = "/operator/v1/price-books", params(PageParams), responses((status = 200, body = List<PriceBook>)))]
pub(crate) async fn price_books(
    State(gateway): State<Gateway>,
    _: Operator,
    listing: Listing,
) -> Answer<List<PriceBook>> {
    let mut tx = gateway.db.global().await?;
    let page = prices::list(&mut tx, listing.page).await?;
    Ok(listing.answer(page))
}

/// Publishes the next price book. It prices what is used from now on.
#[utoipa::path(
    post, path = "/operator/v1/price-books", request_body = Prices, responses((status = 201, body = PriceBook))
)]
pub(crate) async fn publish_prices(
    State(gateway): State<Gateway>,
    _: Operator,
    once: Once,
    Json(new): Json<Prices>,
) -> Result<Response, Refusal> {
    let mut tx = gateway.db.global().await?;
    if let Some(first) = once.operator_answered(&mut tx).await? {
        return Ok(first);
    }
    let book = prices::publish(&mut tx, new, gateway.clock.now()).await?;
    once.operator_commit(tx, Made::created(format!("/v1/price-books/{}", book.version), book)).await
}

/// The tenants of whom a run waits or is driven, the longest queue first.
#[utoipa::path(get, path = "/operator/v1/queues", responses((status = 200, body = List<Queue>)))]
pub(crate) async fn queues(State(gateway): State<Gateway>, _: Operator) -> Answer<List<Queue>> {
    Ok(Json(List::whole(gateway.runtime.queues().await?)))
}

/// What a tenant used, and what it costs.
#[utoipa::path(
    get, path = "/operator/v1/usage", params(OperatorUsageQuery), responses((status = 200, body = UsageReport))
)]
pub(crate) async fn usage(
    State(gateway): State<Gateway>,
    _: Operator,
    Asked(asked): Asked<OperatorUsageQuery>,
) -> Answer<UsageReport> {
    let mut tx = find(&gateway, asked.tenant).await?.begin().await?;
    let OperatorUsageQuery { tenant: _, from, to, group_by } = asked;
    let report = UsageQuery { from, to, group_by }.report(&mut tx, gateway.clock.now()).await?;
    Ok(Json(report))
}

async fn find(gateway: &Gateway, id: TenantId) -> Result<Tenant, Refusal> {
    Ok(gateway.db.operator(id).await?.ok_or(TenantError::NotFound)?)
}

/// A plan whose name is the one in the path.
fn named(name: &str, mut body: Value) -> Result<Plan, RequestError> {
    if let Value::Object(fields) = &mut body
        && fields.entry("name").or_insert_with(|| name.into()) != name
    {
        return Err(RequestError::field("/name", "is not the one in the path; leave it out"));
    }
    json::from_value(body)
}
