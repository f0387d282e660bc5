//! A recorded call runs again on what it was given, and on nothing else.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use domain::{
    CallGrants, SecretString,
    grants::{Access, HttpGrant, OpenNamespace, http::BoundHeader},
};
use egress::Egress;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tool_api::{
    CallError, CallHost, Finished, HostError, Intent, OpenSecret, Progress, Receipt, Recording, Status, ToolCall,
    ToolExecutor, recording::RECORDING_BYTES_MAX,
};
use tool_executor::{Executor, Settings};

use crate::jar::{Jar, call, settings};

const CANARY: &str = "canary-5f3c9a7e21";

/// A tenant's store, and how often it was asked.
#[derive(Default)]
struct Store {
    entries: Mutex<BTreeMap<String, String>>,
    asked: AtomicUsize,
}

#[async_trait]
impl CallHost for Store {
    async fn get(&self, _: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if key.starts_with("big-") {
            return Ok(Some(vec![b'x'; 100_000].into()));
        }
        Ok(self.entries.lock().unwrap().get(key).cloned().map(Bytes::from))
    }

    async fn keys(&self, _: &str, after: Option<&str>, limit: u32) -> Result<Vec<String>, HostError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let entries = self.entries.lock().unwrap();
        let keys = entries.keys().filter(|key| after.is_none_or(|after| key.as_str() > after));
        Ok(keys.take(limit as usize).cloned().collect())
    }

    async fn sending(&self, _: Intent) -> Result<(), HostError> {
        Ok(())
    }

    fn progress(&self, _: Progress) {}
}

/// A server whose answers are never twice the same.
struct Site {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    serving: JoinSet<()>,
}

impl Site {
    async fn start() -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&connections);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut answers = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                answers.spawn(answer(stream, count.fetch_add(1, Ordering::Relaxed)));
            }
        });
        Site { address, connections, serving }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

/// Reads a request whole, and answers in several pieces with what it was sent in the header `x-secret`.
async fn answer(mut stream: TcpStream, count: usize) -> Option<()> {
    let mut request = Vec::new();
    let head = loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        let read = stream.read_buf(&mut request).await.ok()?;
        (read > 0).then_some(())?;
    };
    let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned);
    let length: usize = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
    while request.len() < head + length {
        (stream.read_buf(&mut request).await.ok()? > 0).then_some(())?;
    }
    let begin =
        format!("HTTP/1.1 200 OK\r\nx-count: {count}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n");
    stream.write_all(begin.as_bytes()).await.ok()?;
    for piece in 0..=count + 2 {
        let words = format!("piece {piece} of {count} {} ", header("x-secret:").unwrap_or_default()).repeat(50);
        stream.write_all(format!("{:x}\r\n{words}\r\n", words.len()).as_bytes()).await.ok()?;
        tokio::task::yield_now().await;
    }
    if !text.starts_with("get /broken") {
        stream.write_all(b"0\r\n\r\n").await.ok()?;
    }
    Some(())
}

fn jar(allowed: Vec<SocketAddr>) -> Jar {
    let cache_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests");
    let settings = Settings { egress: Egress::new(allowed).unwrap(), ..settings(cache_dir) };
    Jar { executor: Executor::start(settings).unwrap() }
}

fn granted(call: ToolCall, site: &Site, record: bool) -> ToolCall {
    let http = HttpGrant {
        host: site.address.to_string().parse().unwrap(),
        methods: ["GET", "POST", "DELETE"].map(str::to_owned).into(),
        plain_http: true,
        ..serde_json::from_value(json!({"host": "a.example"})).unwrap()
    };
    let notes = OpenNamespace { granted: "notes".into(), namespace: "notes".into(), access: Access::Write };
    let grants =
        CallGrants { http: vec![http], key_value: vec![notes], scratch_bytes: Some(1 << 20), ..CallGrants::default() };
    ToolCall { grants: Arc::new(grants), record, ..call }
}

