//! API keys.

use axum::{extract::State, response::Response};
use domain::{ApiKeyId, ExposeSecret, SecretString};
use serde::Serialize;
use tenancy::keys::{self, ApiKey, NewKey, Scope};
use utoipa::ToSchema;

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

/// A new key, with its text.
#[derive(Serialize, ToSchema)]
pub(crate) struct MintedKey {
    #[serde(flatten)]
    shown: ApiKey,
    /// The key itself. It is told here and never again.
    key: String,
}

impl MintedKey {
    pub(crate) fn answer(shown: ApiKey, key: &SecretString) -> Made<MintedKey> {
        let location = format!("/v1/api-keys/{}", shown.id);
        Made::created(location, MintedKey { shown, key: key.expose_secret().to_owned() })
    }
}

/// Makes a key that may do no more than the one that asks. Scope `keys:write`.
#[utoipa::path(post, path = "/v1/api-keys", request_body = NewKey, responses((status = 201, body = MintedKey)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Json(new): Json<NewKey>,
) -> Result<Response, Refusal> {
    caller.require(Scope::KeysWrite)?;
    let new = caller.may_mint(new)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let (kind, now) = (gateway.key_kind, gateway.clock.now());
    let (shown, key) = keys::mint(&mut tx, &gateway.hasher, kind, new, &*gateway.ids, now).await?;
    once.commit(tx, MintedKey::answer(shown, &key)).await
}

/// All keys, revoked ones too, without their texts. Scope `keys:write`.
#[utoipa::path(get, path = "/v1/api-keys", params(PageParams), responses((status = 200, body = List<ApiKey>)))]
pub(crate) async fn list(caller: Caller, listing: Listing) -> Answer<List<ApiKey>> {
    caller.require_unbound(Scope::KeysWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let page = keys::list(&mut tx, listing.page).await?;
    Ok(listing.answer(page))
}

/// Revokes a key. Scope `keys:write`.
#[utoipa::path(delete, path = "/v1/api-keys/{id}", responses((status = 204)))]
pub(crate) async fn revoke(State(gateway): State<Gateway>, caller: Caller, Named(id): Named<ApiKeyId>) -> Done {
    caller.require_unbound(Scope::KeysWrite)?;
    let mut tx = caller.tenant().begin().await?;
    keys::revoke(&mut tx, id, gateway.clock.now()).await?;
    tx.commit().await?;
    DONE
}
