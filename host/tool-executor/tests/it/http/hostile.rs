//! Servers and tools that mean harm: each exchange ends, in the interface's words or with the call's limit.

use std::time::Duration;

use domain::Limits;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tool_api::{ArtifactHash, Finished, Status, ToolCall};

use super::{
    ask, call, grant, grants, http_calls, jar, report, reports, send,
    upstream::{HELLO, Upstream},
};
use crate::jar::{Jar, resident_bytes};

/// Memory that a hostile exchange may leave in this process: its connection's buffers and warm pages.
const HOST_GROWTH_BYTES_MAX: u64 = 64 << 20;

/// What the engine tells a tool of an error in the middle of a body: that there was one.
const NO_CODE: &str = "None";

fn hostile(guest: ArtifactHash, function: &str, upstream: &Upstream, change: impl FnOnce(&mut Limits)) -> ToolCall {
    let arguments = json!({"authority": upstream.authority()});
    let mut call = ToolCall { grants: grants(&[grant(&upstream.authority())]), ..call(guest, function, arguments) };
    change(&mut call.limits);
    call
}

async fn code_of(jar: &Jar, call: ToolCall) -> String {
    let outcome = jar.call(call).await.outcome;
    outcome.code.clone().unwrap_or_else(|| format!("{outcome:?}"))
}

#[tokio::test]
async fn answers_that_are_no_answers_are_errors_of_the_interface() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(100_000));
    let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(4 << 20));
    let answers = [
        ("", "ConnectionTerminated"),
        ("SSH-2.0-x\r\n\r\n", "HttpProtocolError"),
        ("HTTP/2 200\r\n\r\n", "HttpProtocolError"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", "ConnectionTerminated"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "HttpProtocolError"),
        ("HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello", "HttpProtocolError"),
        ("HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "HttpProtocolError"),
        ("HTTP/1.1 200 OK\r\na: \0\r\n\r\n", "HttpProtocolError"),
        ("HTTP/1.1 99999 OK\r\n\r\n", "HttpProtocolError"),
        (&many, "HttpProtocolError"),
        (&long, "HttpProtocolError"),
        // The head is whole; the body is not.
        ("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello", NO_CODE),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", NO_CODE),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n", NO_CODE),
    ];
    let texts = answers.map(|(answer, _)| answer.to_owned());
    let upstream = Upstream::echoing(move |request| {
        let number = request.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        number.parse().map_or_else(|_| String::new(), |number: usize| texts[number].clone())
    })
    .await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let asks: Vec<_> = (0..answers.len()).map(|number| ask(&upstream, &format!("/{number}"))).collect();
    let finished = jar.call(send(client, &asks, &[grant(&upstream.authority())])).await;
    for (((answer, error), report), told) in answers.iter().zip(reports(&finished)).zip(http_calls(&finished)) {
        let seen = report["error"].as_str().unwrap_or("no error");
        assert!(seen.contains(error), "{seen} for {}", answer.chars().take(60).collect::<String>());
        assert!(told.error.is_some());
    }
}

#[tokio::test]
async fn waiting_ends_when_the_tool_or_the_call_says_so() {
    let silent = Upstream::start(|mut socket, _| async move {
        let _ = socket.read(&mut [0]).await;
    })
    .await;
    let stuck = Upstream::start(|mut socket, _| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello").await;
        let _ = socket.read(&mut [0]).await;
    })
    .await;
    let jar = jar(&[&silent, &stuck]);
    let client = jar.load("http_client").await;
    // The connection's own time comes on top of the tool's; it is 10 s, and the call's deadline is sooner.
    let mut call = send(client, &[ask(&silent, "/")], &[grant(&silent.authority())]);
    call.limits.deadline_ms = 300;
    assert_eq!(code_of(&jar, call).await, "limit.deadline");
    let mut slow = ask(&stuck, "/");
    slow["between_bytes_ms"] = 50.into();
    let finished = jar.call(send(client, &[slow.clone()], &[grant(&stuck.authority())])).await;
    let told = report(&finished);
    assert_eq!(told["error"], NO_CODE, "{told}");
    let error = http_calls(&finished)[0].error.clone().unwrap();
    assert!(error.contains("timed out") || error.contains("timeout"), "{error}");
    assert_eq!(told["body"], "hello");
    // No time at all is no reason to panic.
    slow["between_bytes_ms"] = 0.into();
    slow["first_byte_ms"] = 0.into();
    let finished = jar.call(send(client, &[slow], &[grant(&stuck.authority())])).await;
    assert!(report(&finished)["error"].is_string());
}

