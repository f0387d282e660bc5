//! Hosts a tool may send requests to, and the match of a request against them. Pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::names::SecretName;

/// Methods, paths and bound secrets of one grant: each is looked at on every request.
const ENTRIES_MAX: usize = 32;
/// Longest path prefix and longest format of a bound secret, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Headers that no grant may bind: they frame the message or name its target.
const FRAMING_HEADERS: [&str; 12] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "expect",
    "accept-encoding",
];

/// A host that a tool may send requests to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpGrant {
    /// `name`, `name:port`, or `*.name` for every name below it. Without a port: the scheme's own.
    #[schema(value_type = String)]
    pub host: HostPattern,
    #[serde(default = "reading_methods")]
    pub methods: Vec<String>,
    /// A request's path is one of these, or lies below one.
    #[serde(default = "every_path")]
    pub paths: Vec<String>,
    /// Headers that the host adds. The tool never holds their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<BoundHeader>,
    /// Query parameters that the host adds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<BoundQuery>,
    /// Basic authentication (RFC 7617) that the host adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BoundBasic>,
    /// A header that carries the call's idempotency key, on every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_header: Option<String>,
    /// Also over `http`, without encryption.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BoundHeader {
    pub name: String,
    pub secret: SecretName,
    /// `{}` is where the secret goes: `Bearer {}`.
    #[serde(default = "bare")]
    pub format: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BoundQuery {
    pub name: String,
    pub secret: SecretName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BoundBasic {
    pub user: String,
    pub secret: SecretName,
}

fn reading_methods() -> Vec<String> {
    vec!["GET".into(), "HEAD".into()]
}

fn every_path() -> Vec<String> {
    vec!["/".into()]
}

fn bare() -> String {
    "{}".into()
}

/// A host of a grant: one name or address, or all names below one; and a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HostPattern {
    /// `*.`
    below: bool,
    /// Lower case; an IPv6 address in brackets.
    name: String,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host: use `name`, `name:port` or `*.name`, without a scheme or a path")]
pub struct BadHost(String);

impl HostPattern {
    fn matches(&self, host: &str, port: u16, default_port: u16) -> bool {
        if port != self.port.unwrap_or(default_port) {
            return false;
        }
        match self.below {
            false => host == self.name,
            // At least one label before the name, and its dot.
            true => host
                .strip_suffix(&self.name)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty()),
        }
    }

    /// Whether this pattern lets nothing through that `other` does not.
    pub fn is_within(&self, other: &HostPattern) -> bool {
        let same_port = other.port.is_none() || other.port == self.port;
        let within = match (self.below, other.below) {
            (_, true) => self.name.ends_with(&format!(".{}", other.name)) || (self.below && self.name == other.name),
            (false, false) => self.name == other.name,
            (true, false) => false,
        };
        same_port && within
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = if self.below { "*." } else { "" };
        match self.port {
            Some(port) => write!(f, "{below}{}:{port}", self.name),
            None => write!(f, "{below}{}", self.name),
        }
    }
}

impl FromStr for HostPattern {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let bad = || BadHost(text.chars().take(80).collect());
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (name, port) = match rest.rsplit_once(':') {
            // A colon inside of brackets belongs to the address.
            Some((name, port)) if !port.contains(']') => (name, Some(port)),
            _ => (rest, None),
        };
        let port = match port {
            None => None,
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => match port.parse() {
                Ok(0) | Err(_) => return Err(bad()),
                Ok(port) => Some(port),
            },
            Some(_) => return Err(bad()),
        };
        let name = name.to_ascii_lowercase();
        let is_address = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .is_some_and(|name| name.parse::<std::net::Ipv6Addr>().is_ok())
            || name.parse::<std::net::Ipv4Addr>().is_ok();
        let labels = name.split('.').count();
        // Every name of a top-level domain is more than anybody means.
        let fits = if is_address { !below } else { is_name(&name) && (!below || labels >= 2) };
        if fits { Ok(Self { below, name, port }) } else { Err(bad()) }
    }
}

/// A DNS name (RFC 1123) whose last label is no number, so that no parser takes it for an address.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253
        && name.split('.').all(label)
        && name.rsplit('.').next().is_some_and(|last| !last.starts_with(|c: char| c.is_ascii_digit()))
}

impl TryFrom<String> for HostPattern {
    type Error = BadHost;

    fn try_from(text: String) -> Result<Self, BadHost> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(host: HostPattern) -> String {
        host.to_string()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Https => "https",
            Scheme::Http => "http",
        }
    }

    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Https => 443,
            Scheme::Http => 80,
        }
    }
}

/// A request as it will be sent: the host in lower case, the path normalised by the URL standard and without its query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpTarget<'t> {
    pub scheme: Scheme,
    pub host: &'t str,
    pub port: u16,
    pub method: &'t str,
    pub path: &'t str,
}

/// What keeps a request from being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpDenial {
    #[error("no grant for this host and port; add it to `http`")]
    Host,
    #[error("the host is granted over https only; set `plain_http` to send without encryption")]
    PlainHttp,
    #[error("the host is granted, this method is not; add it to the grant's `methods`")]
    Method,
    #[error("the host is granted, this path is not; add it to the grant's `paths`")]
    Path,
}

