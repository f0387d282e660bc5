//! A model that says what a test tells it to, when the test tells it to.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use model_providers::{Endpoint, EndpointKind, KeyOf};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

#[derive(Debug, Clone)]
pub(crate) enum Act {
    Say(&'static str),
    Call(&'static str, Value),
    /// Says this of a chat completion, as it is.
    Delta(Value),
    /// Breaks off.
    Cut,
    /// Reports so much input and output, in place of ten and five.
    Report(u64, u64),
    /// Says nothing until it is let go on.
    Hang(Arc<Notify>),
    /// Refuses with this status instead of answering.
    Refuse(u16),
}

/// Answers each request with the next script.
#[derive(Clone)]
pub(crate) struct Puppet {
    address: SocketAddr,
    scripts: Arc<Mutex<VecDeque<Vec<Act>>>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Puppet {
    pub(crate) async fn start() -> Puppet {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let puppet = Puppet { address, scripts: Arc::default(), asked: Arc::default() };
        let serving = puppet.clone();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let puppet = serving.clone();
                // A client may leave at any moment.
                tokio::spawn(async move { puppet.answer(stream).await.ok() });
            }
        });
        puppet
    }

    pub(crate) fn then(&self, script: impl IntoIterator<Item = Act>) -> &Puppet {
        self.scripts.lock().unwrap().push_back(script.into_iter().collect());
        self
    }

    /// The bodies of the requests so far.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    /// Until it has been asked so often.
    pub(crate) async fn was_asked(&self, times: usize) {
        while self.asked().len() < times {
            tokio::task::yield_now().await;
        }
    }

    /// Where models of the provider `puppet` are.
    pub(crate) fn platform(&self) -> BTreeMap<String, Endpoint> {
        let endpoint = Endpoint {
            kind: EndpointKind::OpenaiCompatible,
            base_url: Some(format!("http://{}/v1", self.address)),
            api_key: String::new().into(),
            key_of: KeyOf::Platform,
        };
        BTreeMap::from([("puppet".to_owned(), endpoint)])
    }

    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut line, mut bytes) = (String::new(), 0);
        while stream.read_line(&mut line).await? > 2 {
            if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                bytes = length.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; bytes];
        stream.read_exact(&mut body).await?;
        self.asked.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        let script = self.scripts.lock().unwrap().pop_front().expect("the model is asked once too often");
        if let [Act::Refuse(status)] = script.as_slice() {
            let head = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return stream.write_all(head.as_bytes()).await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await?;
        let (mut calls, mut tokens) = (0, (10, 5));
        for act in script {
            let delta = match act {
                Act::Say(text) => json!({"content": text}),
                Act::Call(name, arguments) => {
                    calls += 1;
                    let function = json!({"name": name, "arguments": arguments.to_string()});
                    json!({"tool_calls": [{"index": calls - 1, "id": format!("call_{calls}"), "function": function}]})
                }
                Act::Hang(until) => {
                    until.notified().await;
                    continue;
                }
                Act::Delta(delta) => delta,
                Act::Cut => return Ok(()),
                Act::Report(input, output) => {
                    tokens = (input, output);
                    continue;
                }
                Act::Refuse(_) => panic!("a refusal is the whole answer"),
            };
            stream.write_all(frame(&json!({"choices": [{"index": 0, "delta": delta}]})).as_bytes()).await?;
        }
        let finish = if calls > 0 { "tool_calls" } else { "stop" };
        let usage = json!({"prompt_tokens": tokens.0, "completion_tokens": tokens.1});
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": usage});
        stream.write_all(frame(&end).as_bytes()).await?;
        stream.write_all(b"data: [DONE]\n\n").await
    }
}

fn frame(data: &Value) -> String {
    format!("data: {data}\n\n")
}
