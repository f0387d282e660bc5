//! A model provider that says what a test wants: OpenAI's chat completions over a bare socket.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub(super) const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// Answers each connection with the next of its scripts, then closes it.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    scripts: Arc<Mutex<VecDeque<Script>>>,
    serving: JoinHandle<()>,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) line: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Value,
}

#[derive(Debug, Clone)]
pub(super) struct Script {
    answer: Vec<u8>,
    /// Keeps the connection open in silence afterwards.
    hangs: bool,
}

impl Script {
    /// These bytes, and the end of the connection.
    pub(super) fn raw(answer: impl Into<Vec<u8>>) -> Script {
        Script { answer: answer.into(), hangs: false }
    }

    /// These bytes, and then nothing.
    pub(super) fn hang(answer: impl Into<Vec<u8>>) -> Script {
        Script { answer: answer.into(), hangs: true }
    }

    pub(super) fn refusal(status: &str, headers: &str, body: &Value) -> Script {
        let body = body.to_string();
        let length = body.len();
        Script::raw(format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\
             {headers}\r\n{body}"
        ))
    }

    /// Chunks of a chat completion, whole: with the last line that says so.
    pub(super) fn chunks(chunks: &[Value]) -> Script {
        let lines: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
        Script::raw(format!("{STREAM}{lines}data: [DONE]\n\n"))
    }

    /// An answer in words.
    pub(super) fn says(words: &[&str], input_tokens: u64, cached: u64, output_tokens: u64) -> Script {
        let said = words.iter().map(|word| delta(json!({"content": word})));
        let end = [finish("stop"), usage(input_tokens, cached, output_tokens)];
        Script::chunks(&said.chain(end).collect::<Vec<_>>())
    }
}

pub(super) fn delta(delta: Value) -> Value {
    json!({"id": "c-1", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": delta}]})
}

/// A fragment of a tool call.
pub(super) fn fragment(index: u64, fragment: Value) -> Value {
    let mut call = json!({"index": index});
    call.as_object_mut().unwrap().extend(fragment.as_object().unwrap().clone());
    delta(json!({"tool_calls": [call]}))
}

pub(super) fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

pub(super) fn usage(input_tokens: u64, cached: u64, output_tokens: u64) -> Value {
    json!({"choices": [], "usage": {
        "prompt_tokens": input_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }})
}

impl Upstream {
    pub(super) async fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, scripts) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<Mutex<VecDeque<Script>>>::default());
        let (seen, left) = (asked.clone(), scripts.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        let serving = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let Some(request) = read(&mut socket).await else { continue };
                seen.lock().unwrap().push(request);
                let script = left.lock().unwrap().pop_front().expect("the upstream was asked once too often");
                // In small pieces, so that lines, characters and fragments are torn apart on their way.
                for piece in script.answer.chunks(if script.answer.len() < 10_000 { 11 } else { 16_384 }) {
                    if socket.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                match script.hangs {
                    true => open.push(socket),
                    false => drop(socket.shutdown().await),
                }
            }
        });
        Upstream { address, asked, scripts, serving }
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What it says next.
    pub(super) fn then(&self, script: Script) -> &Upstream {
        self.scripts.lock().unwrap().push_back(script);
        self
    }

    /// Takes the requests that came since the last time. Every script must have been played.
    pub(super) fn asked(&self) -> Vec<Asked> {
        assert_eq!(self.scripts.lock().unwrap().len(), 0, "the upstream was not asked for all it has to say");
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn read(socket: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let line = lines.next().unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while bytes.len() < head_end + length {
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(Asked { line, headers, body: serde_json::from_slice(&bytes[head_end..]).unwrap() })
}
