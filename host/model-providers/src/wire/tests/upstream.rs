use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use domain::Problem;

use super::*;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const RECORDED: &str = include_str!("../../../tests/streams/openai.sse");

fn recorded_reply() -> (String, Vec<ModelEvent>) {
    recordings()[0].expected()
}

fn request() -> ModelRequest {
    ModelRequest::for_tests()
}

/// Answers every connection with the same bytes, then closes it or keeps it open in silence.
struct Upstream {
    address: std::net::SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Hang,
}

impl Upstream {
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    async fn start(answer: String, then: Then) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                // Every request here ends with the JSON object of its body.
                while !request.ends_with(b"}") {
                    let mut piece = [0; 4096];
                    match socket.read(&mut piece).await {
                        Ok(0) | Err(_) => break,
                        Ok(bytes) => request.extend_from_slice(&piece[..bytes]),
                    }
                }
                seen.lock().unwrap().push(String::from_utf8(request).unwrap());
                let _ = socket.write_all(answer.as_bytes()).await;
                if then == Then::Hang {
                    open.push(socket);
                }
            }
        });
        Upstream { address, requests, task }
    }

    fn model(&self, base_path: &str) -> Wire {
        self.speaks(base_path, Flavor::Compatible)
    }

    fn speaks(&self, base_path: &str, dialect: impl Dialect + 'static) -> Wire {
        let base_url = &format!("http://{}{base_path}", self.address);
        let address = Address { provider: "local", base_url, key: KEY.to_owned().into(), key_of: KeyOf::Tenant };
        Wire::new(Egress::new(vec![self.address]).unwrap(), address, dialect).unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(upstream: &Upstream) -> Read {
    collect(upstream.model("/v1").stream(&request()).await?).await
}

#[tokio::test]
async fn an_upstream_is_asked_as_openai_is() {
    let upstream = Upstream::start(format!("{HEAD}{RECORDED}"), Then::Close).await;
    assert_eq!(ask(&upstream).await.unwrap(), recorded_reply());
    for (base_path, line) in [
        ("/v1/", "POST /v1/chat/completions HTTP/1.1\r\n"),
        ("", "POST /chat/completions HTTP/1.1\r\n"),
        ("/v1?api-version=2", "POST /v1/chat/completions?api-version=2 HTTP/1.1\r\n"),
    ] {
        collect(upstream.model(base_path).stream(&request()).await.unwrap()).await.unwrap();
        let request = upstream.requests.lock().unwrap().last().unwrap().clone();
        assert!(request.starts_with(line), "{request}");
        assert!(request.contains("authorization: Bearer sk-very-secret\r\n"), "{request}");
        assert!(request.contains("content-type: application/json\r\n"), "{request}");
    }
}

#[tokio::test]
async fn anthropic_is_asked_as_it_wants_to_be() {
    let recorded = include_str!("../../../tests/streams/anthropic.sse");
    let upstream = Upstream::start(format!("{HEAD}{recorded}"), Then::Close).await;
    for (base_path, line) in [
        ("", "POST /v1/messages HTTP/1.1\r\n"),
        ("/", "POST /v1/messages HTTP/1.1\r\n"),
        ("/v1", "POST /v1/messages HTTP/1.1\r\n"),
        ("/proxy/v1/", "POST /proxy/v1/messages HTTP/1.1\r\n"),
    ] {
        let model = upstream.speaks(base_path, Messages);
        let (text, _) = collect(model.stream(&request()).await.unwrap()).await.unwrap();
        assert_eq!(text, "Ich prüfe das 🧮.");
        let request = upstream.requests.lock().unwrap().last().unwrap().clone();
        assert!(request.starts_with(line), "{request}");
        assert!(request.contains("x-api-key: sk-very-secret\r\n"), "{request}");
        assert!(request.contains("anthropic-version: 2023-06-01\r\n"), "{request}");
        assert!(!request.contains("authorization"), "{request}");
    }
    let overloaded =
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#;
    let answer = format!("HTTP/1.1 529 Overloaded\r\nconnection: close\r\nretry-after: 3\r\n\r\n{overloaded}");
    let upstream = Upstream::start(answer, Then::Close).await;
    let error = upstream.speaks("/v1", Messages).stream(&request()).await.err().unwrap();
    assert!(error.is_passing() && error.to_string().contains("Overloaded"), "{error}");
    assert_eq!(error.retry_after_seconds(), Some(3));
}

#[tokio::test]
async fn a_refusal_says_whose_turn_it_is_and_never_the_key() {
    let body = format!(r#"{{"error":{{"message":"what of {KEY} {}","type":"t"}}}}"#, "long ".repeat(1000));
    for (status, headers, code, words, retry_after) in [
        ("401 Unauthorized", "", "provider.key_refused", "provider key named `local`", None),
        ("403 Forbidden", "", "provider.key_refused", "provider key named `local`", None),
        ("404 Not Found", "", "provider.model_not_found", "`m-1`", None),
        ("429 Too Many Requests", "retry-after: 7\r\n", "provider.rate_limited", "too many requests", Some(7)),
        ("429 Too Many Requests", "retry-after: soon\r\n", "provider.rate_limited", "too many requests", None),
        ("400 Bad Request", "", "provider.request_refused", "what of [key] long", None),
        ("422 Unprocessable", "", "provider.request_refused", "what of [key] long", None),
        ("500 Internal Server Error", "", "provider.unavailable", "what of [key]", None),
        ("503 Unavailable", "retry-after: 9\r\n", "provider.unavailable", "what of [key]", Some(9)),
        ("529 Overloaded", "", "provider.unavailable", "what of [key]", None),
        ("302 Found", "location: http://127.0.0.1:1/\r\n", "provider.bad_stream", "another address", None),
        ("204 No Content", "", "provider.bad_stream", "status", None),
    ] {
        let body = if status.starts_with("204") { "" } else { body.as_str() };
        let answer = format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\n\r\n{body}");
        let upstream = Upstream::start(answer, Then::Close).await;
        let error = ask(&upstream).await.unwrap_err();
        assert_eq!((error.code(), error.retry_after_seconds()), (code, retry_after), "{status}");
        let said = error.to_string();
        assert!(said.contains(words) && said.len() < 800, "{said}");
        assert!(!format!("{error:?}").contains(KEY), "{error:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_misbehaves_costs_a_bounded_time() {
    let half = &RECORDED[..RECORDED.len() / 2];
    let hanging_refusal = "HTTP/1.1 400 Bad Request\r\n\r\n{\"error\":".to_owned();
    for (what, answer, then, code) in [
        ("nothing, then silence", String::new(), Then::Hang, "provider.timeout"),
        ("a head, then silence", HEAD.to_owned(), Then::Hang, "provider.timeout"),
        ("half an answer, then silence", format!("{HEAD}{half}"), Then::Hang, "provider.timeout"),
        ("half an answer, then the end", format!("{HEAD}{half}"), Then::Close, "provider.cut_short"),
        ("half a refusal, then silence", hanging_refusal, Then::Hang, "provider.request_refused"),
        (
            "a broken length",
            "HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\ndata: ".into(),
            Then::Close,
            "provider.cut_short",
        ),
        (
            "a huge length",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\ndata: ".into(),
            Then::Hang,
            "provider.bad_stream",
        ),
        ("no HTTP", "SSH-2.0-OpenSSH\r\n".into(), Then::Hang, "egress.connect_failed"),
        ("at once the end", String::new(), Then::Close, "egress.connect_failed"),
        ("a line without end", format!("{HEAD}data: {}", "x".repeat(2 << 20)), Then::Hang, "provider.bad_stream"),
    ] {
        let upstream = Upstream::start(answer, then).await;
        let mut model = upstream.model("/v1");
        if what.contains("then silence") {
            let short = Duration::from_millis(200);
            model.waits = Waits { first_byte: short, between_bytes: short };
        }
        let asked = async { collect(model.stream(&request()).await?).await };
        let error = tokio::time::timeout(Duration::from_secs(30), asked).await.expect(what).unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error:?}");
    }
    // An end that nobody closes after is an end.
    let upstream = Upstream::start(format!("{HEAD}{RECORDED}"), Then::Hang).await;
    assert_eq!(ask(&upstream).await.unwrap(), recorded_reply());
}

#[tokio::test]
async fn a_private_address_is_refused_and_an_odd_key_is_not_sent() {
    let upstream = Upstream::start(format!("{HEAD}{RECORDED}"), Then::Close).await;
    let mut model = upstream.model("/v1");
    model.egress = Egress::new(Vec::new()).unwrap();
    assert_eq!(model.stream(&request()).await.err().unwrap().code(), "egress.address_refused");
    let mut model = upstream.model("/v1");
    model.key = "line\nbreak".to_owned().into();
    assert_eq!(model.stream(&request()).await.err().unwrap().code(), "provider.key_refused");
    assert!(upstream.requests.lock().unwrap().is_empty());
    // What the operator chose needs no exception, and no key is sent where there is none.
    let mut model = upstream.model("/v1");
    model.egress = Egress::new(Vec::new()).unwrap();
    (model.chosen_by, model.key) = (ChosenBy::Operator, String::new().into());
    assert_eq!(collect(model.stream(&request()).await.unwrap()).await.unwrap(), recorded_reply());
    assert!(!upstream.requests.lock().unwrap()[0].contains("authorization"));
}
