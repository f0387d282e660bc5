//! Secrets that a grant binds: added after the check, and never seen by the tool.

use serde_json::{Value, json};
use tool_api::{Finished, ToolCall};

use super::{
    ask, call, grant, grants, http_calls, jar, report, reports, secrets, send,
    upstream::{HELLO, Upstream},
};

const CANARY: &str = "canary-7f3a/Ä+\"0001";
const TOKEN: &str = "canary-token-0001";

/// Answers with the request's head, a chunk of `bytes` bytes after the other, and once more in a header.
fn reflect(bytes: usize) -> impl Fn(&str) -> String + Send + Sync + 'static {
    move |request| {
        let line = request.lines().next().unwrap_or_default();
        let bearer = request.lines().find(|line| line.starts_with("authorization")).unwrap_or("none");
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nx-echo: {bearer}\r\nx-line: {line}\r\ntrailer: x-last\r\n\
             transfer-encoding: chunked\r\n\r\n"
        );
        for piece in request.as_bytes().chunks(bytes) {
            answer.push_str(&format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)));
        }
        answer + &format!("0\r\nx-last: {bearer}\r\n\r\n")
    }
}

fn bound(host: &str) -> Value {
    let mut grant = grant(host);
    grant["headers"] = json!([
        {"name": "Authorization", "secret": "token", "format": "Bearer {}"},
        {"name": "X-Api-Key", "secret": "key"},
    ]);
    grant["query"] = json!([{"name": "appid", "secret": "query"}]);
    grant
}

fn with_secrets(call: ToolCall) -> ToolCall {
    let secrets = secrets(&[("token", TOKEN), ("key", "canary-key-0002"), ("query", CANARY)]);
    ToolCall { secrets, ..call }
}

fn assert_clean(finished: &Finished) {
    let told = format!("{finished:?}");
    for canary in [TOKEN, "canary-key-0002", "canary-7f3a"] {
        assert!(!told.contains(canary), "{canary} in {told}");
    }
}

