//! A tool's request and its answer, both as streams, over a connection of their own.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyStream;

use crate::{Egress, EgressError, Target, Wait};

/// Where a request may go without encryption. Who asks has decided that the scheme is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainHttp {
    /// To every address that https may go to.
    Anywhere,
    /// Only to the addresses that the operator allowed: what the request carries must cross no public network.
    OperatorsExceptions,
}

/// Why a request's body ends before its end. Then the connection is closed, and the server sees no whole request.
#[derive(Debug, thiserror::Error)]
#[error("the request's body was given up")]
pub struct GivenUp;

pub struct Exchange {
    pub method: Method,
    pub target: Target,
    pub headers: HeaderMap,
    /// `None`: a request without a body. Otherwise it is sent in chunks, unless `headers` tell its length.
    pub body: Option<BoxStream<'static, Result<Bytes, GivenUp>>>,
    pub plain_http: PlainHttp,
    /// Longest wait from now to the answer's head.
    pub first_byte: Duration,
    /// Longest wait for each further piece of the body.
    pub between_bytes: Duration,
    /// When whoever asks is gone. No wait is longer.
    pub deadline: Instant,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Ends after its first error. Dropping it closes the connection.
    pub body: BoxStream<'static, Result<Piece, EgressError>>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// What an answer's body is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Never empty.
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Egress {
    /// Sends a tool's request once: no redirect is followed, nothing is tried again, nothing is decompressed, and the
    /// connection is used for nothing else. The address is checked as in `send`. Dropping the future, or the answer's
    /// body, closes the connection.
    pub async fn exchange(&self, exchange: Exchange) -> Result<Answer, EgressError> {
        let Exchange { method, target, headers, body, plain_http, first_byte, between_bytes, deadline } = exchange;
        let (gate, client) = self.unshared(&target, plain_http);
        target.pass(&gate)?;
        let Target { url, host, .. } = target;
        let request = client.request(method, url).headers(headers);
        let request = match body {
            None => request,
            // An empty chunk would be the end of the body to a server, and costs memory on its way.
            Some(body) => request.body(reqwest::Body::wrap_stream(body.filter(|piece| {
                let empty = piece.as_ref().is_ok_and(Bytes::is_empty);
                async move { !empty }
            }))),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = match tokio::time::timeout(first_byte.min(left), request.send()).await {
            Ok(answer) => answer.map_err(|error| EgressError::sending(&host, error))?,
            Err(_) => return Err(EgressError::Timeout { host, waited_for: Wait::Head }),
        };
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let body = pieces(body, host, between_bytes, deadline);
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

/// The body, up to its first error or a wait that is too long.
fn pieces(
    body: reqwest::Body,
    host: String,
    between_bytes: Duration,
    deadline: Instant,
) -> BoxStream<'static, Result<Piece, EgressError>> {
    futures::stream::unfold(Some(BodyStream::new(body)), move |body| {
        let host = host.clone();
        async move {
            let mut body = body?;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let frame = match tokio::time::timeout(between_bytes.min(left), body.next()).await {
                    Ok(None) => return None,
                    Ok(Some(Ok(frame))) => frame,
                    Ok(Some(Err(error))) => return Some((Err(EgressError::sending(&host, error)), None)),
                    Err(_) => return Some((Err(EgressError::Timeout { host, waited_for: Wait::Body }), None)),
                };
                match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Some((Ok(Piece::Data(data)), Some(body))),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Some((Ok(Piece::Trailers(trailers)), Some(body)));
                        }
                    }
                }
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests;
