//! An upload: the component's bytes out of the request, and the wait for what they turn out to be.

use std::time::Duration;

use agent_config::{ToolError, ToolVersion, VersionStatus};
use axum::{
    body::Body,
    extract::{FromRequest, Multipart, Request},
};
use bytes::Bytes;
use domain::ToolName;
use tenancy::Tenant;
use utoipa::ToSchema;

use crate::{
    Gateway,
    json::media_type,
    limits::{self, UPLOAD_BYTES_MAX, UPLOAD_SECONDS},
    problem::{Refusal, RequestError},
};

/// How long an upload is waited for: longer than any inspection takes. Past it the answer is 202.
const WAIT: Duration = Duration::from_secs(120);
/// Room in a form for its boundaries and headers.
const FORM_BYTES_EXTRA: usize = 64 * 1024;

/// The bytes of a component, for the document.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "the shape, for the document")]
pub(crate) struct Component(Vec<u8>);

/// A component as a form. `manifest`, for components with typed exports, is not available yet.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the shape, for the document")]
pub(crate) struct UploadForm {
    component: Component,
}

/// The component in the body of a request, raw or as a part of a form.
pub(super) async fn component(request: Request, plan_bytes_max: i64) -> Result<Bytes, Refusal> {
    let bytes_max = usize::try_from(plan_bytes_max).unwrap_or(UPLOAD_BYTES_MAX).min(UPLOAD_BYTES_MAX);
    match media_type(request.headers()).as_str() {
        "application/wasm" => Ok(limits::body(request, bytes_max, UPLOAD_SECONDS).await?),
        "multipart/form-data" => {
            let headers = request.headers().clone();
            let body = limits::body(request, bytes_max + FORM_BYTES_EXTRA, UPLOAD_SECONDS).await?;
            let mut whole = Request::new(Body::from(body));
            *whole.headers_mut() = headers;
            match from_form(whole).await? {
                component if component.len() > bytes_max => Err(RequestError::TooLarge(bytes_max).into()),
                component => Ok(component),
            }
        }
        _ => Err(RequestError::MediaType("`application/wasm`, or as a form with a part `component`,").into()),
    }
}

async fn from_form(request: Request) -> Result<Bytes, RequestError> {
    let broken = |_| RequestError::field("", "the form cannot be read; check its boundary");
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| RequestError::BrokenBody)?;
    let mut component = None;
    while let Some(part) = form.next_field().await.map_err(broken)? {
        match part.name() {
            Some("component") if component.is_none() => component = Some(part.bytes().await.map_err(broken)?),
            Some("manifest") => return Err(RequestError::Unavailable("`manifest`, for typed components,")),
            other => {
                let pointer = format!("/{}", other.unwrap_or_default());
                return Err(RequestError::field(&pointer, "a form has one part, `component`"));
            }
        }
    }
    component.ok_or_else(|| RequestError::field("/component", "is missing; send the component in this part"))
}

/// What a version turns out to be. The inspection goes on whether the client waits or leaves.
pub(super) async fn admitted(
    gateway: &Gateway,
    tenant: &Tenant,
    tool: ToolName,
    version: ToolVersion,
    waits: bool,
) -> Result<ToolVersion, Refusal> {
    if version.status != VersionStatus::Compiling {
        return settled(version);
    }
    let (admission, tenant, hash) = (gateway.admission.clone(), tenant.clone(), version.version);
    let inspection = gateway.background.spawn(async move { admission.finish(&tenant, &tool, hash).await });
    if !waits {
        return Ok(version);
    }
    match tokio::time::timeout(WAIT, inspection).await {
        Err(_) => Ok(version),
        Ok(Err(panic)) => Err(RequestError::Panicked(panic.to_string()).into()),
        Ok(Ok(finished)) => settled(finished?),
    }
}

fn settled(version: ToolVersion) -> Result<ToolVersion, Refusal> {
    match version.rejection {
        Some(rejection) => Err(ToolError::Rejected(rejection).into()),
        None => Ok(version),
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    const FORM: &str = "multipart/form-data; boundary=x";

    fn part(name: &str, text: &str) -> String {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n{text}\r\n")
    }

    async fn read(kind: &str, body: String, max: i64) -> Result<Bytes, &'static str> {
        let request = Request::builder().header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap();
        component(request, max).await.map_err(|refusal| refusal.code())
    }

    #[tokio::test]
    async fn a_component_comes_raw_or_in_a_form() {
        let end = "--x--\r\n";
        for (kind, body, max, expected) in [
            ("application/wasm", "wasm".to_owned(), 4, Ok("wasm")),
            ("application/wasm", "wasm".to_owned(), 3, Err("request.too_large")),
            ("text/plain", "wasm".to_owned(), 4, Err("request.unsupported_media_type")),
            (FORM, part("component", "wasm") + end, 4, Ok("wasm")),
            (FORM, part("component", "wasm") + end, 3, Err("request.too_large")),
            (FORM, part("component", "a") + &part("manifest", "{}") + end, 4, Err("request.unavailable")),
            (FORM, part("component", "a") + &part("component", "b") + end, 4, Err("request.invalid")),
            (FORM, part("colour", "red") + end, 4, Err("request.invalid")),
            (FORM, end.to_owned(), 4, Err("request.invalid")),
            (FORM, "nonsense".to_owned(), 4, Err("request.invalid")),
            ("multipart/form-data", String::new(), 4, Err("request.broken_body")),
        ] {
            let bytes = read(kind, body.clone(), max).await;
            assert_eq!(bytes.as_deref(), expected.map(str::as_bytes).as_ref().map(|b| *b), "{kind} {body}");
        }
    }
}
