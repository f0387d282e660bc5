//! What tools stored: the tenant's key-value entries.

use agent_config::key_value::{self, Entry, Namespace, VALUE_BYTES_MAX};
use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::header;
use serde::Deserialize;
use tenancy::{keys::Scope, tenants};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    limits::{self, BODY_SECONDS},
    page::{List, NameListing, PageParams},
    path::{EntryPath, Named, NamespacePath, escaped},
    problem::Refusal,
};

const BYTES: &str = "application/octet-stream";

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EntryQuery {
    /// Keys that begin with this.
    #[serde(default)]
    prefix: String,
}

/// The bytes of a value, for the document.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "the shape, for the document")]
pub(crate) struct EntryValue(Vec<u8>);

/// Namespaces that hold entries, by name. Scope `tools:read`.
#[utoipa::path(get, path = "/v1/key-value", params(PageParams), responses((status = 200, body = List<Namespace>)))]
pub(crate) async fn namespaces(caller: Caller, listing: NameListing) -> Answer<List<Namespace>> {
    caller.require_unbound(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let page = key_value::namespaces(&mut tx, listing.page.clone()).await?;
    Ok(listing.answer(page))
}

/// The entries of a namespace without their values, by key. `{namespace}` is percent-encoded: `notes%2Fada`. Scope
/// `tools:read`.
#[utoipa::path(
    get, path = "/v1/key-value/{namespace}", params(PageParams, EntryQuery),
    responses((status = 200, body = List<Entry>))
)]
pub(crate) async fn list(
    caller: Caller,
    Named(NamespacePath(namespace)): Named<NamespacePath>,
    listing: NameListing<EntryQuery>,
) -> Answer<List<Entry>> {
    caller.require_unbound(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let page = key_value::list(&mut tx, &namespace, &listing.filter.prefix, listing.page.clone()).await?;
    Ok(listing.answer(page))
}

/// The value of a key, as it was stored. `{namespace}` and `{key}` are percent-encoded. Scope `tools:read`.
#[utoipa::path(
    get, path = "/v1/key-value/{namespace}/{key}",
    responses((status = 200, body = EntryValue, content_type = "application/octet-stream"))
)]
pub(crate) async fn get(
    caller: Caller,
    Named(EntryPath { namespace, key }): Named<EntryPath>,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let stored = key_value::get(&mut tx, &namespace, &key).await?;
    // Whatever the bytes are, a browser shows none of them as a page of ours.
    let kind = [(header::CONTENT_TYPE, BYTES), (header::CONTENT_DISPOSITION, "attachment")];
    Ok((kind, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], stored.value).into_response())
}

/// Stores a value: the bytes of the body, whatever their `Content-Type`. Scope `tools:write`.
#[utoipa::path(
    put, path = "/v1/key-value/{namespace}/{key}",
    request_body(content = EntryValue, content_type = "application/octet-stream"),
    responses((status = 201, body = Entry), (status = 200, body = Entry, description = "It replaced one."))
)]
pub(crate) async fn put(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(EntryPath { namespace, key }): Named<EntryPath>,
    request: Request,
) -> Result<Made<Entry>, Refusal> {
    caller.require_unbound(Scope::ToolsWrite)?;
    let value = limits::body(request, VALUE_BYTES_MAX, BODY_SECONDS).await?;
    let mut tx = caller.tenant().begin().await?;
    let storage_bytes_max = tenants::get(&mut tx).await?.plan.storage_bytes;
    let (entry, new) = key_value::put(&mut tx, storage_bytes_max, &namespace, &key, value, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Made::put(new, format!("/v1/key-value/{}/{}", escaped(&namespace), escaped(&key)), entry))
}

/// Deletes a key. Scope `tools:write`.
#[utoipa::path(delete, path = "/v1/key-value/{namespace}/{key}", responses((status = 204)))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(EntryPath { namespace, key }): Named<EntryPath>,
) -> Done {
    caller.require_unbound(Scope::ToolsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    key_value::delete(&mut tx, &namespace, &key, gateway.clock.now()).await?;
    tx.commit().await?;
    DONE
}
