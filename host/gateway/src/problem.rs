//! From a `Problem` to `application/problem+json` (RFC 9457), once.

use std::{any::Any, error::Error, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use domain::{FieldError, Kind, Problem};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// Said with 429 and 503 when the problem names no time of its own, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a request was not answered. Every `Problem` becomes one with `?`; `told` gives it its body when the id of the
/// request is known.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    problem: Arc<dyn Problem>,
    status: StatusCode,
}

/// What is wrong with a request before any noun is asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("the body is not JSON: {0}")]
    BadJson(String, FieldError),
    #[error("the request cannot be used as it is; see `errors`")]
    Invalid(Vec<FieldError>),
    #[error("the body holds more than {0} values; send less at once")]
    TooManyValues(usize),
    #[error("a text holds the character NUL (\\u0000), which cannot be stored; remove it")]
    Nul,
    #[error("the body has more than {0} bytes, the most that is taken here; send less")]
    TooLarge(usize),
    #[error("send the body as {0} and say so in `Content-Type`")]
    MediaType(&'static str),
    #[error("the body did not arrive within {0} s; send it faster")]
    SlowBody(u64),
    #[error("the body ended early; send it again")]
    BrokenBody,
    #[error("this server holds all the requests that it can; try again in a second")]
    Overloaded,
    #[error("this tenant has {0} {1} at the same time, the most that one may have; wait until one ends")]
    TooMany(usize, &'static str),
    #[error("no such route; `GET /openapi.json` lists all, on the operator's address `GET /operator/openapi.json`")]
    NoRoute,
    #[error("this route does not know this method; `Allow` lists those it knows")]
    MethodNotAllowed,
    #[error("`cursor` is not one that this list gave; leave it out to begin with the first page")]
    BadCursor,
    #[error("a handler panicked: {0}")]
    Panicked(String),
    #[error("an answer cannot be written")]
    Unwritable(#[source] Box<dyn Error + Send + Sync>),
}

impl RequestError {
    pub(crate) fn field(pointer: &str, detail: impl Into<String>) -> Self {
        RequestError::Invalid(vec![FieldError::new(pointer, detail)])
    }
}

impl Problem for RequestError {
    fn kind(&self) -> Kind {
        match self {
            RequestError::BadJson(..) | RequestError::SlowBody(_) | RequestError::BrokenBody => Kind::Malformed,
            RequestError::Invalid(_) | RequestError::TooManyValues(_) | RequestError::Nul | RequestError::BadCursor => {
                Kind::Invalid
            }
            RequestError::TooLarge(_) => Kind::TooLarge,
            RequestError::MediaType(_) => Kind::UnsupportedMediaType,
            RequestError::Overloaded => Kind::Unavailable,
            RequestError::TooMany(..) => Kind::TooMany,
            RequestError::NoRoute | RequestError::MethodNotAllowed => Kind::NotFound,
            RequestError::Panicked(_) | RequestError::Unwritable(_) => Kind::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            RequestError::BadJson(..) => "request.bad_json",
            RequestError::Invalid(_) | RequestError::Nul => "request.invalid",
            RequestError::TooManyValues(_) => "request.too_complex",
            RequestError::TooLarge(_) => "request.too_large",
            RequestError::MediaType(_) => "request.unsupported_media_type",
            RequestError::SlowBody(_) => "request.slow_body",
            RequestError::BrokenBody => "request.broken_body",
            RequestError::Overloaded => "server.overloaded",
            RequestError::TooMany(..) => "request.too_many",
            RequestError::NoRoute => "route.not_found",
            RequestError::MethodNotAllowed => "route.method_not_allowed",
            RequestError::BadCursor => "page.bad_cursor",
            RequestError::Panicked(_) | RequestError::Unwritable(_) => "internal",
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            RequestError::BadJson(_, field) => vec![field.clone()],
            RequestError::Invalid(fields) => fields.clone(),
            _ => Vec::new(),
        }
    }
}

impl<P: Problem> From<P> for Refusal {
    fn from(problem: P) -> Self {
        let status = status_of(problem.kind());
        Self { problem: Arc::new(problem), status }
    }
}

impl IntoResponse for Refusal {
    /// Without a body: `told` writes it.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::PaymentRequired => StatusCode::PAYMENT_REQUIRED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
        Kind::Upstream => StatusCode::BAD_GATEWAY,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// `urn:belljar:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    /// What to do.
    detail: String,
    /// `noun.reason`; never changes.
    code: &'static str,
    request_id: String,
    /// Which fields of the request are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl Refusal {
    pub(crate) fn boxed(problem: Box<dyn Problem>) -> Self {
        let status = status_of(problem.kind());
        Self { problem: problem.into(), status }
    }

    /// A broken promise of our own says nothing but the request's id.
    fn body(&self, request_id: &str) -> ProblemBody {
        let internal = self.problem.kind() == Kind::Internal;
        let code = if internal { "internal" } else { self.problem.code() };
        ProblemBody {
            kind: format!("urn:belljar:problem:{code}"),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: match internal {
                true => "something broke on our side; try again, and tell the operator this `request_id`".into(),
                false => self.problem.to_string(),
            },
            code,
            request_id: request_id.into(),
            errors: if internal { Vec::new() } else { self.problem.fields() },
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.problem.code()
    }

    /// The error and what caused it, for the log.
    pub(crate) fn causes(&self) -> String {
        let mut text = format!("{}: {}", self.problem.code(), self.problem);
        let mut next = self.problem.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

/// Gives a refusal its body; any other answer passes as it is.
pub(crate) fn told(mut response: Response, request_id: &str) -> Response {
    let Some(refusal) = response.extensions_mut().remove::<Refusal>() else { return response };
    match refusal.problem.kind() {
        Kind::Internal => tracing::error!(error = refusal.causes(), "a request failed"),
        // Such as a database that does not answer. What has no cause is our own limit, and no news.
        Kind::Unavailable if refusal.problem.source().is_some() => {
            tracing::warn!(error = refusal.causes(), "a request could not be served");
        }
        _ => {}
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if parts.status == StatusCode::UNAUTHORIZED {
        parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"belljar\""));
    }
    let waiting = matches!(parts.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let retry_after = refusal.problem.retry_after_seconds().or(waiting.then_some(RETRY_AFTER_SECONDS));
    if let Some(seconds) = retry_after {
        parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    // Strings and numbers always become JSON.
    let body = serde_json::to_vec(&refusal.body(request_id)).unwrap_or_default();
    Response::from_parts(parts, Body::from(body))
}

pub(crate) async fn no_route() -> Refusal {
    RequestError::NoRoute.into()
}

/// axum adds `Allow`.
pub(crate) async fn method_not_allowed() -> Refusal {
    Refusal { status: StatusCode::METHOD_NOT_ALLOWED, ..RequestError::MethodNotAllowed.into() }
}

pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    Refusal::from(RequestError::Panicked(said.unwrap_or_else(|| "no message".into()))).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("select * from api_key")]
    struct Broken;

    impl Problem for Broken {
        fn kind(&self) -> Kind {
            Kind::Internal
        }

        fn code(&self) -> &'static str {
            "message.unreadable"
        }
    }

    async fn answer(refusal: Refusal) -> (http::HeaderMap, Value) {
        let (parts, body) = told(refusal.into_response(), "req_1").into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_broken_promise_says_only_its_id() {
        let (_, body) = answer(Broken.into()).await;
        assert_eq!(
            body,
            json!({
                "type": "urn:belljar:problem:internal",
                "title": "Internal Server Error",
                "status": 500,
                "detail": "something broke on our side; try again, and tell the operator this `request_id`",
                "code": "internal",
                "request_id": "req_1",
            })
        );
    }

    #[tokio::test]
    async fn a_problem_says_where_and_what_to_do() {
        let (headers, body) = answer(RequestError::field("/name", "is missing").into()).await;
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(body["status"], 422);
        assert_eq!(body["errors"], json!([{"pointer": "/name", "detail": "is missing"}]));
    }

    #[tokio::test]
    async fn who_must_wait_is_told_how_long() {
        let (headers, body) = answer(RequestError::Overloaded.into()).await;
        assert_eq!((headers[header::RETRY_AFTER].to_str().unwrap(), &body["status"]), ("1", &json!(503)));
    }

    #[tokio::test]
    async fn a_known_route_with_another_method_is_405() {
        let (_, body) = answer(method_not_allowed().await).await;
        assert_eq!((&body["status"], &body["code"]), (&json!(405), &json!("route.method_not_allowed")));
    }
}
