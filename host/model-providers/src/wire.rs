//! One model call over HTTP: the request goes out once, and the events of its answer are read as they come. What all
//! providers have in common; how each is asked and how it answers is its `Dialect`.

mod refusal;
pub(crate) mod reply;
mod sse;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{ExposeSecret, SecretString};
use egress::{ChosenBy, Egress, EgressError, Request, Response};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::Value;
use url::Url;

use crate::{KeyOf, ModelEvent, ModelProvider, ModelRequest, ModelStream, ProviderError, tokens};
use refusal::Asked;
use reply::{Fault, Reply};
pub(crate) use sse::Lines;

/// Longest wait for the beginning of an answer. Models that think first take tens of seconds.
const FIRST_BYTE_SECONDS_MAX: u64 = 60;
/// Longest wait in the middle of an answer.
const BETWEEN_BYTES_SECONDS_MAX: u64 = 60;
/// Most bytes of one answer. The longest real ones, with a frame around every token, stay below.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most bytes of a refusal's body that are read for the message in it.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// How long an ended answer's connection is listened to for its last bytes, so that it can be used again.
const REUSE_WAIT_MS_MAX: u64 = 250;

/// How a family of providers is spoken to. Pure.
pub(crate) trait Dialect: Send + Sync {
    /// What comes behind the base URL.
    fn path(&self, base_url: &Url) -> &'static [&'static str];
    /// The header that carries the key, and its value.
    fn authentication(&self, key: &str) -> (HeaderName, String);
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
    fn body(&self, request: &ModelRequest) -> Value;
    fn lines(&self, request: &ModelRequest) -> Lines;
    /// Of one answer.
    fn frames(&self) -> Box<dyn Frames>;
}

/// Reads the events of one answer.
pub(crate) trait Frames: Send {
    /// Takes an event's data into the reply; gives the text that it adds.
    fn read(&mut self, reply: &mut Reply, data: &str) -> Result<Option<String>, Fault>;
}

/// How long to wait for a provider. Tests wait less.
#[derive(Debug, Clone, Copy)]
struct Waits {
    first_byte: Duration,
    between_bytes: Duration,
}

const WAITS: Waits = Waits {
    first_byte: Duration::from_secs(FIRST_BYTE_SECONDS_MAX),
    between_bytes: Duration::from_secs(BETWEEN_BYTES_SECONDS_MAX),
};

/// A provider behind an address.
pub(crate) struct Wire {
    egress: Egress,
    provider: String,
    url: String,
    key: SecretString,
    key_of: KeyOf,
    chosen_by: ChosenBy,
    dialect: Arc<dyn Dialect>,
    waits: Waits,
}

/// Whose provider it is, where, and with which key.
pub(crate) struct Address<'a> {
    pub(crate) provider: &'a str,
    pub(crate) base_url: &'a str,
    pub(crate) key: SecretString,
    pub(crate) key_of: KeyOf,
}

impl Wire {
    pub(crate) fn new(
        egress: Egress,
        address: Address<'_>,
        dialect: impl Dialect + 'static,
    ) -> Result<Wire, ProviderError> {
        let Address { provider, base_url, key, key_of } = address;
        let chosen_by = match key_of {
            KeyOf::Platform => ChosenBy::Operator,
            KeyOf::Tenant | KeyOf::Request => ChosenBy::Tenant,
        };
        let mut url = match chosen_by {
            ChosenBy::Tenant => egress.check_url(base_url)?,
            ChosenBy::Operator => Url::parse(base_url).map_err(|_| EgressError::BadUrl("it is not a URL"))?,
        };
        let path = dialect.path(&url);
        url.path_segments_mut()
            .map_err(|()| EgressError::BadUrl("it must begin with https://"))?
            .pop_if_empty()
            .extend(path);
        Ok(Wire {
            egress,
            provider: provider.to_owned(),
            url: url.into(),
            key,
            key_of,
            chosen_by,
            dialect: Arc::new(dialect),
            waits: WAITS,
        })
    }

