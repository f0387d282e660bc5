//! From a tool's request to what is really sent, or why nothing is. Pure.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use domain::{
    ExposeSecret, SecretName,
    grants::http::{HttpDenial, HttpGrant, Scheme, find},
};
use egress::{EgressError, PlainHttp, TOOL_URL_BYTES_MAX, Target};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tool_api::OpenSecret;
use wasmtime_wasi_http::Error;

use super::exchange::head_bytes;

/// Headers that frame a message or belong to one connection. They are the host's: what a tool sets is left out.
const FRAMING: [&str; 12] = [
    "connection",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Headers that a tool cannot set where a secret is bound. A compressed answer, or one that the server cuts into parts,
/// would reflect the secret in a form that is not recognised.
const HIDING: [&str; 3] = ["accept-encoding", "if-range", "range"];

/// A request as the tool made it.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) scheme: Option<Scheme>,
    pub(super) authority: &'a str,
    pub(super) path_and_query: &'a str,
    pub(super) headers: &'a HeaderMap,
}

/// What a call may add to its requests.
pub(super) struct Own<'a> {
    pub(super) grants: &'a [HttpGrant],
    pub(super) secrets: &'a BTreeMap<SecretName, OpenSecret>,
    pub(super) idempotency_key: &'a str,
}

/// A request as it is sent.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    pub(super) plain_http: PlainHttp,
    /// The URL without what the host adds.
    pub(super) url: String,
    /// `http`, and the host as the grant writes it.
    pub(super) grant: String,
    /// It carries the call's idempotency key.
    pub(super) is_keyed: bool,
    /// What the host added.
    pub(super) secrets: Vec<SecretName>,
    /// Bytes of the head without what the host added, which is the same in a replay and tells no secret's length.
    pub(super) tools_bytes: usize,
}

impl Prepared {
    /// Bytes of the head as it is sent, about.
    pub(super) fn head_bytes(&self) -> usize {
        sent_bytes(&self.method, &self.target, &self.headers)
    }
}

fn sent_bytes(method: &Method, target: &Target, headers: &HeaderMap) -> usize {
    let line = method.as_str().len() + target.sent_bytes() + "  HTTP/1.1\r\n".len();
    let host = "host: \r\n".len() + target.host().len();
    line + host + head_bytes(headers) + "\r\n".len()
}

/// Why nothing is sent. `told` is what the receipt calls the request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("denied: {denial}")]
    Denied { denial: HttpDenial, told: String },
    #[error("the scheme is neither `https` nor `http`")]
    Scheme,
    #[error("{0}")]
    BadUrl(EgressError),
    #[error("the URL is longer than {TOOL_URL_BYTES_MAX} bytes")]
    TooLong,
    #[error("the secret `{0}` is not stored; store it, or take it out of the grant")]
    NoSecret(SecretName),
    #[error("the secret `{0}` has a line break or another byte that no header can carry; store it again without it")]
    BadSecret(SecretName),
    #[error("the call's idempotency key cannot be sent in a header")]
    BadIdempotencyKey,
    #[error("the call's secrets are too long to be kept out of answers; bind or grant fewer")]
    TooManySecrets,
}

impl Refusal {
    /// What the tool is told, in the words of `wasi:http`.
    pub(super) fn error(&self) -> Error {
        match self {
            Refusal::Denied { .. } => Error::HttpRequestDenied,
            Refusal::Scheme => Error::HttpProtocolError,
            Refusal::BadUrl(_) => Error::HttpRequestUriInvalid,
            Refusal::TooLong => Error::HttpRequestUriTooLong,
            Refusal::NoSecret(_) | Refusal::BadSecret(_) | Refusal::BadIdempotencyKey | Refusal::TooManySecrets => {
                Error::ConfigurationError
            }
        }
    }

    pub(super) fn told(&self) -> Option<&str> {
        match self {
            Refusal::Denied { told, .. } => Some(told),
            _ => None,
        }
    }
}