#[tokio::test]
async fn endless_bodies_end_with_the_limit_and_little_memory() {
    let endless = Upstream::start(|mut socket, _| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while socket.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
    })
    .await;
    let jar = jar(&[&endless]);
    let guest = jar.load("http_hostile").await;
    let before = resident_bytes();
    assert_eq!(code_of(&jar, hostile(guest, "download", &endless, |_| {})).await, "limit.http_bytes");
    // A body that nobody reads does not fill the host.
    let unread = hostile(guest, "never_read", &endless, |limits| limits.deadline_ms = 500);
    assert_eq!(code_of(&jar, unread).await, "limit.deadline");
    assert!(resident_bytes() < before + HOST_GROWTH_BYTES_MAX, "{} after {before}", resident_bytes());
    let early = jar.call(hostile(guest, "drop_early", &endless, |_| {})).await;
    assert_eq!((early.outcome.status, early.outcome.structured), (Status::Ok, Some(json!(10))));
}

#[tokio::test]
async fn endless_uploads_end_with_the_limit_and_little_memory() {
    let hungry = Upstream::answering(HELLO).await;
    let jar = jar(&[&hungry]);
    let guest = jar.load("http_hostile").await;
    let before = resident_bytes();
    let limits = |limits: &mut Limits| limits.http_bytes = 1 << 20;
    assert_eq!(code_of(&jar, hostile(guest, "upload", &hungry, limits)).await, "limit.http_bytes");
    assert!(resident_bytes() < before + HOST_GROWTH_BYTES_MAX);
}

#[tokio::test]
async fn a_call_has_few_connections_at_the_same_time() {
    let silent = Upstream::start(|socket, _| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let jar = jar(&[&silent]);
    let guest = jar.load("http_hostile").await;
    let limits = |limits: &mut Limits| (limits.deadline_ms, limits.http_requests) = (1_000, 100);
    assert_eq!(code_of(&jar, hostile(guest, "keep_waiting", &silent, limits)).await, "limit.deadline");
    assert_eq!(silent.accepted(), 16);
}

#[tokio::test]
async fn floods_end_with_their_limit() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let guest = jar.load("http_hostile").await;
    for function in ["flood", "keep"] {
        let limits = |limits: &mut Limits| limits.http_requests = 100;
        assert_eq!(
            code_of(&jar, hostile(guest, function, &upstream, limits)).await,
            "limit.http_requests",
            "{function}"
        );
    }
    let mut denied = call(guest, "ask_denied", json!({}));
    denied.limits.host_calls = 5_000;
    let finished = jar.call(denied).await;
    assert_eq!(finished.outcome.code.as_deref(), Some("limit.host_calls"));
    assert_eq!((finished.receipt.denied.as_slice(), http_calls(&finished).len()), (&["http".to_owned()][..], 100));
    assert!(finished.receipt.host_call_counts["wasi:http.handle"] > 100);
}

/// What a server read before the connection ended.
async fn uploaded(function: &str) -> (Finished, String) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Upstream::start(move |_, request| {
        let _ = sender.send(request);
        async {}
    })
    .await;
    let jar = jar(&[&upstream]);
    let guest = jar.load("http_hostile").await;
    let finished = jar.call(hostile(guest, function, &upstream, |_| {})).await;
    let request = tokio::time::timeout(Duration::from_secs(20), receiver.recv()).await.unwrap().unwrap();
    (finished, request)
}

