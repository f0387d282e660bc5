//! The HTTP client behind the gate.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use domain::grants::http::Scheme;
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, Method, StatusCode};
use reqwest::{Certificate, Client, redirect};
use url::Url;

use crate::{
    EgressError, Lookup, SystemLookup, Target, Wait,
    exchange::PlainHttp,
    lookup::{Gate, GatedResolver},
};

/// Longest wait for a connection: the lookup, TCP and TLS together. Beyond it a person thinks that nothing happens.
const CONNECT_SECONDS_MAX: u64 = 10;
/// How long an unused connection is kept: as long as a person thinks between two turns of a chat.
const IDLE_SECONDS_MAX: u64 = 60;
/// Unused connections kept to one host. More than this at once are rare.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// Who chose a URL, and so whose network it may lead into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChosenBy {
    /// Only public addresses over https, and the operator's exceptions.
    Tenant,
    /// From the operator's own settings: every address, also over plain http.
    Operator,
}

#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub chosen_by: ChosenBy,
    /// Longest wait from now to the answer's head.
    pub first_byte: Duration,
    /// Longest wait for each further piece of the body.
    pub between_bytes: Duration,
    /// Most bytes of the answer's body that are handed out.
    pub body_bytes_max: u64,
}

pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Ends after its first error.
    pub body: BoxStream<'static, Result<Bytes, EgressError>>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Every connection that leaves the host goes through one of these. Cheap to clone.
#[derive(Clone)]
pub struct Egress {
    inner: Arc<Clients>,
}

struct Clients {
    operator: Client,
    /// For what a tenant's settings name: the same few hosts again and again.
    kept: Gated,
    /// For tools. A connection is used once: what a hostile server sent ahead on it, or a request that its server and
    /// this host would end in different places, can reach no other request, call or tenant.
    unshared: Gated,
    exceptions: BTreeMap<u16, Vec<IpAddr>>,
}

/// One client per gate: a connection in a client's pool has passed that client's gate, and no other. A resolver is not
/// told the port, so each port that occurs among the exceptions has clients of its own.
struct Gated {
    public: Client,
    /// Public addresses and the exceptions, by port.
    with_exceptions: BTreeMap<u16, Client>,
    /// The exceptions alone, by port.
    only_exceptions: BTreeMap<u16, Client>,
}

impl Gated {
    fn new(
        exceptions: &BTreeMap<u16, Vec<IpAddr>>,
        idle_max: usize,
        lookup: &Arc<dyn Lookup>,
    ) -> Result<Gated, EgressError> {
        let client = |gate| client(gate, idle_max, Arc::clone(lookup));
        let of_ports = |gate: fn(Vec<IpAddr>) -> Gate| -> Result<BTreeMap<u16, Client>, EgressError> {
            exceptions.iter().map(|(port, ips)| Ok((*port, client(gate(ips.clone()))?))).collect()
        };
        Ok(Gated {
            public: client(Gate::Public { exceptions: Vec::new() })?,
            with_exceptions: of_ports(|exceptions| Gate::Public { exceptions })?,
            only_exceptions: of_ports(|exceptions| Gate::Only { exceptions })?,
        })
    }

    /// The client whose resolver has this gate.
    fn client(&self, gate: &Gate, port: u16) -> &Client {
        let of_port = match gate {
            Gate::Only { .. } => self.only_exceptions.get(&port),
            Gate::Open | Gate::Public { .. } => self.with_exceptions.get(&port),
        };
        of_port.unwrap_or(&self.public)
    }
}

impl Egress {
    /// `allowed`: the addresses and ports that tenants' URLs may lead to though they are not public.
    pub fn new(allowed: Vec<SocketAddr>) -> Result<Egress, EgressError> {
        Egress::with_lookup(allowed, Arc::new(SystemLookup))
    }

    pub fn with_lookup(allowed: Vec<SocketAddr>, lookup: Arc<dyn Lookup>) -> Result<Egress, EgressError> {
        let mut exceptions = BTreeMap::<u16, Vec<IpAddr>>::new();
        for address in allowed {
            exceptions.entry(address.port()).or_default().push(address.ip().to_canonical());
        }
        let clients = Clients {
            operator: client(Gate::Open, IDLE_CONNECTIONS_MAX, Arc::clone(&lookup))?,
            kept: Gated::new(&exceptions, IDLE_CONNECTIONS_MAX, &lookup)?,
            unshared: Gated::new(&exceptions, 0, &lookup)?,
            exceptions,
        };
        Ok(Egress { inner: Arc::new(clients) })
    }

