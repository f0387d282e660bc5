//! Makes one kind of host resource after the other and never gives one back.

use belljar_tool::{tool, toolbox};
use std::mem::forget;
use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{Fields, OutgoingRequest, OutgoingResponse, RequestOptions};

/// Standard input, for ever.
#[tool]
fn inputs() {
    loop {
        forget(wasip2::cli::stdin::get_stdin());
    }
}

/// Requests that are never sent, for ever.
#[tool]
fn requests() {
    loop {
        forget(OutgoingRequest::new(Fields::new()));
    }
}

/// Bodies of requests that are never sent, for ever.
#[tool]
fn bodies() {
    loop {
        let request = OutgoingRequest::new(Fields::new());
        let body = request.body().expect("a first body");
        forget((body.write().expect("a stream"), body, request));
    }
}

/// Options of requests, for ever.
#[tool]
fn options() {
    loop {
        forget(RequestOptions::new());
    }
}

/// Answers of a server that this is none of, for ever.
#[tool]
fn responses() {
    loop {
        forget(OutgoingResponse::new(Fields::new()));
    }
}

/// Pollables of one stream, for ever.
#[tool]
fn subscriptions() {
    let stream = wasip2::cli::stdout::get_stdout();
    loop {
        forget(stream.subscribe());
    }
}

/// Copies of header lists, for ever.
#[tool]
fn clones() {
    let fields = Fields::new();
    fields.append("x-copy", &[b'x'; 1024]).expect("a header");
    loop {
        forget(fields.clone());
    }
}

/// Makes a pollable and gives it back, for ever: no handle is too much, the calls are.
#[tool]
fn given_back() {
    loop {
        drop(monotonic_clock::subscribe_duration(1));
    }
}

toolbox!(inputs, requests, bodies, options, responses, subscriptions, clones, given_back);
fn main() {}
