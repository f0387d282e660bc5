//! A model provider that speaks OpenAI's chat completions and says what `script` says. It keeps account of every request.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::watch};

use crate::{
    chaos::traps::{At, Traps},
    http::{self, Request, STREAM, STREAM_END, Served, Site, piece},
    script::{Script, Tokens, script},
};

/// What one request asked for and what it was told.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) op: String,
    pub(crate) step: usize,
    /// Whether the answer was written to its end.
    pub(crate) whole: bool,
}

/// How it speaks.
#[derive(Default)]
pub(crate) struct Manner {
    /// `ADDRESS:PORT` of what tools with effects send to.
    pub(crate) effects: String,
    pub(crate) traps: Arc<Traps>,
}

pub(crate) struct Upstream {
    served: Served,
    model: Arc<Model>,
}

struct Model {
    manner: Manner,
    asked: Mutex<Vec<Asked>>,
    /// How often those who hang were told to say one word more.
    prompts: watch::Sender<u64>,
    /// Microseconds before the first word.
    thinks_us: AtomicU64,
}

impl Upstream {
    pub(crate) async fn start(manner: Manner) -> Result<Upstream> {
        let model = Arc::new(Model {
            manner,
            asked: Mutex::default(),
            prompts: watch::Sender::new(0),
            thinks_us: AtomicU64::new(0),
        });
        Ok(Upstream { served: Served::start(Arc::clone(&model)).await?, model })
    }

    /// What `OPENAI_BASE_URL` says.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.served.address)
    }

    /// All requests so far, in the order in which they came.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.model.lock().clone()
    }

    /// How long it thinks before the first word, from now on.
    pub(crate) fn think(&self, time: Duration) {
        self.model.thinks_us.store(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// Everybody who hangs says one word more.
    pub(crate) fn prompt(&self) {
        self.model.prompts.send_modify(|prompts| *prompts += 1);
    }
}

impl Model {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn say(&self, script: &Script, host: Option<usize>, out: &mut TcpStream) -> io::Result<()> {
        let mut chunks: Vec<String> = script.words.iter().map(|word| chunk(json!({"content": word}))).collect();
        for (index, (name, arguments)) in script.calls.iter().enumerate() {
            let function = json!({"name": name, "arguments": arguments.to_string()});
            let id = format!("call-{}-{}-{index}", script.op, script.step);
            chunks.push(chunk(
                json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}),
            ));
        }
        let reason = if script.calls.is_empty() { "stop" } else { "tool_calls" };
        let Tokens { input, cached, output } = script.tokens;
        let end = [
            data(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})),
            data(&json!({"choices": [], "usage": {
                "prompt_tokens": input, "prompt_tokens_details": {"cached_tokens": cached}, "completion_tokens": output,
                "total_tokens": input + output,
            }})),
            "data: [DONE]\n\n".to_owned(),
        ];
        if script.hangs {
            return self.hang(chunks, &end, out).await;
        }
        let traps = &self.manner.traps;
        if !traps.is_set(At::ModelMidway, host) {
            let text: String = chunks.iter().chain(&end).map(|text| piece(text)).collect();
            return out.write_all(format!("{STREAM}{text}{STREAM_END}").as_bytes()).await;
        }
        out.write_all(STREAM.as_bytes()).await?;
        let midway = chunks.len() / 2;
        for (at, text) in chunks.iter().enumerate() {
            out.write_all(piece(text).as_bytes()).await?;
            if at == midway {
                traps.pass(At::ModelMidway, host).await;
            }
        }
        let end: String = end.iter().map(|text| piece(text)).collect();
        out.write_all(format!("{end}{STREAM_END}").as_bytes()).await
    }

    /// The first word, then one for each prompt, over and over until whoever listens goes away.
    async fn hang(&self, words: Vec<String>, end: &[String], out: &mut TcpStream) -> io::Result<()> {
        let mut prompts = self.prompts.subscribe();
        out.write_all(STREAM.as_bytes()).await?;
        for word in words.iter().cycle() {
            out.write_all(piece(word).as_bytes()).await?;
            tokio::select! {
                changed = prompts.changed() => if changed.is_err() { break },
                // Nothing is sent to us any more: readable is the end.
                readable = out.readable() => return readable,
            }
        }
        let end: String = end.iter().map(|text| piece(text)).collect();
        out.write_all(format!("{end}{STREAM_END}").as_bytes()).await
    }
}

impl Site for Model {
    async fn answer(&self, request: Request, out: &mut TcpStream) -> io::Result<()> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(script) = script(messages, &self.manner.effects) else {
            let error =
                json!({"error": {"message": "the conversation names no operation", "type": "invalid_request_error"}});
            return http::json(out, "400 Bad Request", &error).await;
        };
        // Each host has a key of its own, which ends in its number.
        let host = request.header("authorization").and_then(|key| key.rsplit('-').next()?.parse().ok());
        let row = {
            let mut asked = self.lock();
            asked.push(Asked { op: script.op.clone(), step: script.step, whole: false });
            asked.len() - 1
        };
        self.manner.traps.pass(At::ModelAsked, host).await;
        let thinks_us = self.thinks_us.load(Ordering::Relaxed);
        if thinks_us > 0 {
            tokio::time::sleep(Duration::from_micros(thinks_us)).await;
        }
        self.say(&script, host, out).await?;
        self.lock()[row].whole = true;
        self.manner.traps.pass(At::ModelAnswered, host).await;
        Ok(())
    }
}

fn chunk(delta: Value) -> String {
    data(&json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": delta}],
    }))
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}
