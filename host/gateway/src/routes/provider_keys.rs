//! The tenant's own keys for model providers. A key goes in and never comes out.

use agent_config::provider_keys::{self, ProviderKey, ProviderKeySpec};
use axum::extract::State;
use domain::names::ProviderName;
use tenancy::keys::Scope;

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    json::Json,
    page::List,
    path::Named,
    problem::Refusal,
};

/// Stores a key under a name that models may name as their provider. Scope `secrets:write`.
#[utoipa::path(
    put, path = "/v1/provider-keys/{name}", request_body = ProviderKeySpec,
    responses((status = 201, body = ProviderKey), (status = 200, body = ProviderKey, description = "It replaced one."))
)]
pub(crate) async fn put(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(name): Named<ProviderName>,
    Json(spec): Json<ProviderKeySpec>,
) -> Result<Made<ProviderKey>, Refusal> {
    caller.require_unbound(Scope::SecretsWrite)?;
    if let Some(url) = &spec.base_url {
        (gateway.check_provider_url)(url).map_err(Refusal::boxed)?;
    }
    let mut tx = caller.tenant().begin().await?;
    let (key, new) = provider_keys::put(&mut tx, &gateway.master_key, &name, spec, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Made::put(new, format!("/v1/provider-keys/{name}"), key))
}

/// The names of all keys, and where they are used. Scope `secrets:write`.
#[utoipa::path(get, path = "/v1/provider-keys", responses((status = 200, body = List<ProviderKey>)))]
pub(crate) async fn list(caller: Caller) -> Answer<List<ProviderKey>> {
    caller.require_unbound(Scope::SecretsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let keys = provider_keys::list(&mut tx).await?.data;
    Ok(Json(List::whole(keys)))
}

/// Deletes a key. Scope `secrets:write`.
#[utoipa::path(delete, path = "/v1/provider-keys/{name}", responses((status = 204)))]
pub(crate) async fn delete(caller: Caller, Named(name): Named<ProviderName>) -> Done {
    caller.require_unbound(Scope::SecretsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    provider_keys::delete(&mut tx, &name).await?;
    tx.commit().await?;
    DONE
}