    /// Refuses a tenant's URL as early as its text allows, for the moment in which it is stored. A name is looked up,
    /// and its addresses checked, each time that a connection is made.
    pub fn check_url(&self, url: &str) -> Result<Url, EgressError> {
        let target = Target::parse(url)?;
        target.pass(&self.gate(&target, ChosenBy::Tenant))?;
        Ok(target.url)
    }

    /// Sends once: no redirect is followed, nothing is tried again, nothing is decompressed. Dropping the future or the
    /// body closes the connection.
    pub async fn send(&self, request: Request) -> Result<Response, EgressError> {
        let target = Target::parse(&request.url)?;
        let gate = self.gate(&target, request.chosen_by);
        target.pass(&gate)?;
        let client = match request.chosen_by {
            ChosenBy::Operator => &self.inner.operator,
            ChosenBy::Tenant => self.inner.kept.client(&gate, target.port),
        };
        let Target { url, host, .. } = target;
        let sending = client.request(request.method, url).headers(request.headers).body(request.body).send();
        let answer = match tokio::time::timeout(request.first_byte, sending).await {
            Ok(answer) => answer.map_err(|error| EgressError::sending(&host, error))?,
            Err(_) => return Err(EgressError::Timeout { host, waited_for: Wait::Head }),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        if answer.content_length().is_some_and(|bytes| bytes > request.body_bytes_max) {
            return Err(EgressError::TooLarge { host, bytes_max: request.body_bytes_max });
        }
        let body = capped(answer.bytes_stream().boxed(), host, request.body_bytes_max, request.between_bytes);
        Ok(Response { status, headers, body })
    }

    fn gate(&self, target: &Target, chosen_by: ChosenBy) -> Gate {
        match (chosen_by, target.scheme) {
            (ChosenBy::Operator, _) => Gate::Open,
            (ChosenBy::Tenant, Scheme::Https) => Gate::Public { exceptions: self.exceptions(target.port) },
            (ChosenBy::Tenant, Scheme::Http) => Gate::Only { exceptions: self.exceptions(target.port) },
        }
    }

    /// The gate of a tool's request, and the client behind it.
    pub(crate) fn unshared(&self, target: &Target, plain_http: PlainHttp) -> (Gate, &Client) {
        let exceptions = self.exceptions(target.port);
        let gate = match (target.scheme, plain_http) {
            (Scheme::Https, _) | (Scheme::Http, PlainHttp::Anywhere) => Gate::Public { exceptions },
            (Scheme::Http, PlainHttp::OperatorsExceptions) => Gate::Only { exceptions },
        };
        let client = self.inner.unshared.client(&gate, target.port);
        (gate, client)
    }

    fn exceptions(&self, port: u16) -> Vec<IpAddr> {
        self.inner.exceptions.get(&port).cloned().unwrap_or_default()
    }
}

fn client(gate: Gate, idle_max: usize, lookup: Arc<dyn Lookup>) -> Result<Client, EgressError> {
    let resolver = Arc::new(GatedResolver { lookup, gate });
    #[expect(clippy::disallowed_methods, reason = "this is the way out")]
    let builder = || {
        Client::builder()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .http1_only()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
            .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS_MAX))
            .pool_max_idle_per_host(idle_max)
            .dns_resolver(Arc::clone(&resolver))
    };
    builder().build().or_else(|error| {
        // A machine without root certificates still serves: its https requests fail one by one, saying why.
        tracing::warn!(%error, "no root certificates: outgoing https will fail; install `ca-certificates`");
        builder().tls_certs_only(std::iter::empty::<Certificate>()).build().map_err(EgressError::Setup)
    })
}

/// The body, up to its first error, its cap, or a wait that is too long.
fn capped(
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    host: String,
    bytes_max: u64,
    between_bytes: Duration,
) -> BoxStream<'static, Result<Bytes, EgressError>> {
    futures::stream::unfold((Some(body), 0), move |(body, bytes)| {
        let host = host.clone();
        async move {
            let mut body = body?;
            let piece = match tokio::time::timeout(between_bytes, body.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(piece))) => Ok(piece),
                Ok(Some(Err(error))) => Err(EgressError::sending(&host, error)),
                Err(_) => Err(EgressError::Timeout { host: host.clone(), waited_for: Wait::Body }),
            };
            match piece {
                Ok(piece) if bytes + piece.len() as u64 <= bytes_max => {
                    let bytes = bytes + piece.len() as u64;
                    Some((Ok(piece), (Some(body), bytes)))
                }
                Ok(_) => Some((Err(EgressError::TooLarge { host, bytes_max }), (None, bytes))),
                Err(error) => Some((Err(error), (None, bytes))),
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests;
