//! Writes nothing, without end: each write must cost, and none may be kept.

use belljar_tool::{tool, toolbox};
use wasip2::http::types::{Fields, Method, OutgoingRequest};
use wasip2::io::streams::OutputStream;

/// To standard output.
#[tool]
fn run() {
    write_nothing(&wasip2::cli::stdout::get_stdout());
}

/// To standard error, and flushes each time.
#[tool]
fn flushed() {
    let stream = wasip2::cli::stderr::get_stderr();
    while stream.blocking_write_and_flush(&[]).is_ok() {}
}

/// To the body of a request that is never sent.
#[tool]
fn body() {
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&Method::Post).expect("a method");
    let body = request.body().expect("a body");
    write_nothing(&body.write().expect("a stream"));
}

/// No zeros to standard output.
#[tool]
fn zeros() {
    let stream = wasip2::cli::stdout::get_stdout();
    while stream.check_write().is_ok() {
        let _ = stream.write_zeroes(0);
    }
}

fn write_nothing(stream: &OutputStream) {
    loop {
        let _ = std::hint::black_box(stream.check_write());
        let _ = std::hint::black_box(stream.write(&[]));
    }
}

toolbox!(run, flushed, body, zeros);
fn main() {}
