//! Requests of real tools, against servers on loopback that the operator allowed.

mod addresses;
mod hostile;
mod intents;
mod secrets;
mod upstream;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use domain::{CallGrants, Limits, grants::HttpGrant};
use egress::Egress;
use serde_json::{Value, json};
use tool_api::{ArtifactHash, Finished, HostCall, OpenSecret, Status, ToolCall};
use tool_executor::{Executor, Settings};

use crate::jar::{Jar, call, settings};
use upstream::{HELLO, Upstream};

/// A jar whose tools may reach these servers, as far as the operator is concerned.
fn jar(upstreams: &[&Upstream]) -> Jar {
    jar_with(Egress::new(upstreams.iter().map(|upstream| upstream.address).collect()).unwrap())
}

fn jar_with(egress: Egress) -> Jar {
    let cache_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests");
    Jar { executor: Executor::start(Settings { egress, ..settings(cache_dir) }).unwrap() }
}

/// A grant for a host over plain http: every method that the tests use, every path.
fn grant(host: &str) -> Value {
    json!({"host": host, "methods": ["GET", "POST", "HEAD", "PUT"], "plain_http": true})
}

fn grants(grants: &[Value]) -> Arc<CallGrants> {
    let http = grants.iter().map(|grant| serde_json::from_value::<HttpGrant>(grant.clone()).unwrap()).collect();
    Arc::new(CallGrants { http, ..CallGrants::default() })
}

fn secrets(secrets: &[(&str, &str)]) -> Arc<BTreeMap<domain::SecretName, OpenSecret>> {
    let open = |value: &str| OpenSecret { value: value.into(), readable: false };
    Arc::new(secrets.iter().map(|(name, value)| (name.parse().unwrap(), open(value))).collect())
}

/// A request to `upstream`.
fn ask(upstream: &Upstream, path: &str) -> Value {
    json!({"scheme": "http", "authority": upstream.authority(), "path": path})
}

/// A call that sends requests, one after the other.
fn send(client: ArtifactHash, asks: &[Value], granted: &[Value]) -> ToolCall {
    ToolCall { grants: grants(granted), ..call(client, "send", json!({"asks": asks})) }
}

/// What the tool reported of each request.
fn reports(finished: &Finished) -> Vec<Value> {
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    finished.outcome.structured.as_ref().unwrap().as_array().unwrap().clone()
}

/// The one request of a call.
fn report(finished: &Finished) -> Value {
    let [report] = reports(finished).try_into().unwrap();
    report
}

fn http_calls(finished: &Finished) -> Vec<&HostCall> {
    finished.receipt.host_calls.iter().filter(|call| call.interface == "wasi:http").collect()
}

#[tokio::test]
async fn nothing_is_sent_without_a_grant() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let host = upstream.authority();
    let granted = |change: Value| {
        let mut grant = json!({"host": host, "plain_http": true, "paths": ["/v1"]});
        grant.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        grant
    };
    let ask = |change: Value| {
        let mut ask = ask(&upstream, "/v1/x");
        ask.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        ask
    };
    for (grant, ask, why) in [
        (None, ask(json!({})), "no grant for this host and port"),
        (Some(granted(json!({"host": "127.0.0.2"}))), ask(json!({})), "no grant for this host and port"),
        (Some(granted(json!({"host": "127.0.0.1"}))), ask(json!({})), "no grant for this host and port"),
        (Some(granted(json!({"plain_http": false}))), ask(json!({})), "granted over https only"),
        (Some(granted(json!({}))), ask(json!({"method": "POST"})), "this method is not"),
        (Some(granted(json!({}))), ask(json!({"method": "get"})), "this method is not"),
        (Some(granted(json!({}))), ask(json!({"method": "CONNECT"})), "this method is not"),
        (Some(granted(json!({}))), ask(json!({"path": "/"})), "this path is not"),
        (Some(granted(json!({}))), ask(json!({"path": "/v10"})), "this path is not"),
        (Some(granted(json!({}))), ask(json!({"path": "/v1/../admin"})), "this path is not"),
        (Some(granted(json!({}))), ask(json!({"path": "/v1/%2e%2e/admin"})), "this path is not"),
        (Some(granted(json!({}))), ask(json!({"path": "/v1/..%2fadmin"})), "this path is not"),
        (Some(granted(json!({}))), ask(json!({"path": "/x?/v1/"})), "this path is not"),
        (Some(granted(json!({}))), ask(json!({"path": "//v1/x"})), "this path is not"),
    ] {
        let finished = jar.call(send(client, std::slice::from_ref(&ask), grant.as_slice())).await;
        let error = report(&finished)["error"].as_str().unwrap().to_owned();
        assert_eq!(error, "ErrorCode::HttpRequestDenied", "{ask}");
        assert_eq!(finished.receipt.denied, ["http"]);
        let [told] = http_calls(&finished).try_into().unwrap();
        assert!(told.error.as_ref().unwrap().contains(why), "{ask}: {told:?}");
        assert_eq!((told.grant.as_ref(), told.bytes_in, told.bytes_out), (None, 0, 0));
        assert!(!told.target.as_ref().unwrap().contains('?'));
    }
    assert_eq!(upstream.accepted(), 0);
}