/// What must be the same when a call runs again: everything but the times.
fn comparable(finished: &Finished) -> Value {
    let Receipt { fuel_used, host_call_count, host_call_counts, denied, logs, .. } = &finished.receipt;
    let host_calls =
        finished.receipt.host_calls.iter().cloned().map(|call| tool_api::HostCall { duration_us: 0, ..call });
    json!({
        "outcome": finished.outcome,
        "fuel": fuel_used,
        "count": host_call_count,
        "counts": host_call_counts,
        "denied": denied,
        "logs": logs,
        "calls": host_calls.collect::<Vec<_>>(),
        "changes": format!("{:?}", finished.changes),
    })
}

#[tokio::test]
async fn the_same_component_does_the_same_again() {
    let mut site = Site::start().await;
    let jar = jar(vec![site.address]);
    let artifact = jar.load("record_inputs").await;
    let store = Arc::new(Store::default());
    store.entries.lock().unwrap().extend([("a".into(), "1".into()), ("count".into(), "4".into())]);
    let asked = call(artifact, "run", json!({"url": site.url()}));
    let finished = jar.executor.call(granted(asked.clone(), &site, true), store.clone()).await.unwrap();
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
    let recording = finished.recording.clone().unwrap();
    let recording: Recording = serde_json::from_str(&serde_json::to_string(&recording).unwrap()).unwrap();
    assert!(!recording.truncated && recording.http.len() == 4, "{recording:?}");

    // The world has moved on, and must not be asked.
    store.entries.lock().unwrap().clear();
    let (connections, reads) = (site.connections.load(Ordering::Relaxed), store.asked.load(Ordering::Relaxed));
    site.serving.shutdown().await;
    let recording = Arc::new(recording);
    for _ in 0..3 {
        let again = jar.executor.replay(granted(asked.clone(), &site, false), recording.clone()).await.unwrap();
        assert_eq!(again.missing, [""; 0]);
        assert_eq!(comparable(&again.finished), comparable(&finished));
        assert!(again.finished.recording.is_none());
    }
    assert_eq!(site.connections.load(Ordering::Relaxed), connections);
    assert_eq!(store.asked.load(Ordering::Relaxed), reads);
}

#[tokio::test]
async fn two_calls_are_not_given_the_same() {
    let site = Site::start().await;
    let jar = jar(vec![site.address]);
    let artifact = jar.load("record_inputs").await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let asked = granted(call(artifact, "run", json!({"url": site.url()})), &site, true);
        let finished = jar.executor.call(asked, Arc::new(Store::default())).await.unwrap();
        let seed = finished.recording.unwrap().random_seed;
        assert_eq!(seed.len(), 64);
        seen.push((seed, finished.outcome.structured.unwrap()["chance"].clone()));
    }
    assert_ne!(seen[0].0, seen[1].0);
    assert_ne!(seen[0].1, seen[1].1);
}

#[tokio::test]
async fn a_changed_component_is_told_what_is_missing() {
    let site = Site::start().await;
    let jar = jar(vec![site.address]);
    let (old, new) = (jar.load("record_inputs").await, jar.load("record_changed").await);
    let store = Arc::new(Store::default());
    store.entries.lock().unwrap().extend([("a".into(), "1".into()), ("new".into(), "secretly there".into())]);
    let arguments = json!({"url": site.url()});
    let asked = granted(call(old, "run", arguments.clone()), &site, true);
    let finished = jar.executor.call(asked, store.clone()).await.unwrap();
    let (connections, reads) = (site.connections.load(Ordering::Relaxed), store.asked.load(Ordering::Relaxed));

    let recording = Arc::new(finished.recording.clone().unwrap());
    let asked = granted(call(new, "run", arguments), &site, false);
    let again = jar.executor.replay(asked, recording).await.unwrap();
    let saw = again.finished.outcome.structured.clone().unwrap();
    let page = |at: usize| saw[at].as_str().unwrap();
    assert_eq!(saw[0], "Some(\"1\")");
    assert_eq!((&saw[1], &saw[2]), (&saw[0], &saw[0]), "an entry that was read can be read more often");
    assert!(page(3).starts_with("failed"), "{saw}");
    assert_eq!((page(4), page(5)), ("200", "200"));
    assert!(page(6).contains("not in the recording") && page(7).contains("not in the recording"), "{saw}");
    let site_url = site.url();
    assert_eq!(
        again.missing,
        [
            "wasi:keyvalue get notes/new".to_owned(),
            format!("wasi:http GET {site_url}"),
            format!("wasi:http DELETE {site_url}"),
            "wasi:clocks/wall-clock".to_owned(),
        ]
    );
    assert_ne!(again.finished.receipt.fuel_used, finished.receipt.fuel_used);
    assert_eq!(site.connections.load(Ordering::Relaxed), connections, "nothing left the host");
    assert_eq!(store.asked.load(Ordering::Relaxed), reads);
}

