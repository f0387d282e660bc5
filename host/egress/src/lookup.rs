//! From a name to addresses, and which of them may be connected to.
//!
//! The HTTP client connects to what this resolver answers and asks nobody else, so there is no moment between the
//! check and the use in which a name could change its answer.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::{FutureExt, future::BoxFuture};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::address::is_public;

/// Where names are looked up. Tests fake it.
pub trait Lookup: Send + Sync + 'static {
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The operating system's resolver.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let name = name.to_owned();
        async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) }.boxed()
    }
}

/// Which addresses one client may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Every address: the operator chose the URL.
    Open,
    /// Public addresses, and the operator's exceptions for the port in question.
    Public { exceptions: Vec<IpAddr> },
    /// Only the exceptions: plain HTTP crosses no public network.
    Only { exceptions: Vec<IpAddr> },
}

impl Gate {
    pub(crate) fn admits(&self, address: IpAddr) -> bool {
        match self {
            Gate::Open => true,
            Gate::Public { exceptions } => is_public(address) || exceptions.contains(&address.to_canonical()),
            Gate::Only { exceptions } => exceptions.contains(&address.to_canonical()),
        }
    }
}

/// A name has addresses, and none of them passes the gate.
#[derive(Debug, thiserror::Error)]
#[error("the name has no address that may be connected to")]
pub(crate) struct NotAllowed;

/// The HTTP client's resolver: looks up, and drops what the gate does not admit.
pub(crate) struct GatedResolver {
    pub(crate) lookup: Arc<dyn Lookup>,
    pub(crate) gate: Gate,
}

impl Resolve for GatedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.lookup.lookup(name.as_str());
        let gate = self.gate.clone();
        async move {
            let found = found.await?;
            let (admitted, dropped): (Vec<IpAddr>, Vec<IpAddr>) = found.into_iter().partition(|ip| gate.admits(*ip));
            if !dropped.is_empty() {
                // The operator needs the address to allow it; the tenant is not told, it is about our own network.
                tracing::info!(host = name.as_str(), addresses = ?dropped, "addresses were dropped: not public");
            }
            if admitted.is_empty() && !dropped.is_empty() {
                return Err(NotAllowed.into());
            }
            // Port 0 leaves the port to the URL.
            let addresses = admitted.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as Addrs)
        }
        .boxed()
    }
}