#[tokio::test]
async fn a_granted_request_goes_out_and_is_told() {
    let answer = "HTTP/1.1 201 Created\r\nx-one: 1\r\ncontent-length: 5\r\n\r\nhello";
    let upstream = Upstream::answering(answer).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let mut ask = ask(&upstream, "/a/../b%20c?q=1&r=a%2Fb");
    ask["method"] = "POST".into();
    ask["headers"] = json!([["X-Mine", "yes"], ["cookie", "a=b"], ["te", "trailers"], ["expect", "100-continue"]]);
    ask["body"] = "body".into();
    let mut granted = grant(&upstream.authority());
    granted["idempotency_header"] = "Idempotency-Key".into();
    let finished = jar.call(send(client, &[ask], &[granted])).await;
    let report = report(&finished);
    assert_eq!((&report["status"], &report["body"], &report["error"]), (&json!(201), &json!("hello"), &Value::Null));
    assert!(report["headers"].as_array().unwrap().contains(&json!(["x-one", "1"])), "{report}");

    let sent = upstream.requests();
    let [sent] = sent.as_slice() else { panic!("{sent:?}") };
    assert!(sent.starts_with("POST /b%20c?q=1&r=a%2Fb HTTP/1.1\r\n"), "{sent}");
    for line in [&format!("host: {}", upstream.authority()), "x-mine: yes", "cookie: a=b", "idempotency-key: key"] {
        assert!(sent.contains(&format!("\r\n{line}\r\n")), "{line} in {sent}");
    }
    for absent in ["expect", "\r\nte:", "accept-encoding"] {
        assert!(!sent.contains(absent), "{absent} in {sent}");
    }
    assert!(sent.ends_with("4\r\nbody\r\n0\r\n\r\n"), "{sent}");

    let [told] = http_calls(&finished).try_into().unwrap();
    let target = format!("POST http://{}/b%20c", upstream.authority());
    assert_eq!((told.function.as_str(), told.target.as_deref()), ("handle", Some(target.as_str())));
    assert_eq!(told.grant, Some(format!("http {}", upstream.authority())));
    assert_eq!(told.error, None);
    assert!(told.bytes_in > 4 && told.bytes_out > 5, "{told:?}");
    assert_eq!(finished.receipt.host_call_counts["wasi:http.handle"], 1);
    assert!(finished.receipt.denied.is_empty());
}

#[tokio::test]
async fn a_name_is_looked_up_and_its_port_is_its_own() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let port = upstream.address.port();
    let mut ask = ask(&upstream, "/");
    ask["authority"] = format!("LOCALHOST:{port}").into();
    let finished = jar.call(send(client, &[ask], &[grant(&format!("localhost:{port}"))])).await;
    assert_eq!(report(&finished)["body"], "hello", "{finished:?}");
    assert!(upstream.requests()[0].contains(&format!("host: localhost:{port}\r\n")));
}

#[tokio::test]
async fn trailers_and_chunks_come_through() {
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
        2\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 7\r\n\r\n";
    let upstream = Upstream::answering(answer).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let finished = jar.call(send(client, &[ask(&upstream, "/")], &[grant(&upstream.authority())])).await;
    let report = report(&finished);
    assert_eq!((&report["body"], &report["trailers"]), (&json!("hello"), &json!([["x-sum", "7"]])), "{report}");
}

#[tokio::test]
async fn informational_answers_are_passed_over() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
        HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let upstream = Upstream::answering(answer).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let finished = jar.call(send(client, &[ask(&upstream, "/")], &[grant(&upstream.authority())])).await;
    assert_eq!((&report(&finished)["status"], &report(&finished)["body"]), (&json!(200), &json!("hello")));
}

#[tokio::test]
async fn each_request_has_a_connection_of_its_own() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let asks = [ask(&upstream, "/1"), ask(&upstream, "/2"), ask(&upstream, "/3")];
    jar.call(send(client, &asks, &[grant(&upstream.authority())])).await;
    assert_eq!(upstream.accepted(), 3);
}

#[tokio::test]
async fn limits_of_requests_and_bytes_end_the_call() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let asks = vec![ask(&upstream, "/"); 3];
    let with = |change: fn(&mut Limits)| {
        let mut call = send(client, &asks, &[grant(&upstream.authority())]);
        change(&mut call.limits);
        call
    };
    let finished = jar.call(with(|limits| limits.http_requests = 2)).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.http_requests"), "{finished:?}");
    assert_eq!((upstream.accepted(), http_calls(&finished).len()), (2, 2));
    let finished = jar.call(with(|limits| limits.http_bytes = 60)).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.http_bytes"), "{finished:?}");
    let finished = jar.call(with(|limits| limits.http_bytes = 1)).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.http_bytes"), "{finished:?}");
    assert!(http_calls(&finished).is_empty(), "nothing was sent");
}