    fn headers(&self) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        for (name, value) in self.dialect.headers() {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let key = self.key.expose_secret();
        if !key.is_empty() {
            let (name, value) = self.dialect.authentication(key);
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Some(headers)
    }

    fn asked<'a>(&'a self, request: &'a ModelRequest) -> Asked<'a> {
        let (provider, model) = (self.provider.as_str(), request.model.name.as_str());
        Asked { provider, model, key_of: self.key_of, key: self.key.expose_secret() }
    }
}

#[async_trait]
impl ModelProvider for Wire {
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
        let asked = self.asked(request);
        // A key that no header can carry is a key that the provider would refuse.
        let headers = self.headers().ok_or_else(|| asked.key_refused())?;
        let body = self.dialect.body(request).to_string();
        let response = self
            .egress
            .send(Request {
                method: Method::POST,
                url: self.url.clone(),
                headers,
                body: Bytes::from(body),
                chosen_by: self.chosen_by,
                first_byte: self.waits.first_byte,
                between_bytes: self.waits.between_bytes,
                body_bytes_max: BODY_BYTES_MAX,
            })
            .await
            .map_err(|error| sending(&self.provider, error))?;
        let Response { status, headers, body } = response;
        if status != StatusCode::OK {
            return Err(asked.by_status(status, &headers, &beginning(body).await));
        }
        let reader = Reader {
            provider: self.provider.clone(),
            key: self.key.clone(),
            key_of: self.key_of,
            request: request.clone(),
            lines: self.dialect.lines(request),
            frames: self.dialect.frames(),
            body,
        };
        Ok(reader.events())
    }
}

/// Of a refusal.
async fn beginning(mut body: BoxStream<'static, Result<Bytes, EgressError>>) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(Ok(piece)) = body.next().await {
        read.extend_from_slice(&piece[..piece.len().min(REFUSAL_BYTES_MAX - read.len())]);
        if read.len() == REFUSAL_BYTES_MAX {
            break;
        }
    }
    read
}

/// An answer that is being read.
struct Reader {
    provider: String,
    key: SecretString,
    key_of: KeyOf,
    request: ModelRequest,
    lines: Lines,
    frames: Box<dyn Frames>,
    body: BoxStream<'static, Result<Bytes, EgressError>>,
}

impl Reader {
    fn events(self) -> ModelStream {
        async_stream::try_stream! {
            let Reader { provider, key, key_of, request, lines, frames: mut format, body } = self;
            let mut reply = Reply::default();
            let mut frames = sse::frames(body, lines);
            while !reply.is_done() {
                let frame = match frames.next().await {
                    None => break,
                    Some(Ok(frame)) => frame,
                    // The answer was whole before the connection failed, or before something unreadable came.
                    Some(Err(_)) if reply.is_whole() => break,
                    Some(Err(error)) => Err(reading(&provider, error))?,
                };
                match format.read(&mut reply, &frame) {
                    Ok(text) => {
                        if let Some(piece) = reply.unseen_yet() {
                            yield ModelEvent::Unseen(piece);
                        }
                        if let Some(text) = text {
                            yield ModelEvent::Text(text);
                        }
                    }
                    Err(Fault::Bad(_)) if reply.is_whole() => break,
                    Err(Fault::Bad(reason)) => Err(ProviderError::BadStream { provider: provider.clone(), reason })?,
                    Err(Fault::Said(error)) => {
                        let (model, key) = (request.model.name.as_str(), key.expose_secret());
                        Err(Asked { provider: &provider, model, key_of, key }.by_kind(&error))?;
                    }
                }
            }
            if !reply.is_whole() {
                Err(if reply.is_untouched() {
                    ProviderError::BadStream { provider, reason: "it is no event stream" }
                } else {
                    ProviderError::CutShort { provider }
                })?;
                return;
            }
            if !reply.has_usage() {
                tokens::load().await;
            }
            for event in reply.end(|| tokens::count_request(&request)) {
                yield event;
            }
            // A connection whose answer was read to its last byte is used again.
            let rest = frames.try_for_each(|_| async { Ok(()) });
            let _ = tokio::time::timeout(Duration::from_millis(REUSE_WAIT_MS_MAX), rest).await;
        }
        .boxed()
    }
}

fn sending(provider: &str, error: EgressError) -> ProviderError {
    let provider = provider.to_owned();
    match error {
        EgressError::Timeout { .. } => ProviderError::Timeout { provider },
        EgressError::TooLarge { .. } => ProviderError::BadStream { provider, reason: "it is longer than 16 MiB" },
        other => ProviderError::Egress(other),
    }
}

fn reading(provider: &str, error: sse::Fault) -> ProviderError {
    match error {
        sse::Fault::Bad(reason) => ProviderError::BadStream { provider: provider.to_owned(), reason },
        sse::Fault::Transport(EgressError::ConnectFailed { .. }) => {
            ProviderError::CutShort { provider: provider.to_owned() }
        }
        sse::Fault::Transport(error) => sending(provider, error),
    }
}

#[cfg(test)]
pub(crate) mod tests;
