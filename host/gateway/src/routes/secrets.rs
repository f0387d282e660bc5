//! The tenant's secrets for tools. A value goes in and never comes out.

use agent_config::secrets::{self, Secret, SecretSpec};
use axum::extract::State;
use domain::names::SecretName;
use tenancy::keys::Scope;

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    json::Json,
    page::{List, NameListing, PageParams},
    path::Named,
    problem::{Refusal, RequestError},
};

/// Stores a secret, or another value of it. Grants name it; calls that began before keep the old value. Scope
/// `secrets:write`.
#[utoipa::path(
    put, path = "/v1/secrets/{name}", request_body = SecretSpec,
    responses((status = 201, body = Secret), (status = 200, body = Secret, description = "It replaced one."))
)]
pub(crate) async fn put(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(name): Named<String>,
    Json(spec): Json<SecretSpec>,
) -> Result<Made<Secret>, Refusal> {
    caller.require_unbound(Scope::SecretsWrite)?;
    // A new secret may get this name: unlike elsewhere, one that no secret can have is worth its own words.
    let name = name.parse::<SecretName>().map_err(|error| RequestError::field("/name", error.to_string()))?;
    let mut tx = caller.tenant().begin().await?;
    let (secret, new) = secrets::put(&mut tx, &gateway.master_key, &name, spec, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Made::put(new, format!("/v1/secrets/{name}"), secret))
}

/// The names of all secrets, and where they may go. Scope `secrets:write`.
#[utoipa::path(get, path = "/v1/secrets", params(PageParams), responses((status = 200, body = List<Secret>)))]
pub(crate) async fn list(caller: Caller, listing: NameListing) -> Answer<List<Secret>> {
    caller.require_unbound(Scope::SecretsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let page = secrets::list(&mut tx, listing.page.clone()).await?;
    Ok(listing.answer(page))
}

/// Deletes a secret. Calls that need it are refused from now on. Scope `secrets:write`.
#[utoipa::path(delete, path = "/v1/secrets/{name}", responses((status = 204)))]
pub(crate) async fn delete(caller: Caller, Named(name): Named<SecretName>) -> Done {
    caller.require_unbound(Scope::SecretsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    secrets::delete(&mut tx, &name).await?;
    tx.commit().await?;
    DONE
}
