//! Tools and their versions.

mod upload;

use agent_config::{Tool, ToolVersion, VersionRef, VersionStatus, artifacts, tools};
use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use domain::ToolName;
use http::header;
use serde::Deserialize;
use tenancy::{keys::Scope, tenants};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    idempotency::Once,
    json::Json,
    page::{Asked, List, Listing, PageParams},
    path::Named,
    problem::{Refusal, RequestError},
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// A name for people, such as `1.4.0`.
    label: Option<String>,
    /// `0`: 202 at once, the inspection goes on.
    #[param(inline)]
    #[serde(default)]
    wait: Wait,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
enum Wait {
    #[serde(rename = "0")]
    No,
    #[default]
    #[serde(rename = "1")]
    Yes,
}

/// Tools, newest first. Scope `tools:read`.
#[utoipa::path(get, path = "/v1/tools", params(PageParams), responses((status = 200, body = List<Tool>)))]
pub(crate) async fn list(caller: Caller, listing: Listing) -> Answer<List<Tool>> {
    caller.require(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let page = tools::list(&mut tx, listing.page).await?;
    Ok(listing.answer(page))
}

/// A tool with its newest ready version. Scope `tools:read`.
#[utoipa::path(get, path = "/v1/tools/{tool}", responses((status = 200, body = Tool)))]
pub(crate) async fn show(caller: Caller, Named(tool): Named<ToolName>) -> Answer<Tool> {
    caller.require(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let tool = tools::get(&mut tx, &tool).await?;
    Ok(Json(tool))
}

/// Deletes a tool that no agent uses, with all its versions. Scope `tools:write`.
#[utoipa::path(delete, path = "/v1/tools/{tool}", responses((status = 204)))]
pub(crate) async fn delete(caller: Caller, Named(tool): Named<ToolName>) -> Done {
    caller.require_unbound(Scope::ToolsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    tools::delete(&mut tx, &tool).await?;
    tx.commit().await?;
    DONE
}

/// Uploads a component, and answers when it is ready or rejected. Creates the tool if it is new; the same bytes again
/// are the same version. Scope `tools:write`.
#[utoipa::path(
    post, path = "/v1/tools/{tool}/versions", params(UploadQuery),
    request_body(description = "The component.", content(
        (upload::Component = "application/wasm"), (upload::UploadForm = "multipart/form-data"),
    )),
    responses(
        (status = 201, body = ToolVersion), (status = 200, body = ToolVersion, description = "The same bytes again."),
        (status = 202, body = ToolVersion, description = "It is still being inspected."),
    )
)]
pub(crate) async fn upload(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named(tool): Named<String>,
    Asked(asked): Asked<UploadQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    caller.require_unbound(Scope::ToolsWrite)?;
    // A new tool may get this name: unlike elsewhere, one that no tool can have is worth its own words.
    let tool = tool.parse::<ToolName>().map_err(|error| RequestError::field("/tool", error.to_string()))?;
    let mut tx = caller.tenant().begin().await?;
    let bytes_max = tenants::get(&mut tx).await?.plan.upload_bytes;
    drop(tx);
    let upload::Uploaded { component, manifest } = upload::uploaded(request, bytes_max).await?;
    once.asks(&[&component, serde_json::json!(manifest).to_string().as_bytes()]);
    let uploading = async {
        let accepted = gateway.admission.accept(caller.tenant(), &tool, component, asked.label, manifest).await?;
        let waits = asked.wait == Wait::Yes;
        let version = upload::admitted(&gateway, caller.tenant(), tool, accepted.version, waits).await?;
        let location = format!("/v1/tools/{}/versions/{}", version.tool, version.version);
        Ok(match version.status {
            VersionStatus::Compiling => Made::accepted(location, version),
            _ => Made::put(accepted.new, location, version),
        })
    };
    once.around(caller.tenant(), uploading).await
}

/// The versions of a tool, newest first. Scope `tools:read`.
#[utoipa::path(
    get, path = "/v1/tools/{tool}/versions", params(PageParams), responses((status = 200, body = List<ToolVersion>))
)]
pub(crate) async fn versions(
    caller: Caller,
    Named(tool): Named<ToolName>,
    listing: Listing,
) -> Answer<List<ToolVersion>> {
    caller.require(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let page = tools::versions(&mut tx, &tool, listing.page).await?;
    Ok(listing.answer(page))
}

/// One version. `{version}` is `sha256:...` or `latest`, the newest that is ready. Scope `tools:read`.
#[utoipa::path(get, path = "/v1/tools/{tool}/versions/{version}", responses((status = 200, body = ToolVersion)))]
pub(crate) async fn version(
    caller: Caller,
    Named((tool, version)): Named<(ToolName, VersionRef)>,
) -> Answer<ToolVersion> {
    caller.require(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let version = tools::version(&mut tx, &tool, version).await?;
    Ok(Json(version))
}

/// Deletes a version that no agent uses. Scope `tools:write`.
#[utoipa::path(delete, path = "/v1/tools/{tool}/versions/{version}", responses((status = 204)))]
pub(crate) async fn delete_version(caller: Caller, Named((tool, version)): Named<(ToolName, VersionRef)>) -> Done {
    caller.require_unbound(Scope::ToolsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    let hash = tools::version(&mut tx, &tool, version).await?.version;
    tools::delete_version(&mut tx, &tool, hash).await?;
    tx.commit().await?;
    DONE
}

/// The component's bytes. Scope `tools:read`.
#[utoipa::path(
    get, path = "/v1/tools/{tool}/versions/{version}/wasm",
    responses((status = 200, body = upload::Component, content_type = "application/wasm"))
)]
pub(crate) async fn wasm(
    caller: Caller,
    Named((tool, version)): Named<(ToolName, VersionRef)>,
) -> Result<Response, Refusal> {
    caller.require(Scope::ToolsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let bytes = artifacts::component(&mut tx, &tool, version).await?;
    let name = format!("attachment; filename=\"{tool}.wasm\"");
    let kind = "application/wasm".to_owned();
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)], bytes).into_response())
}