#[tokio::test]
async fn no_secret_is_in_a_recording() {
    let site = Site::start().await;
    let jar = jar(vec![site.address]);
    let artifact = jar.load("record_inputs").await;
    let store = Arc::new(Store::default());
    store.entries.lock().unwrap().insert("secret".into(), format!("kept: {CANARY}"));
    let with_secrets = |value: &str, record| {
        let asked = granted(call(artifact, "run", json!({"url": site.url()})), &site, record);
        let mut grants = CallGrants::clone(&asked.grants);
        let (readable, bound) = ("readable".parse().unwrap(), "bound".parse().unwrap());
        grants.secrets.push(readable);
        grants.http[0].headers.push(BoundHeader { name: "x-secret".into(), secret: bound, format: "{}".into() });
        let secret = |readable| OpenSecret { value: SecretString::from(value), readable };
        let secrets = [("readable", secret(true)), ("bound", secret(false))];
        let secrets = secrets.map(|(name, secret)| (name.parse().unwrap(), secret));
        ToolCall { grants: Arc::new(grants), secrets: Arc::new(secrets.into()), ..asked }
    };
    let finished = jar.executor.call(with_secrets(CANARY, true), store).await.unwrap();
    assert_eq!(finished.receipt.secrets_used.len(), 2, "{finished:?}");
    let recording = finished.recording.unwrap();
    assert!(!recording.http.is_empty() && !recording.key_value.is_empty());
    let mut texts = vec![serde_json::to_string(&recording).unwrap()];
    let bodies = recording.http.iter().flat_map(|exchange| &exchange.response).map(|response| {
        let whole: Vec<u8> = response.body.iter().flat_map(|piece| piece.0.to_vec()).collect();
        String::from_utf8_lossy(&whole).into_owned()
    });
    texts.extend(bodies);
    texts.extend(
        recording
            .key_value
            .iter()
            .flat_map(|read| &read.value)
            .map(|value| String::from_utf8_lossy(&value.0).into_owned()),
    );
    for text in &texts {
        assert!(!text.contains(CANARY) && !text.contains(&BASE64_STANDARD.encode(CANARY)), "{text}");
    }
    assert!(texts.iter().any(|text| text.starts_with("kept: ") && text.len() > 6), "the entry itself is there");

    let again = jar.executor.replay(with_secrets("[secret]", false), Arc::new(recording)).await.unwrap();
    assert_eq!(again.finished.outcome.structured.unwrap()["secret"], "[secret]");
    assert_eq!(again.missing, [""; 0]);
}

#[tokio::test]
async fn a_recording_that_grew_too_large_is_not_replayed() {
    let site = Site::start().await;
    let jar = jar(Vec::new());
    let artifact = jar.load("record_inputs").await;
    let asked = call(artifact, "read_much", json!({"times": 30}));
    let finished = jar.executor.call(granted(asked.clone(), &site, true), Arc::new(Store::default())).await.unwrap();
    assert_eq!(finished.outcome.status, Status::Ok, "the call itself goes on: {finished:?}");
    let recording = finished.recording.unwrap();
    assert!(recording.truncated);
    let bytes: usize = recording.key_value.iter().flat_map(|read| &read.value).map(|value| value.0.len()).sum();
    assert!((RECORDING_BYTES_MAX / 2..=RECORDING_BYTES_MAX).contains(&bytes), "{bytes}");
    let refused = jar.executor.replay(granted(asked, &site, false), Arc::new(recording)).await;
    assert!(matches!(refused, Err(CallError::Internal(_))));
}

#[tokio::test]
async fn a_call_is_recorded_only_when_it_asks() {
    let jar = jar(Vec::new());
    let calc = jar.load("calc").await;
    let finished = jar.call(call(calc, "evaluate", json!({"expression": "1"}))).await;
    assert!(finished.recording.is_none());
}
