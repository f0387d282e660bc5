//! Browsers: pages of the origins that a tenant's settings name may read its answers.
//!
//! A key in a header is never sent by a browser on its own, so a preflight tells nothing and is always granted; what a
//! page may read is decided when the key has said whose answer it is.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use tenancy::{
    Tenant,
    tenants::{self, TenantError},
};

/// How long a browser remembers a preflight, in seconds: what is granted never changes.
const PREFLIGHT_SECONDS: u64 = 7200;
const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";
const REQUEST_HEADERS: &str = "authorization, x-api-key, content-type, accept, prefer, idempotency-key, x-provider-key, last-event-id, x-request-id, \
     traceparent";
const ANSWER_HEADERS: &str =
    "location, retry-after, x-request-id, x-next-cursor, ratelimit, ratelimit-policy, idempotent-replayed";

/// The origin of the page that asks, and whether the tenant allows it.
struct Origin {
    name: HeaderValue,
    allowed: AtomicBool,
}

/// Surrounds every request to the tenants' listener.
pub(crate) async fn around(mut request: Request, next: Next) -> Response {
    let Some(name) = request.headers().get(header::ORIGIN).cloned() else { return next.run(request).await };
    if request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return preflight(name);
    }
    let origin = Arc::new(Origin { name, allowed: AtomicBool::new(false) });
    request.extensions_mut().insert(origin.clone());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if origin.allowed.load(Ordering::Relaxed) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.name.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(ANSWER_HEADERS));
    }
    response
}

/// Decides for the tenant of a request's key. A request that is no page's costs nothing.
pub(crate) async fn decide(parts: &Parts, tenant: &Tenant) -> Result<(), TenantError> {
    let Some(origin) = parts.extensions.get::<Arc<Origin>>() else { return Ok(()) };
    let settings = tenants::get(&mut tenant.begin().await?).await?.settings;
    let allowed = settings.cors_origins.iter().any(|allowed| allowed.as_bytes() == origin.name.as_bytes());
    origin.allowed.store(allowed, Ordering::Relaxed);
    Ok(())
}

fn preflight(origin: HeaderValue) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_SECONDS));
    response
}
