//! A model behind OpenAI's chat completions that says what a test wants, over a bare socket.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// Answers one connection after the other with the next of its answers.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Value>>>,
    serving: JoinHandle<()>,
}

/// Chunks of a completion.
pub(crate) struct Answer {
    pub(crate) chunks: Vec<Value>,
    /// Otherwise the connection stays open in silence after them.
    pub(crate) ends: bool,
}

impl Answer {
    /// These words, whole.
    pub(crate) fn says(words: &str, input_tokens: u64, output_tokens: u64) -> Answer {
        let chunks = vec![delta(json!({"content": words})), finish("stop"), usage(input_tokens, 0, output_tokens)];
        Answer { chunks, ends: true }
    }
}

pub(crate) fn delta(delta: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta}]})
}

pub(crate) fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

pub(crate) fn usage(input_tokens: u64, cached: u64, output_tokens: u64) -> Value {
    json!({"choices": [], "usage": {
        "prompt_tokens": input_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens": output_tokens,
    }})
}

impl Upstream {
    pub(crate) async fn start(answers: Vec<Answer>) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<Value>>>::default();
        let seen = asked.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        let serving = tokio::spawn(async move {
            let (mut answers, mut open) = (answers.into_iter(), Vec::new());
            while let Ok((mut socket, _)) = listener.accept().await {
                let Some(body) = read(&mut socket).await else { continue };
                seen.lock().unwrap().push(body);
                // Who asks too often gets nothing, and the test counts what was asked.
                let Some(answer) = answers.next() else { continue };
                let chunks: String = answer.chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
                let end = if answer.ends { "data: [DONE]\n\n" } else { "" };
                let _ = socket.write_all(format!("{HEAD}{chunks}{end}").as_bytes()).await;
                match answer.ends {
                    true => drop(socket.shutdown().await),
                    false => open.push(socket),
                }
            }
        });
        Upstream { address, asked, serving }
    }

    /// The bodies of all requests.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A request's body. `None` when the connection ends before it.
async fn read(socket: &mut TcpStream) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..at].to_vec()).unwrap().to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if let Some(body) = bytes.get(at + 4..at + 4 + length.parse::<usize>().unwrap()) {
                return Some(serde_json::from_slice(body).unwrap());
            }
        }
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}