#[tokio::test]
async fn a_bound_secret_is_sent_and_never_comes_back() {
    for bytes in [1, 3, 7, 1000] {
        let upstream = Upstream::echoing(reflect(bytes)).await;
        let jar = jar(&[&upstream]);
        let client = jar.load("http_client").await;
        let mut ask = ask(&upstream, "/x?a=1&appid=mine&%61ppid=mine&b=2");
        // What the tool sets in place of the host's is left out, however it is written.
        ask["headers"] = json!([
            ["authorization", "Bearer mine"],
            ["x_api_key", "mine"],
            ["accept-encoding", "gzip"],
            ["range", "bytes=0-3"],
            ["x-other", "kept"],
        ]);
        let finished = jar.call(with_secrets(send(client, &[ask], &[bound(&upstream.authority())]))).await;

        let sent = upstream.requests()[0].clone();
        let line = "GET /x?a=1&b=2&appid=canary-7f3a%2F%C3%84%2B%220001 HTTP/1.1\r\n";
        assert!(sent.starts_with(line), "{sent}");
        for line in [
            &format!("authorization: Bearer {TOKEN}"),
            "x-api-key: canary-key-0002",
            "accept-encoding: identity",
            "x-other: kept",
        ] {
            assert!(sent.contains(&format!("\r\n{line}\r\n")), "{line} in {sent}");
        }
        assert!(!sent.contains("mine") && !sent.contains("range") && !sent.contains("gzip"), "{sent}");

        let report = report(&finished);
        let text = report.to_string();
        assert_clean(&finished);
        assert!(text.contains(&format!("Bearer {}", "*".repeat(TOKEN.len()))), "{text}");
        assert!(text.contains(r#"["x-echo","authorization: Bearer [secret]"]"#), "{text}");
        assert!(text.contains(r#"["x-last","authorization: Bearer [secret]"]"#), "{text}");
        assert_eq!(report["body"].as_str().unwrap().len(), sent.len(), "the body keeps its length");
        let mut used: Vec<_> = finished.receipt.secrets_used.iter().map(|name| name.as_str()).collect();
        used.sort_unstable();
        assert_eq!(used, ["key", "query", "token"]);
        let target = http_calls(&finished)[0].target.clone().unwrap();
        assert_eq!(target, format!("GET http://{}/x", upstream.authority()));
    }
}

#[tokio::test]
async fn basic_authentication_is_added_by_the_host() {
    let upstream = Upstream::echoing(reflect(5)).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let mut granted = grant(&upstream.authority());
    granted["basic"] = json!({"user": "ada", "secret": "token"});
    let mut ask = ask(&upstream, "/");
    ask["headers"] = json!([["authorization", "Basic bWluZTptaW5l"]]);
    let finished = jar.call(with_secrets(send(client, &[ask], &[granted]))).await;
    let sent = upstream.requests()[0].clone();
    assert!(sent.contains("\r\nauthorization: Basic YWRhOmNhbmFyeS10b2tlbi0wMDAx\r\n"), "{sent}");
    let text = report(&finished).to_string();
    assert!(!text.contains("YWRhOmNhbmFyeS10b2tlbi0wMDAx") && !text.contains("bWluZTptaW5l"), "{text}");
}

#[tokio::test]
async fn a_redirect_is_decided_anew_and_takes_no_secret_along() {
    let other = Upstream::answering(HELLO).await;
    let stranger = Upstream::answering(HELLO).await;
    for (to, granted, error) in [(&other, true, Value::Null), (&stranger, false, json!("ErrorCode::HttpRequestDenied"))]
    {
        let redirect =
            format!("HTTP/1.1 302 Found\r\nlocation: http://{}/taken?x=1\r\ncontent-length: 0\r\n\r\n", to.authority());
        let upstream = Upstream::answering(redirect).await;
        let jar = jar(&[&upstream, &other, &stranger]);
        let client = jar.load("http_client").await;
        let mut all = vec![bound(&upstream.authority())];
        if granted {
            all.push(grant(&to.authority()));
        }
        let call = ToolCall { grants: grants(&all), ..call(client, "follow", json!({"ask": ask(&upstream, "/")})) };
        let finished = jar.call(with_secrets(call)).await;
        let reports = reports(&finished);
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert_eq!((&reports[0]["status"], &reports[1]["error"]), (&json!(302), &error));
        assert!(upstream.requests()[0].contains(TOKEN));
        assert_eq!(http_calls(&finished).len(), 2);
    }
    assert_eq!((other.accepted(), stranger.accepted()), (1, 0));
    let taken = other.requests()[0].clone();
    assert!(taken.starts_with("GET /taken?x=1 HTTP/1.1\r\n"), "{taken}");
    assert!(!taken.contains("canary") && !taken.contains("authorization"), "{taken}");
}

#[tokio::test]
async fn a_secret_that_no_header_can_carry_is_refused_in_words() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    for value in ["canary-\r\nx-injected: 1", "canary-\n", "canary-\0", "canary-\u{7f}", "canary-é"] {
        let mut call = with_secrets(send(client, &[ask(&upstream, "/")], &[bound(&upstream.authority())]));
        call.secrets = secrets(&[("token", value), ("key", "canary-key-0002"), ("query", CANARY)]);
        let finished = jar.call(call).await;
        assert_eq!(report(&finished)["error"], "ErrorCode::ConfigurationError");
        let error = http_calls(&finished)[0].error.clone().unwrap();
        assert!(error.contains("the secret `token` has a line break"), "{error}");
        assert!(finished.receipt.denied.is_empty());
    }
    let mut call = with_secrets(send(client, &[ask(&upstream, "/")], &[bound(&upstream.authority())]));
    call.secrets = secrets(&[("token", TOKEN)]);
    let finished = jar.call(call).await;
    let error = http_calls(&finished)[0].error.clone().unwrap();
    assert!(error.contains("the secret `key` is not stored"), "{error}");
    assert_eq!(upstream.accepted(), 0);
}

#[tokio::test]
async fn a_compressed_answer_is_refused_where_a_secret_is_bound() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\u{1f}xy";
    let upstream = Upstream::answering(answer).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let finished = jar.call(with_secrets(send(client, &[ask(&upstream, "/")], &[bound(&upstream.authority())]))).await;
    let error = report(&finished)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("HttpResponseContentCoding"), "{error}");
    // Where none is bound, the tool may unpack it.
    let finished = jar.call(send(client, &[ask(&upstream, "/")], &[grant(&upstream.authority())])).await;
    assert_eq!(report(&finished)["status"], 200);
}

#[tokio::test]
async fn a_bound_secret_crosses_no_public_network_in_the_clear() {
    let jar = jar(&[]);
    let client = jar.load("http_client").await;
    let ask = json!({"scheme": "http", "authority": "203.0.113.1:80", "path": "/"});
    let finished = jar.call(with_secrets(send(client, &[ask], &[bound("203.0.113.1:80")]))).await;
    assert!(report(&finished)["error"].is_string());
    let ask = json!({"scheme": "http", "authority": "8.8.8.8:80", "path": "/"});
    let finished = jar.call(with_secrets(send(client, &[ask], &[bound("8.8.8.8:80")]))).await;
    let error = http_calls(&finished)[0].error.clone().unwrap();
    assert!(error.contains("plain http is only for addresses that the operator allowed"), "{error}");
}
