//! What the guest SDK makes of many calls of the host, against the host itself. Its own tests run without one.

use std::{net::SocketAddr, path::Path, sync::Arc};

use domain::{
    CallGrants,
    grants::{Access, HttpGrant, OpenNamespace},
};
use egress::Egress;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tool_api::{Status, ToolCall};
use tool_executor::{Executor, Settings};

use crate::jar::{Jar, call, settings};

/// Larger than what a host or a socket holds.
const LARGE_BYTES: usize = 3 << 20;

/// Answers each connection once: with what it was sent, or before it was sent anything where `/early` is asked for.
async fn serve(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // One after the other: the calls of this test are, too.
        let _ = answer(stream).await;
    }
}

async fn answer(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let lower = line.to_ascii_lowercase();
        if let Some(bytes) = lower.strip_prefix("content-length:") {
            length = bytes.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&lower);
    }
    if head.starts_with("post /early") {
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge").await?;
        stream.flush().await?;
        // Takes the rest, so that the answer is not lost in a reset.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Ok(());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let parts = head.lines().filter(|line| line.starts_with("x-part:")).count();
    let text = format!("{} of x in {parts} parts", body.iter().filter(|byte| **byte == b'x').count());
    let path = head.split(' ').nth(1).unwrap_or_default();
    let chunks = format!("{:x}\r\n{text}\r\n{:x}\r\n{path}\r\n0\r\n\r\n", text.len(), path.len());
    let answer =
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all((answer.to_owned() + &chunks).as_bytes()).await?;
    stream.shutdown().await
}

async fn ask(jar: &Jar, at: SocketAddr, function: &str, arguments: Value) -> String {
    let http: HttpGrant =
        serde_json::from_value(json!({"host": at, "methods": ["GET", "POST"], "plain_http": true})).unwrap();
    let namespace = OpenNamespace { granted: "n".into(), namespace: "n".into(), access: Access::Write };
    let grants = CallGrants { http: vec![http], key_value: vec![namespace], ..CallGrants::default() };
    let artifact = jar.load("sdk").await;
    let finished = jar.call(ToolCall { grants: Arc::new(grants), ..call(artifact, function, arguments) }).await;
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    finished.outcome.for_model()
}

#[tokio::test]
async fn the_sdk_and_the_host_understand_each_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let cache_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests");
    let egress = Egress::new([at].into()).unwrap();
    let jar = Jar { executor: Executor::start(Settings { egress, ..settings(cache_dir) }).unwrap() };
    let url = |path: &str| format!("http://{at}{path}");
    let asking = async {
        let small = ask(&jar, at, "post", json!({"url": url("/p?q=1"), "bytes": 1})).await;
        assert_eq!(small, "200 text/plain 1 of x in 2 parts/p?q=1");
        let large = ask(&jar, at, "post", json!({"url": url("/p"), "bytes": LARGE_BYTES})).await;
        assert_eq!(large, format!("200 text/plain {LARGE_BYTES} of x in 2 parts/p"));
        let early = ask(&jar, at, "post", json!({"url": url("/early"), "bytes": LARGE_BYTES})).await;
        assert_eq!(early, "413 none large");
        let head = ask(&jar, at, "head", json!({"url": url("/"), "bytes": 4})).await;
        assert_eq!(head, format!("0 of {}", " x in 0 parts/?a%20b=c%26d".len()));
        let keys = ask(&jar, at, "keys", json!({"count": 250})).await;
        assert_eq!(keys, "250 true key-0249 [Some([48]), Some([49]), None]");
    };
    tokio::select! {
        () = asking => {}
        () = serve(listener) => {}
    }
}
