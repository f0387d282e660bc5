//! Webhooks, and what was sent to them.

use agent_config::webhooks::{
    self, Delivery, DeliveryDetail, DeliveryStatus, Webhook, WebhookChange, WebhookSpec, deliveries,
};
use axum::{extract::State, response::Response};
use domain::{ExposeSecret, NoticeId, SecretString, WebhookId};
use serde::{Deserialize, Serialize};
use tenancy::keys::Scope;
use utoipa::{IntoParams, ToSchema};

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    idempotency::Once,
    json::Json,
    page::{List, Listing, PageParams},
    path::Named,
    problem::Refusal,
};

/// A webhook with its secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct SignedWebhook {
    #[serde(flatten)]
    shown: Webhook,
    /// What signs the notices (Standard Webhooks). It is told here and never again.
    secret: String,
}

impl SignedWebhook {
    fn new(shown: Webhook, secret: &SecretString) -> SignedWebhook {
        SignedWebhook { shown, secret: secret.expose_secret().to_owned() }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryQuery {
    /// Deliveries in this state only.
    status: Option<DeliveryStatus>,
}

/// Makes a webhook. Notices are signed as Standard Webhooks says, and sent again for three days until they are answered
/// with 2xx. Scope `admin`.
#[utoipa::path(
    post, path = "/v1/webhooks", request_body = WebhookSpec, responses((status = 201, body = SignedWebhook))
)]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Json(spec): Json<WebhookSpec>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::Admin)?;
    (gateway.check_provider_url)(&spec.url).map_err(Refusal::boxed)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let (webhook, secret) =
        webhooks::create(&mut tx, &gateway.master_key, spec, &*gateway.ids, gateway.clock.now()).await?;
    let location = format!("/v1/webhooks/{}", webhook.id);
    once.commit(tx, Made::created(location, SignedWebhook::new(webhook, &secret))).await
}

/// All webhooks, newest first. Scope `admin`.
#[utoipa::path(get, path = "/v1/webhooks", params(PageParams), responses((status = 200, body = List<Webhook>)))]
pub(crate) async fn list(caller: Caller, listing: Listing) -> Answer<List<Webhook>> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    let page = webhooks::list(&mut tx, listing.page).await?;
    Ok(listing.answer(page))
}

/// One webhook. Scope `admin`.
#[utoipa::path(get, path = "/v1/webhooks/{id}", responses((status = 200, body = Webhook)))]
pub(crate) async fn show(caller: Caller, Named(id): Named<WebhookId>) -> Answer<Webhook> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    Ok(Json(webhooks::get(&mut tx, id).await?))
}

/// Changes a webhook, by a merge patch. One that was disabled for its failures is enabled with `"enabled": true`.
/// Scope `admin`.
#[utoipa::path(
    patch, path = "/v1/webhooks/{id}", request_body = WebhookChange, responses((status = 200, body = Webhook))
)]
pub(crate) async fn change(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(id): Named<WebhookId>,
    Json(change): Json<WebhookChange>,
) -> Answer<Webhook> {
    caller.require_unbound(Scope::Admin)?;
    if let Some(url) = &change.url {
        (gateway.check_provider_url)(url).map_err(Refusal::boxed)?;
    }
    let mut tx = caller.tenant().begin().await?;
    let webhook = webhooks::change(&mut tx, id, change, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Json(webhook))
}

/// Deletes a webhook with its deliveries. Scope `admin`.
#[utoipa::path(delete, path = "/v1/webhooks/{id}", responses((status = 204)))]
pub(crate) async fn delete(caller: Caller, Named(id): Named<WebhookId>) -> Done {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    webhooks::delete(&mut tx, id).await?;
    tx.commit().await?;
    DONE
}

/// Gives the webhook a new secret. For a day each notice is signed with both, the new one first; rotating twice ends that
/// at once. Scope `admin`.
#[utoipa::path(post, path = "/v1/webhooks/{id}/rotate-secret", responses((status = 200, body = SignedWebhook)))]
pub(crate) async fn rotate_secret(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named(id): Named<WebhookId>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let (webhook, secret) = webhooks::rotate(&mut tx, &gateway.master_key, id, gateway.clock.now()).await?;
    once.commit(tx, Made::told(SignedWebhook::new(webhook, &secret))).await
}

/// What was sent to a webhook, or will be, newest first, for thirty days. Scope `admin`.
#[utoipa::path(
    get, path = "/v1/webhooks/{id}/deliveries", params(PageParams, DeliveryQuery),
    responses((status = 200, body = List<Delivery>))
)]
pub(crate) async fn deliveries(
    caller: Caller,
    Named(id): Named<WebhookId>,
    listing: Listing<DeliveryQuery>,
) -> Answer<List<Delivery>> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    let page = deliveries::list(&mut tx, id, listing.filter.status, listing.page).await?;
    Ok(listing.answer(page))
}

/// One delivery, with the data of its notice. Scope `admin`.
#[utoipa::path(
    get, path = "/v1/webhooks/{id}/deliveries/{delivery}", responses((status = 200, body = DeliveryDetail))
)]
pub(crate) async fn delivery(
    caller: Caller,
    Named((webhook, id)): Named<(WebhookId, NoticeId)>,
) -> Answer<DeliveryDetail> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    Ok(Json(deliveries::get(&mut tx, webhook, id).await?))
}

/// Sends a delivery again, with the same `webhook-id`. Scope `admin`.
#[utoipa::path(
    post, path = "/v1/webhooks/{id}/deliveries/{delivery}/redeliver", responses((status = 200, body = Delivery))
)]
pub(crate) async fn redeliver(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named((webhook, id)): Named<(WebhookId, NoticeId)>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::Admin)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let delivery = deliveries::redeliver(&mut tx, webhook, id, gateway.clock.now()).await?;
    once.commit(tx, Made::told(delivery)).await
}
