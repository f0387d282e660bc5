//! Gives host resources back in the wrong order, and uses what is used up.

use belljar_tool::{tool, toolbox};
use wasip2::http::types::{Fields, OutgoingBody, OutgoingRequest};

/// Drops the body before its stream.
#[tool]
fn body_before_stream() -> String {
    let request = OutgoingRequest::new(Fields::new());
    let body = request.body().expect("a body");
    let stream = body.write().expect("a stream");
    drop(body);
    drop(stream);
    "dropped".into()
}

/// Finishes the body before its stream.
#[tool]
fn finished_before_stream() -> String {
    let request = OutgoingRequest::new(Fields::new());
    let body = request.body().expect("a body");
    let _stream = body.write().expect("a stream");
    format!("{:?}", OutgoingBody::finish(body, None).is_ok())
}

/// Drops the request before its body.
#[tool]
fn request_before_body() -> String {
    let request = OutgoingRequest::new(Fields::new());
    let body = request.body().expect("a body");
    drop(request);
    drop(body);
    "dropped".into()
}

/// Drops standard output before what waits for it.
#[tool]
fn stream_before_pollable() -> String {
    let stream = wasip2::cli::stdout::get_stdout();
    let pollable = stream.subscribe();
    drop(stream);
    pollable.block();
    "dropped".into()
}

/// Takes the body of a request, and its stream, a second time.
#[tool]
fn twice() -> String {
    let request = OutgoingRequest::new(Fields::new());
    let body = request.body().expect("a body");
    let _stream = body.write().expect("a stream");
    format!("{} {}", request.body().is_ok(), body.write().is_ok())
}

/// Drops a handle that it never had.
#[tool]
fn not_mine() -> String {
    // SAFETY: none; the engine must trap.
    drop(unsafe { wasip2::io::poll::Pollable::from_handle(4_000_000) });
    "dropped".into()
}

/// Drops a handle twice.
#[tool]
fn double() -> String {
    let stream = wasip2::cli::stdout::get_stdout();
    // SAFETY: none; the second drop must trap.
    drop(unsafe { wasip2::io::streams::OutputStream::from_handle(stream.handle()) });
    drop(stream);
    "dropped".into()
}

/// Uses a handle of one type as another one.
#[tool]
fn wrong_type() -> String {
    let pollable = wasip2::clocks::monotonic_clock::subscribe_duration(0);
    // SAFETY: none; the engine must trap.
    let stream = unsafe { wasip2::io::streams::OutputStream::from_handle(pollable.handle()) };
    format!("{:?}", stream.check_write())
}

toolbox!(
    body_before_stream,
    finished_before_stream,
    request_before_body,
    stream_before_pollable,
    twice,
    not_mine,
    double,
    wrong_type
);
fn main() {}