/// Matches a request against the grants, and adds what the first one that allows it says.
pub(super) fn prepare(asked: &Asked<'_>, own: &Own<'_>) -> Result<Prepared, Refusal> {
    let scheme = asked.scheme.ok_or(Refusal::Scheme)?;
    if asked.authority.len() + asked.path_and_query.len() > TOOL_URL_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    let mut target = Target::of_parts(scheme, asked.authority, asked.path_and_query).map_err(Refusal::BadUrl)?;
    let grant = find(own.grants, &target.with_method(asked.method.as_str()))
        .map_err(|denial| Refusal::Denied { denial, told: told(&asked.method, &target) })?;
    let url = target.as_str().to_owned();
    let mut headers = passing(asked.headers, grant);
    let tools_bytes = sent_bytes(&asked.method, &target, &headers);
    let secrets = bind(grant, own, &mut headers, &mut target)?;
    let plain_http = match grant.binds_a_secret() {
        true => PlainHttp::OperatorsExceptions,
        false => PlainHttp::Anywhere,
    };
    let is_keyed = grant.idempotency_header.is_some();
    let (method, grant) = (asked.method.clone(), format!("http {}", grant.host));
    Ok(Prepared { method, target, headers, plain_http, url, grant, is_keyed, secrets, tools_bytes })
}

/// What a receipt calls a request.
pub(super) fn told(method: &Method, target: &Target) -> String {
    format!("{method} {}", target.without_query())
}

/// The tool's headers, but for those that are the host's under this grant. A cookie passes: the host keeps none of its
/// own, and what a tool sends it has brought itself.
fn passing(headers: &HeaderMap, grant: &HttpGrant) -> HeaderMap {
    // Many servers take `_` and `-` in a header's name for the same.
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let mut hosts: Vec<String> = grant.headers.iter().map(|bound| plain(&bound.name)).collect();
    hosts.extend(grant.idempotency_header.iter().map(|name| plain(name)));
    hosts.extend(grant.basic.iter().map(|_| "authorization".to_owned()));
    let hiding: &[&str] = if grant.binds_a_secret() { &HIDING } else { &[] };
    let passes = |name: &HeaderName| {
        let name = plain(name.as_str());
        !FRAMING.contains(&name.as_str()) && !hiding.contains(&name.as_str()) && !hosts.contains(&name)
    };
    let mut passing = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| passes(name)) {
        passing.append(name.clone(), value.clone());
    }
    passing
}

/// Adds what the grant binds. The secrets that were added.
fn bind(
    grant: &HttpGrant,
    own: &Own<'_>,
    headers: &mut HeaderMap,
    target: &mut Target,
) -> Result<Vec<SecretName>, Refusal> {
    let value = |name: &SecretName| match own.secrets.get(name) {
        Some(secret) => Ok(secret.value.expose_secret()),
        None => Err(Refusal::NoSecret(name.clone())),
    };
    let mut secrets = Vec::new();
    for bound in &grant.headers {
        let text = bound.format.replacen("{}", value(&bound.secret)?, 1);
        let name: HeaderName = bound.name.parse().map_err(|_| Refusal::BadSecret(bound.secret.clone()))?;
        headers.insert(name, sensitive(&text).ok_or_else(|| Refusal::BadSecret(bound.secret.clone()))?);
        secrets.push(bound.secret.clone());
    }
    if let Some(basic) = &grant.basic {
        let password = value(&basic.secret)?;
        // RFC 7617: neither part has control characters. A line break is what a file left behind.
        if password.chars().any(char::is_control) {
            return Err(Refusal::BadSecret(basic.secret.clone()));
        }
        let text = format!("Basic {}", BASE64.encode(format!("{}:{password}", basic.user)));
        headers
            .insert(header::AUTHORIZATION, sensitive(&text).ok_or_else(|| Refusal::BadSecret(basic.secret.clone()))?);
        secrets.push(basic.secret.clone());
    }
    for bound in &grant.query {
        target.set_query_parameter(&bound.name, value(&bound.secret)?);
        secrets.push(bound.secret.clone());
    }
    if !secrets.is_empty() {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Some(name) = &grant.idempotency_header {
        let name: HeaderName = name.parse().map_err(|_| Refusal::BadIdempotencyKey)?;
        headers.insert(name, HeaderValue::from_str(own.idempotency_key).map_err(|_| Refusal::BadIdempotencyKey)?);
    }
    Ok(secrets)
}

/// Visible ASCII and blanks.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let fits = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let mut value = HeaderValue::from_str(text).ok().filter(|_| fits)?;
    // Keeps the value out of whatever prints headers.
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
