//! A receiver of webhooks, which verifies what it hears with the specification's own library.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use domain::{ExposeSecret, SecretString};
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request that came.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Heard {
    pub(super) fn id(&self) -> String {
        self.headers["webhook-id"].clone()
    }

    pub(super) fn with_body(&self, body: &str) -> Heard {
        Heard { body: body.to_owned(), ..self.clone() }
    }

    pub(super) fn verifies(&self, secret: &SecretString) -> bool {
        let webhook = Webhook::new(secret.expose_secret()).unwrap();
        let timestamp = self.headers["webhook-timestamp"].parse().unwrap();
        // Not its `verify`: the time of the test's clock may be days ahead.
        let signature = webhook.sign(&self.headers["webhook-id"], timestamp, self.body.as_bytes()).unwrap();
        self.headers["webhook-signature"].split(' ').any(|signed| signed == signature)
    }

    /// What it says, verified.
    #[track_caller]
    pub(super) fn verified(&self, secret: &SecretString) -> Value {
        assert!(self.verifies(secret), "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_str(&self.body).unwrap()
    }
}

pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

struct State {
    heard: Mutex<Vec<Heard>>,
    connections: AtomicUsize,
    /// Status, and one header.
    answer: Mutex<(String, String)>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    pub(super) async fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Mutex::new(("200 OK".to_owned(), "x: y".to_owned()));
        let state = Arc::new(State { heard: Mutex::default(), connections: AtomicUsize::new(0), answer });
        let shared = state.clone();
        #[expect(clippy::disallowed_methods, reason = "aborted when dropped")]
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.connections.fetch_add(1, Ordering::SeqCst);
                #[expect(clippy::disallowed_methods, reason = "one answer; ends with the test's runtime")]
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Receiver { address, state, serving }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub(super) fn heard(&self) -> Vec<Heard> {
        self.state.heard.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// What it answers from now on.
    pub(super) fn answer(&self, status: &str, header: &str) {
        *self.state.answer.lock().unwrap() = (status.to_owned(), header.to_owned());
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    let heard = loop {
        if let Some(heard) = parse(&bytes) {
            break heard;
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    };
    state.heard.lock().unwrap().push(heard);
    let (status, header) = state.answer.lock().unwrap().clone();
    let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n{header}\r\n\r\n");
    // Whoever asked may have left.
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// `None` until the whole request is there.
fn parse(bytes: &[u8]) -> Option<Heard> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    let headers: BTreeMap<String, String> = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers["content-length"].parse::<usize>().unwrap();
    let body = bytes[end + 4..].get(..length)?;
    Some(Heard { headers, body: String::from_utf8(body.to_vec()).unwrap() })
}
