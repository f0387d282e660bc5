//! What can go wrong on the way out, in words for whoever chose the URL.

use std::{error::Error, io};

use domain::{Kind, Problem};

use crate::lookup::NotAllowed;

#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error("this URL cannot be used: {0}")]
    BadUrl(&'static str),
    #[error("`{host}` is not a public address; the operator can allow it with --allow-egress ADDRESS:PORT")]
    AddressRefused { host: String },
    #[error("could not reach `{host}`: {}; check the URL and whether the service is up", reason.as_str())]
    ConnectFailed {
        host: String,
        reason: Failure,
        #[source]
        source: reqwest::Error,
    },
    #[error("`{host}` did not answer in time ({}); try again, or check whether the service is up", waited_for.as_str())]
    Timeout { host: String, waited_for: Wait },
    #[error("`{host}` sent more than the {bytes_max} bytes that are read from it")]
    TooLarge { host: String, bytes_max: u64 },
    /// The HTTP client itself could not be made.
    #[error("outgoing connections could not be set up")]
    Setup(#[source] reqwest::Error),
}

/// Where an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Name,
    Refused,
    Tls,
    Unreachable,
    /// What came is no HTTP/1.1, or its head is larger than any that is read.
    NotHttp,
    Broken,
}

impl Failure {
    fn as_str(self) -> &'static str {
        match self {
            Failure::Name => "its name does not resolve",
            Failure::Refused => "it refused the connection",
            Failure::Tls => "it does not speak TLS, or its certificate is not trusted",
            Failure::Unreachable => "no connection could be made",
            Failure::NotHttp => "it did not answer in HTTP/1.1, or its head has more than 100 headers",
            Failure::Broken => "the connection broke",
        }
    }
}

/// What was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Connection,
    Head,
    Body,
}

impl Wait {
    fn as_str(self) -> &'static str {
        match self {
            Wait::Connection => "connecting",
            Wait::Head => "the beginning of its answer",
            Wait::Body => "more of its answer",
        }
    }
}

impl EgressError {
    /// What the HTTP client's error means. The URL is taken out of it: it may carry secrets in its query.
    pub(crate) fn sending(host: &str, error: reqwest::Error) -> EgressError {
        let host = host.to_owned();
        if source::<NotAllowed>(&error).is_some() {
            return EgressError::AddressRefused { host };
        }
        if error.is_timeout() {
            return EgressError::Timeout { host, waited_for: Wait::Connection };
        }
        let reason = match source::<io::Error>(&error).map(io::Error::kind) {
            _ if error.is_dns() => Failure::Name,
            Some(io::ErrorKind::ConnectionRefused) => Failure::Refused,
            Some(io::ErrorKind::InvalidData) => Failure::Tls,
            _ if error.is_connect() => Failure::Unreachable,
            _ if source::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) => Failure::NotHttp,
            _ => Failure::Broken,
        };
        EgressError::ConnectFailed { host, reason, source: error.without_url() }
    }
}

impl Problem for EgressError {
    fn kind(&self) -> Kind {
        match self {
            EgressError::BadUrl(_) | EgressError::AddressRefused { .. } => Kind::Invalid,
            EgressError::ConnectFailed { .. } | EgressError::Timeout { .. } | EgressError::TooLarge { .. } => {
                Kind::Upstream
            }
            EgressError::Setup(_) => Kind::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            EgressError::BadUrl(_) => "egress.bad_url",
            EgressError::AddressRefused { .. } => "egress.address_refused",
            EgressError::ConnectFailed { .. } => "egress.connect_failed",
            EgressError::Timeout { .. } => "egress.timeout",
            EgressError::TooLarge { .. } => "egress.too_large",
            EgressError::Setup(_) => "egress.setup_failed",
        }
    }
}

/// The deepest cause of one type.
fn source<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        found = error.downcast_ref::<E>().or(found);
        // An I/O error made of another error gives that one's source as its own, and so skips it.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|error| error as &(dyn Error + 'static)).or_else(|| error.source());
    }
    found
}