/// The first grant that lets a request through; else what the closest one lacks.
pub fn find<'g>(grants: &'g [HttpGrant], target: &HttpTarget<'_>) -> Result<&'g HttpGrant, HttpDenial> {
    let mut closest = HttpDenial::Host;
    for grant in grants {
        match grant.allows(target) {
            Ok(()) => return Ok(grant),
            Err(denial) => {
                if closeness(denial) > closeness(closest) {
                    closest = denial;
                }
            }
        }
    }
    Err(closest)
}

fn closeness(denial: HttpDenial) -> u8 {
    match denial {
        HttpDenial::Host => 0,
        HttpDenial::PlainHttp => 1,
        HttpDenial::Method => 2,
        HttpDenial::Path => 3,
    }
}

impl HttpGrant {
    /// A grant for one host, read only, with nothing bound.
    pub fn reading(host: HostPattern) -> Self {
        HttpGrant {
            host,
            methods: reading_methods(),
            paths: every_path(),
            headers: Vec::new(),
            query: Vec::new(),
            basic: None,
            idempotency_header: None,
            plain_http: false,
        }
    }

    fn allows(&self, target: &HttpTarget<'_>) -> Result<(), HttpDenial> {
        if !self.host.matches(target.host, target.port, target.scheme.default_port()) {
            return Err(HttpDenial::Host);
        }
        if target.scheme == Scheme::Http && !self.plain_http {
            return Err(HttpDenial::PlainHttp);
        }
        if !self.methods.iter().any(|method| method == target.method) {
            return Err(HttpDenial::Method);
        }
        if !self.paths.iter().any(|prefix| is_below(target.path, prefix)) {
            return Err(HttpDenial::Path);
        }
        Ok(())
    }

    pub fn secret_names(&self) -> impl Iterator<Item = &SecretName> {
        let headers = self.headers.iter().map(|bound| &bound.secret);
        let query = self.query.iter().map(|bound| &bound.secret);
        headers.chain(query).chain(self.basic.iter().map(|bound| &bound.secret))
    }

    pub fn binds_a_secret(&self) -> bool {
        self.secret_names().next().is_some()
    }

    /// The field at fault, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let lists = [
            ("methods", self.methods.len()),
            ("paths", self.paths.len()),
            ("headers", self.headers.len()),
            ("query", self.query.len()),
        ];
        for (field, count) in lists {
            if count > ENTRIES_MAX {
                return Err((field, format!("{count} entries, more than {ENTRIES_MAX}")));
            }
        }
        if let Some(bad) = self.methods.iter().find(|method| !is_method(method)) {
            return Err(("methods", format!("`{}` is not a method in capital letters", short(bad))));
        }
        if let Some(bad) = self.paths.iter().find(|path| !is_prefix(path)) {
            return Err((
                "paths",
                format!("`{}` is not a path: begin with `/`, without `?`, `#`, `%` or dots", short(bad)),
            ));
        }
        for bound in &self.headers {
            check_header(&bound.name).map_err(|why| ("headers", why))?;
            if bound.format.matches("{}").count() != 1
                || bound.format.len() > TEXT_BYTES_MAX
                || !bound.format.bytes().all(|b| (0x20..0x7f).contains(&b))
            {
                return Err(("headers", "`format` holds `{}` once, in visible ASCII".into()));
            }
        }
        if let Some(name) = &self.idempotency_header {
            check_header(name).map_err(|why| ("idempotency_header", why))?;
        }
        if self.query.iter().any(|bound| bound.name.is_empty() || bound.name.len() > TEXT_BYTES_MAX) {
            return Err(("query", format!("a name has 1 to {TEXT_BYTES_MAX} bytes")));
        }
        if let Some(basic) = &self.basic {
            if basic.user.len() > TEXT_BYTES_MAX || basic.user.contains([':', '\r', '\n', '\0']) {
                return Err(("basic", "a user has no colon and no line break".into()));
            }
            if self.headers.iter().any(|bound| bound.name.eq_ignore_ascii_case("authorization")) {
                return Err(("basic", "`authorization` is bound in `headers` already; choose one".into()));
            }
        }
        Ok(())
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

fn is_method(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') && text != "CONNECT"
}

fn is_prefix(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= TEXT_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'\\'))
        && text.split('/').all(|segment| !matches!(segment, "." | ".."))
}

fn check_header(name: &str) -> Result<(), String> {
    let is_token =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !is_token || FRAMING_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!("`{}` is not a header that can be added", short(name)));
    }
    Ok(())
}

/// Whether a path is `prefix` or lies below it. A path that a server might read in another way than its text says
/// (encoded slashes, backslashes or dots) lies below `/` alone.
fn is_below(path: &str, prefix: &str) -> bool {
    if prefix == "/" {
        return path.starts_with('/');
    }
    let lower = path.to_ascii_lowercase();
    if ["%2f", "%5c", "%2e", "%00", "\\"].iter().any(|encoded| lower.contains(encoded))
        || path.split('/').any(|segment| matches!(segment, "." | ".."))
        || path.contains("//")
        || path.contains(';')
    {
        return false;
    }
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests;
