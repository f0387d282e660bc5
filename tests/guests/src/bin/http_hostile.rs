//! Misuses the requests it may send. Each function takes the authority of a granted host.

use belljar_tool::{tool, toolbox};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, FutureIncomingResponse, IncomingResponse, Method, OutgoingBody, OutgoingRequest, Scheme,
};
use wasip2::io::streams::{OutputStream, StreamError};

/// Sends requests for ever, and reads no answer.
#[tool]
fn flood(authority: String) {
    loop {
        drop(begin(request(&authority, "/", Fields::new())));
    }
}

/// Sends requests for ever, and keeps every one.
#[tool]
fn keep(authority: String) {
    loop {
        std::mem::forget(begin(request(&authority, "/", Fields::new())));
    }
}

/// Sends many requests at once, and waits for the answer to the last one.
#[tool]
fn keep_waiting(authority: String) {
    let responses: Vec<_> = (0..40).map(|_| begin(request(&authority, "/", Fields::new()))).collect();
    let _ = wait(responses.last().expect("one at least"));
}

/// Asks for what no grant allows, for ever.
#[tool]
fn ask_denied() {
    loop {
        let response = begin(request("denied.test", "/", Fields::new()));
        assert!(matches!(response.get(), Some(Ok(Err(_)))));
    }
}

/// Writes a body that never ends.
#[tool]
fn upload(authority: String) {
    let (response, _body, stream) = begin_post(&authority, Fields::new());
    while stream.blocking_write_and_flush(&[b'x'; 4096]).is_ok() {}
    let _ = wait(&response);
}

/// Writes nothing, over and over, and then tells whether the answer came.
#[tool]
fn upload_nothing(authority: String) -> u16 {
    let (response, body, stream) = begin_post(&authority, Fields::new());
    for _ in 0..1_000 {
        stream.blocking_write_and_flush(&[]).expect("an empty write");
    }
    stream.blocking_write_and_flush(b"end").expect("a write");
    drop(stream);
    OutgoingBody::finish(body, None).expect("a whole body");
    wait(&response).map_or(0, |response| response.status())
}

/// Writes a half of a body, and crashes.
#[tool]
fn crash_in_upload(authority: String) {
    let (_response, _body, stream) = begin_post(&authority, Fields::new());
    write_half(&stream);
    panic!("half way");
}

/// Writes a half of a body, and answers as if all were well.
#[tool]
fn leave_upload(authority: String) -> bool {
    let (response, body, stream) = begin_post(&authority, Fields::new());
    write_half(&stream);
    std::mem::forget((response, body, stream));
    true
}

/// Tells one length and writes another one. The answer's status, or what the host said.
#[tool]
fn lie_about_length(authority: String, length: String, body: String) -> String {
    let fields = Fields::new();
    if let Err(error) = fields.append("content-length", length.as_bytes()) {
        return format!("header: {error:?}");
    }
    let request = request(&authority, "/", fields);
    request.set_method(&Method::Post).expect("a method");
    let Ok(outgoing) = request.body() else { return "body refused".into() };
    let response = begin(request);
    let stream = outgoing.write().expect("a stream");
    let written = stream.blocking_write_and_flush(body.as_bytes());
    drop(stream);
    let finished = OutgoingBody::finish(outgoing, None);
    let answer = match wait(&response) {
        Ok(response) => response.status().to_string(),
        Err(code) => code,
    };
    format!("write ok: {}, finish ok: {}, answer: {answer}", written.is_ok(), finished.is_ok())
}

/// Tells a length and has no body at all.
#[tool]
fn length_without_body(authority: String) -> String {
    let fields = Fields::new();
    fields.append("content-length", b"5").expect("a length");
    let request = request(&authority, "/", fields);
    request.set_method(&Method::Post).expect("a method");
    wait(&begin(request)).map_or_else(|code| code, |response| response.status().to_string())
}

/// Reads a body that never ends; the bytes that it got.
#[tool]
fn download(authority: String) -> u64 {
    let response = wait(&begin(request(&authority, "/", Fields::new()))).expect("an answer");
    let body = response.consume().expect("a body");
    let stream = body.stream().expect("a stream");
    let mut bytes = 0;
    loop {
        match stream.blocking_read(1 << 20) {
            Ok(piece) => bytes += piece.len() as u64,
            Err(StreamError::Closed) => return bytes,
            Err(StreamError::LastOperationFailed(error)) => panic!("{}", error.to_debug_string()),
        }
    }
}

/// Takes a body and does not read it, then waits for ever.
#[tool]
fn never_read(authority: String) {
    let response = wait(&begin(request(&authority, "/", Fields::new()))).expect("an answer");
    let body = response.consume().expect("a body");
    let _stream = body.stream().expect("a stream");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Drops the answer's body after its first bytes; how many they were.
#[tool]
fn drop_early(authority: String) -> u64 {
    let response = wait(&begin(request(&authority, "/", Fields::new()))).expect("an answer");
    let body = response.consume().expect("a body");
    let stream = body.stream().expect("a stream");
    stream.blocking_read(10).expect("some bytes").len() as u64
}

/// More pieces than the host holds: when the last one is taken, the first one is on its way.
fn write_half(stream: &OutputStream) {
    for _ in 0..8 {
        stream.blocking_write_and_flush(b"a piece of the first half").expect("a write");
    }
}

fn request(authority: &str, path: &str, fields: Fields) -> OutgoingRequest {
    let request = OutgoingRequest::new(fields);
    request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    request.set_authority(Some(authority)).expect("an authority");
    request.set_path_with_query(Some(path)).expect("a path");
    request
}

fn begin(request: OutgoingRequest) -> FutureIncomingResponse {
    outgoing_handler::handle(request, None).expect("a future")
}

fn begin_post(authority: &str, fields: Fields) -> (FutureIncomingResponse, OutgoingBody, OutputStream) {
    let request = request(authority, "/", fields);
    request.set_method(&Method::Post).expect("a method");
    let body = request.body().expect("a body");
    let stream = body.write().expect("a stream");
    (begin(request), body, stream)
}

fn wait(response: &FutureIncomingResponse) -> Result<IncomingResponse, String> {
    response.subscribe().block();
    match response.get() {
        Some(Ok(Ok(response))) => Ok(response),
        Some(Ok(Err(code))) => Err(format!("{code:?}")),
        _ => Err("no answer".into()),
    }
}

toolbox!(
    flood,
    keep,
    keep_waiting,
    ask_denied,
    upload,
    upload_nothing,
    crash_in_upload,
    leave_upload,
    lie_about_length,
    length_without_body,
    download,
    never_read,
    drop_early
);
fn main() {}
