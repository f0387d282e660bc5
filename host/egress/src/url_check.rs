//! What of a URL can be judged before any name is looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::grants::http::{HttpTarget, Scheme};
use url::{Host, Url, form_urlencoded};

use crate::{EgressError, lookup::Gate};

/// Longest URL that a person writes into a setting. Real ones are far shorter.
const URL_BYTES_MAX: usize = 2048;
/// Longest URL that a tool asks for, in bytes. Servers commonly take no more.
pub const TOOL_URL_BYTES_MAX: usize = 8 << 10;

/// A URL that may be asked for, as far as its text tells. Parsed once: what is checked is what is sent.
#[derive(Debug, Clone)]
pub struct Target {
    pub(crate) url: Url,
    pub(crate) host: String,
    pub(crate) scheme: Scheme,
    pub(crate) port: u16,
    /// The addresses that the host is known to have without a lookup. The HTTP client connects to a literal address
    /// without asking its resolver.
    known: Vec<IpAddr>,
}

impl Target {
    /// A URL as a person writes it.
    pub fn parse(text: &str) -> Result<Target, EgressError> {
        if text.len() > URL_BYTES_MAX {
            return Err(EgressError::BadUrl("it is longer than 2048 bytes"));
        }
        Target::of_text(text)
    }

    /// The URL of a tool's request, from the parts that it names. What a URL parser would mend in silence (a user before
    /// the host, backslashes, blanks, control characters) is refused: it is written for two readers who differ.
    pub fn of_parts(scheme: Scheme, authority: &str, path_and_query: &str) -> Result<Target, EgressError> {
        if authority.len() + path_and_query.len() > TOOL_URL_BYTES_MAX {
            return Err(EgressError::BadUrl("it is longer than 8192 bytes"));
        }
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if authority.is_empty() || !plain(authority) || authority.contains(['@', '/', '?', '#']) {
            return Err(EgressError::BadUrl("its authority must be a host, or a host and a port"));
        }
        if !plain(path_and_query) || path_and_query.contains('#') {
            return Err(EgressError::BadUrl("its path and query must be visible ASCII without `\\` and `#`"));
        }
        if !(path_and_query.is_empty() || path_and_query.starts_with(['/', '?'])) {
            return Err(EgressError::BadUrl("its path must begin with `/`"));
        }
        Target::of_text(&format!("{}://{authority}{path_and_query}", scheme.as_str()))
    }

    fn of_text(text: &str) -> Result<Target, EgressError> {
        let url = Url::parse(text).map_err(|_| EgressError::BadUrl("it is not a URL such as https://host/path"))?;
        let (scheme, port) = match url.scheme() {
            "https" => (Scheme::Https, url.port().unwrap_or(443)),
            "http" => (Scheme::Http, url.port().unwrap_or(80)),
            _ => return Err(EgressError::BadUrl("it must begin with https://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EgressError::BadUrl("it must not carry a user name or password"));
        }
        if port == 0 {
            return Err(EgressError::BadUrl("port 0 cannot be connected to"));
        }
        // Numbers in every notation (decimal, octal, hexadecimal, shortened) have become addresses here.
        let known = match url.host() {
            None => return Err(EgressError::BadUrl("it has no host")),
            Some(Host::Ipv4(address)) => vec![IpAddr::V4(address)],
            Some(Host::Ipv6(address)) => vec![IpAddr::V6(address)],
            Some(Host::Domain(name)) => known_name(name),
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        Ok(Target { url, host, scheme, port, known })
    }

    /// What a grant is asked about.
    pub fn with_method<'t>(&'t self, method: &'t str) -> HttpTarget<'t> {
        HttpTarget { scheme: self.scheme, host: &self.host, port: self.port, method, path: self.url.path() }
    }

    /// Without the query: it may carry secrets.
    pub fn without_query(&self) -> &str {
        &self.url[..url::Position::AfterPath]
    }

    /// The whole URL as it is sent.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sets a query parameter in place of all that the URL has under this name. The others stay as they were written.
    pub fn set_query_parameter(&mut self, name: &str, value: &str) {
        let named = |part: &&str| form_urlencoded::parse(part.as_bytes()).any(|(found, _)| found == name);
        let mut query: Vec<String> = self.url.query().unwrap_or_default().split('&').map(str::to_owned).collect();
        query.retain(|part| !part.is_empty() && !named(&part.as_str()));
        query.push(form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish());
        self.url.set_query(Some(&query.join("&")));
    }

    /// Bytes of the path and the query, as they are sent.
    pub fn sent_bytes(&self) -> usize {
        self.url[url::Position::BeforePath..].len()
    }

    /// Refuses what needs no lookup to be refused.
    pub(crate) fn pass(&self, gate: &Gate) -> Result<(), EgressError> {
        if !self.known.is_empty() && !self.known.iter().any(|ip| gate.admits(*ip) || crate::is_public(*ip)) {
            return Err(EgressError::AddressRefused { host: self.host.clone() });
        }
        let admitted = match gate {
            Gate::Open | Gate::Public { .. } => true,
            Gate::Only { exceptions } if self.known.is_empty() => !exceptions.is_empty(),
            Gate::Only { .. } => self.known.iter().any(|ip| gate.admits(*ip)),
        };
        if !admitted {
            return Err(EgressError::BadUrl(
                "it must begin with https://; plain http is only for addresses that the operator allowed",
            ));
        }
        Ok(())
    }
}

/// The names that every resolver knows (RFC 6761). And should the HTTP client take a name for an address that the URL
/// parser did not, it is one here too.
fn known_name(name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    if name == "localhost" || name.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    name.parse().into_iter().collect()
}