#[tokio::test]
async fn a_body_that_is_not_finished_is_never_sent_as_a_whole_one() {
    for (function, status) in [("crash_in_upload", Status::Trap), ("leave_upload", Status::Ok)] {
        let (finished, request) = uploaded(function).await;
        assert_eq!(finished.outcome.status, status, "{finished:?}");
        assert!(!request.ends_with("0\r\n\r\n"), "{function}: {request}");
        let [told] = http_calls(&finished).try_into().unwrap();
        assert!(told.error.as_ref().unwrap().contains("no answer came"), "{told:?}");
    }
}

#[tokio::test]
async fn a_head_that_lies_about_its_body_smuggles_nothing() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let guest = jar.load("http_hostile").await;
    let lie = async |length: &str, body: &str| {
        let mut call = hostile(guest, "lie_about_length", &upstream, |_| {});
        call.arguments = json!({"authority": upstream.authority(), "length": length, "body": body});
        jar.call(call).await.outcome.for_model()
    };
    assert_eq!(lie("5", "hello").await, "write ok: true, finish ok: true, answer: 200");
    for (length, body) in [("5", "hello, and GET /admin HTTP/1.1\r\nhost: x\r\n\r\n"), ("50", "hello")] {
        let told = lie(length, body).await;
        assert!(told.contains("finish ok: false") && !told.contains("answer: 200"), "{length}: {told}");
    }
    // A whole request without a body.
    assert_eq!(lie("0", "hello").await, "write ok: false, finish ok: false, answer: 200");
    for bad in ["+5", "-5", " 5", "5, 5", "0x5", "", "99999999999999999999"] {
        assert!(lie(bad, "hello").await.starts_with("header: "), "{bad}");
    }
    let told = jar.call(hostile(guest, "length_without_body", &upstream, |_| {})).await.outcome.for_model();
    assert!(told.contains("HttpRequestBodySize"), "{told}");
    // A request that was given up at once left nothing.
    for request in upstream.requests().iter().filter(|request| !request.is_empty()) {
        assert!(!request.contains("/admin"), "{request}");
        assert_eq!(request.matches("content-length").count(), 1, "{request}");
        assert!(!request.contains("transfer-encoding"), "{request}");
    }
}

#[tokio::test]
async fn framing_belongs_to_the_host() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let headers: Value = json!([
        ["host", "other.test"],
        ["Host", "other.test"],
        ["connection", "x-mine"],
        ["keep-alive", "1"],
        ["transfer-encoding", "chunked"],
        ["Transfer-Encoding", "identity"],
        ["upgrade", "h2c"],
        ["proxy-authorization", "Basic x"],
        ["proxy-connection", "close"],
        ["http2-settings", "x"],
        ["x-a", "a\r\nx-b: b"],
        ["x-a", "a\nb"],
        ["x-a", "a\0b"],
        ["x a", "b"],
        ["x-a:", "b"],
        ["", "b"],
        ["x-a\r\nx-b", "b"],
        [":authority", "other.test"],
    ]);
    let finished = jar.call(call(client, "refused_headers", json!({"headers": headers}))).await;
    let refused = finished.outcome.structured.unwrap();
    assert_eq!(refused.as_array().unwrap().len(), headers.as_array().unwrap().len(), "{refused}");
    assert_eq!(upstream.accepted(), 0);
}

#[tokio::test]
async fn empty_writes_are_not_the_end_of_a_body() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let guest = jar.load("http_hostile").await;
    let finished = jar.call(hostile(guest, "upload_nothing", &upstream, |_| {})).await;
    assert_eq!(finished.outcome.structured, Some(json!(200)), "{finished:?}");
    assert!(upstream.requests()[0].ends_with("\r\n\r\n3\r\nend\r\n0\r\n\r\n"));
}
