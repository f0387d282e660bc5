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
use tool_api::Manifest;
use utoipa::ToSchema;

use crate::{
    Gateway,
    json::{self, media_type},
    limits::{self, UPLOAD_BYTES_MAX, UPLOAD_SECONDS},
    problem::{Refusal, RequestError},
};

/// How long an upload is waited for: longer than any inspection takes. Past it the answer is 202.
const WAIT: Duration = Duration::from_secs(120);
/// Room in a form for its boundaries and headers.
const FORM_BYTES_EXTRA: usize = 64 * 1024;
/// Bytes of a manifest: descriptions of 128 functions, and the grants that a tool asks for.
const MANIFEST_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of a component, for the document.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "the shape, for the document")]
pub(crate) struct Component(Vec<u8>);

/// A component as a form. `manifest` says what one with plain typed exports cannot say of itself.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the shape, for the document")]
pub(crate) struct UploadForm {
    component: Component,
    manifest: Option<Manifest>,
}

/// What an upload holds.
#[derive(Debug)]
pub(super) struct Uploaded {
    pub(super) component: Bytes,
    pub(super) manifest: Option<Manifest>,
}

/// The component in the body of a request, raw or as a part of a form.
pub(super) async fn uploaded(request: Request, plan_bytes_max: i64) -> Result<Uploaded, Refusal> {
    let bytes_max = usize::try_from(plan_bytes_max).unwrap_or(UPLOAD_BYTES_MAX).min(UPLOAD_BYTES_MAX);
    match media_type(request.headers()).as_str() {
        "application/wasm" => {
            let component = limits::body(request, bytes_max, UPLOAD_SECONDS).await?;
            Ok(Uploaded { component, manifest: None })
        }
        "multipart/form-data" => {
            let headers = request.headers().clone();
            let body = limits::body(request, bytes_max + MANIFEST_BYTES_MAX + FORM_BYTES_EXTRA, UPLOAD_SECONDS).await?;
            let mut whole = Request::new(Body::from(body));
            *whole.headers_mut() = headers;
            match from_form(whole).await? {
                form if form.component.len() > bytes_max => Err(RequestError::TooLarge(bytes_max).into()),
                form => Ok(form),
            }
        }
        _ => Err(RequestError::MediaType("`application/wasm`, or as a form with a part `component`,").into()),
    }
}

async fn from_form(request: Request) -> Result<Uploaded, RequestError> {
    let broken = |_| RequestError::field("", "the form cannot be read; check its boundary");
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| RequestError::BrokenBody)?;
    let (mut component, mut manifest) = (None, None);
    while let Some(part) = form.next_field().await.map_err(broken)? {
        match part.name() {
            Some("component") if component.is_none() => component = Some(part.bytes().await.map_err(broken)?),
            Some("manifest") if manifest.is_none() => {
                manifest = Some(read_manifest(&part.bytes().await.map_err(broken)?)?);
            }
            other => {
                let pointer = format!("/{}", other.unwrap_or_default());
                return Err(RequestError::field(
                    &pointer,
                    "a form has a part `component`, and may have one `manifest`",
                ));
            }
        }
    }
    let component =
        component.ok_or_else(|| RequestError::field("/component", "is missing; send the component in this part"))?;
    Ok(Uploaded { component, manifest })
}

fn read_manifest(bytes: &[u8]) -> Result<Manifest, RequestError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(RequestError::TooLarge(MANIFEST_BYTES_MAX));
    }
    json::part(bytes, "/manifest")
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
    use domain::Problem;
    use http::header;

    use super::*;

    const FORM: &str = "multipart/form-data; boundary=x";

    fn part(name: &str, text: &str) -> String {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n{text}\r\n")
    }

    async fn read(kind: &str, body: String, max: i64) -> Result<Uploaded, &'static str> {
        let request = Request::builder().header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap();
        uploaded(request, max).await.map_err(|refusal| refusal.code())
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
            (FORM, part("component", "a") + &part("manifest", "{}") + end, 4, Ok("a")),
            (FORM, part("component", "a") + &part("manifest", "{") + end, 4, Err("request.bad_json")),
            (FORM, part("component", "a") + &part("manifest", r#"{"colour": 1}"#) + end, 4, Err("request.invalid")),
            (FORM, part("manifest", "{}") + end, 4, Err("request.invalid")),
            (FORM, part("component", "a") + &part("component", "b") + end, 4, Err("request.invalid")),
            (FORM, part("colour", "red") + end, 4, Err("request.invalid")),
            (FORM, end.to_owned(), 4, Err("request.invalid")),
            (FORM, "nonsense".to_owned(), 4, Err("request.invalid")),
            ("multipart/form-data", String::new(), 4, Err("request.broken_body")),
        ] {
            let bytes = read(kind, body.clone(), max).await.map(|uploaded| uploaded.component);
            assert_eq!(bytes.as_deref(), expected.map(str::as_bytes).as_ref().map(|b| *b), "{kind} {body}");
        }
    }

    #[tokio::test]
    async fn a_manifest_says_what_the_component_cannot() {
        let manifest = r#"{"functions": {"slugify": {"description": "Makes slugs."}}, "requires": {}}"#;
        let form = part("manifest", manifest) + &part("component", "a") + "--x--\r\n";
        let manifest = read(FORM, form, 4).await.unwrap().manifest.unwrap();
        assert_eq!(manifest.functions["slugify"].description, "Makes slugs.");
        let long = format!(r#"{{"requires": "{}"}}"#, "x".repeat(MANIFEST_BYTES_MAX));
        assert_eq!(read_manifest(long.as_bytes()).unwrap_err().code(), "request.too_large");
        let wrong = read_manifest(br#"{"functions": {"f": {"describe": ""}}}"#).unwrap_err();
        assert_eq!(wrong.fields()[0].pointer, "/manifest/functions/f/describe");
    }
}
