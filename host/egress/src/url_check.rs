//! What of a URL can be judged before any name is looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use crate::{EgressError, lookup::Gate};

/// Longest URL that is looked at. Real ones are far shorter.
const URL_BYTES_MAX: usize = 2048;

/// A URL that may be asked for, as far as its text tells.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) host: String,
    pub(crate) scheme: Scheme,
    pub(crate) port: u16,
    /// The addresses that the host is known to have without a lookup. The HTTP client connects to a literal address
    /// without asking its resolver.
    known: Vec<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Target, EgressError> {
        if text.len() > URL_BYTES_MAX {
            return Err(EgressError::BadUrl("it is longer than 2048 bytes"));
        }
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
