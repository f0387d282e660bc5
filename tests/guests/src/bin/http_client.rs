//! Sends the requests it is told to send, and tells all that came back.

use belljar_tool::{tool, toolbox};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme, http_error_code,
};
use wasip2::io::streams::StreamError;

/// A request, as `wasi:http` takes it.
#[derive(Deserialize, JsonSchema)]
struct Ask {
    /// `https` when absent.
    scheme: Option<String>,
    authority: Option<String>,
    path: Option<String>,
    method: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Option<String>,
    first_byte_ms: Option<u64>,
    between_bytes_ms: Option<u64>,
}

/// What came back. `error` is in the interface's own words.
#[derive(Serialize, JsonSchema, Default)]
struct Report {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: String,
    trailers: Vec<(String, String)>,
    error: Option<String>,
}

/// Sends each request in turn.
#[tool]
fn send(asks: Vec<Ask>) -> Vec<Report> {
    asks.iter().map(exchange).collect()
}

/// Sends a request, and another one to wherever each redirect leads.
#[tool]
fn follow(ask: Ask) -> Vec<Report> {
    let mut reports = vec![exchange(&ask)];
    while let Some(location) = location(reports.last().expect("one at least")) {
        let Some((scheme, rest)) = location.split_once("://") else { break };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        reports.push(exchange(&Ask {
            scheme: Some(scheme.into()),
            authority: Some(authority.into()),
            path: Some(path.into()),
            method: None,
            headers: ask.headers.clone(),
            body: None,
            first_byte_ms: None,
            between_bytes_ms: None,
        }));
    }
    reports
}

/// Which headers may be set at all: those that were refused.
#[tool]
fn refused_headers(headers: Vec<(String, String)>) -> Vec<String> {
    let refused = |(name, value): &(String, String)| Fields::new().append(name, value.as_bytes()).is_err();
    headers.iter().filter(|header| refused(header)).map(|(name, value)| format!("{name}: {value}")).collect()
}

fn location(report: &Report) -> Option<String> {
    report.status.filter(|status| (300..400).contains(status))?;
    report.headers.iter().find(|(name, _)| name == "location").map(|(_, value)| value.clone())
}

fn exchange(ask: &Ask) -> Report {
    let mut report = Report::default();
    report.error = answer(ask, &mut report).err();
    report
}

fn answer(ask: &Ask, report: &mut Report) -> Result<(), String> {
    let fields = Fields::new();
    for (name, value) in &ask.headers {
        fields.append(name, value.as_bytes()).map_err(|error| format!("header {name}: {error:?}"))?;
    }
    let request = OutgoingRequest::new(fields);
    let method = match ask.method.as_deref() {
        None | Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        Some(other) => Method::Other(other.into()),
    };
    let scheme = match ask.scheme.as_deref() {
        None => None,
        Some("https") => Some(Scheme::Https),
        Some("http") => Some(Scheme::Http),
        Some(other) => Some(Scheme::Other(other.into())),
    };
    request.set_method(&method).map_err(|()| "method refused")?;
    request.set_scheme(scheme.as_ref()).map_err(|()| "scheme refused")?;
    request.set_authority(ask.authority.as_deref()).map_err(|()| "authority refused")?;
    request.set_path_with_query(ask.path.as_deref()).map_err(|()| "path refused")?;
    let body = ask.body.as_ref().map(|_| request.body().expect("a body"));
    let options = RequestOptions::new();
    options.set_first_byte_timeout(ask.first_byte_ms.map(|ms| ms * 1_000_000)).expect("a time");
    options.set_between_bytes_timeout(ask.between_bytes_ms.map(|ms| ms * 1_000_000)).expect("a time");
    let response = outgoing_handler::handle(request, Some(options)).map_err(|code| format!("at once {code:?}"))?;
    if let (Some(body), Some(text)) = (body, &ask.body) {
        let stream = body.write().expect("a stream");
        for piece in text.as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(piece).is_err() {
                break;
            }
        }
        drop(stream);
        // What is wrong with the body is told by the answer too.
        let _ = OutgoingBody::finish(body, None);
    }
    response.subscribe().block();
    let response = match response.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(code))) => return Err(format!("{code:?}")),
        other => return Err(format!("no answer: {}", other.is_some())),
    };
    report.status = Some(response.status());
    report.headers = texts(&response.headers());
    let body = response.consume().expect("a body");
    let stream = body.stream().expect("a stream");
    let mut bytes = Vec::new();
    let ended = loop {
        match stream.blocking_read(64 << 10) {
            Ok(piece) => bytes.extend(piece),
            Err(StreamError::Closed) => break Ok(()),
            Err(StreamError::LastOperationFailed(error)) => break Err(format!("{:?}", http_error_code(&error))),
        }
    };
    report.body = String::from_utf8_lossy(&bytes).into_owned();
    drop(stream);
    let trailers = IncomingBody::finish(body);
    trailers.subscribe().block();
    if let Some(Ok(Ok(Some(trailers)))) = trailers.get() {
        report.trailers = texts(&trailers);
    }
    ended
}

fn texts(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    fields.entries().into_iter().map(|(name, value)| (name, text(value))).collect()
}

toolbox!(send, follow, refused_headers);
fn main() {}
