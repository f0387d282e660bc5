//! A request over `wasi:http`, from its first byte to the response's last.

use crate::http::{Error, Request, Response};
use std::io::{self, Read};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    Scheme, http_error_code,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

/// Read at once: each read is a call of the host.
const READ_BYTES: u64 = 64 * 1024;

pub(crate) fn http(request: Request) -> Result<Response, Error> {
    let (outgoing, body) = outgoing(&request)?;
    let failed = |code| error(&request, &code);
    // The body is written after the request has begun: the host holds only so much of it.
    let response = outgoing_handler::handle(outgoing, None).map_err(failed)?;
    if let Some(body) = body {
        write(body, request.body_bytes());
    }
    let response = wait(&response).map_err(failed)?;
    let headers = response.headers().entries();
    let status = response.status();
    Ok(Response { status, headers, body: Body::of(response).map_err(failed)? })
}

fn outgoing(request: &Request) -> Result<(OutgoingRequest, Option<OutgoingBody>), Error> {
    let (scheme, authority, path) = request.parts()?;
    let fields = Fields::new();
    for (name, value) in request.headers() {
        let refused = |why| Error::Invalid(format!("the header `{name}`: {why:?}"));
        fields.append(name, value.as_bytes()).map_err(refused)?;
    }
    let has_body = !request.body_bytes().is_empty();
    if has_body && !fields.has("content-length") {
        let length = request.body_bytes().len().to_string();
        fields.append("content-length", length.as_bytes()).map_err(|why| Error::Invalid(format!("{why:?}")))?;
    }
    let outgoing = OutgoingRequest::new(fields);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let invalid = |what: &str| Error::Invalid(format!("{what} of {} {}", request.method(), request.url()));
    outgoing.set_method(&method(request.method())).map_err(|()| invalid("the method"))?;
    outgoing.set_scheme(Some(&scheme)).map_err(|()| invalid("the scheme"))?;
    outgoing.set_authority(Some(authority)).map_err(|()| invalid("the host"))?;
    outgoing.set_path_with_query(Some(&path)).map_err(|()| invalid("the path"))?;
    let body = if has_body { Some(outgoing.body().map_err(|()| invalid("the body"))?) } else { None };
    Ok((outgoing, body))
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        other => Method::Other(other.into()),
    }
}

/// Writes all of it, or as much as the server takes: a server may answer before, and its answer says more than this.
fn write(body: OutgoingBody, bytes: &[u8]) {
    let whole = body.write().is_ok_and(|stream| write_all(&stream, bytes).is_ok());
    if whole {
        // What is wrong with it comes with the response.
        let _ = OutgoingBody::finish(body, None);
    }
}

fn write_all(stream: &OutputStream, mut rest: &[u8]) -> Result<(), StreamError> {
    while !rest.is_empty() {
        let room = usize::try_from(stream.check_write()?).unwrap_or(usize::MAX);
        if room == 0 {
            stream.subscribe().block();
        }
        let (now, later) = rest.split_at(room.min(rest.len()));
        if !now.is_empty() {
            stream.write(now)?;
        }
        rest = later;
    }
    stream.blocking_flush()
}

fn wait(response: &FutureIncomingResponse) -> Result<IncomingResponse, ErrorCode> {
    response.subscribe().block();
    let gone = || ErrorCode::InternalError(Some("the host lost the response".into()));
    response.get().and_then(Result::ok).unwrap_or_else(|| Err(gone()))
}

fn error(request: &Request, code: &ErrorCode) -> Error {
    match code {
        ErrorCode::HttpRequestDenied => request.denied(),
        code => Error::Failed(words(code)),
    }
}

fn words(code: &ErrorCode) -> String {
    match code {
        ErrorCode::DestinationIpProhibited | ErrorCode::DestinationIpUnroutable => {
            "the host's address is not one that tools may reach".into()
        }
        ErrorCode::DnsTimeout | ErrorCode::DnsError(_) => "no address is known for the host".into(),
        ErrorCode::ConnectionRefused => "the host refuses connections".into(),
        ErrorCode::InternalError(Some(words)) => words.clone(),
        code => format!("{code:?}"),
    }
}

/// A body as it comes in. The order of the fields is the order in which they must be dropped.
#[derive(Debug)]
pub(crate) struct Body {
    stream: InputStream,
    _body: IncomingBody,
    _response: IncomingResponse,
    read: Vec<u8>,
    at: usize,
}

impl Body {
    fn of(response: IncomingResponse) -> Result<Body, ErrorCode> {
        let gone = |()| ErrorCode::InternalError(Some("the response has no body".into()));
        let body = response.consume().map_err(gone)?;
        let stream = body.stream().map_err(gone)?;
        Ok(Body { stream, _body: body, _response: response, read: Vec::new(), at: 0 })
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.read.len() {
            match self.stream.blocking_read(READ_BYTES) {
                Ok(read) => (self.read, self.at) = (read, 0),
                Err(StreamError::Closed) => return Ok(0),
                Err(StreamError::LastOperationFailed(error)) => {
                    let words = http_error_code(&error).map_or_else(|| error.to_debug_string(), |code| words(&code));
                    return Err(io::Error::other(words));
                }
            }
        }
        let count = into.len().min(self.read.len() - self.at);
        into[..count].copy_from_slice(&self.read[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
