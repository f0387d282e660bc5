//! OpenAI and every address that speaks its chat completions, streamed.

mod assemble;
mod body;
mod refusal;
mod sse;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{ExposeSecret, SecretString};
use egress::{ChosenBy, Egress, EgressError, Request, Response};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use crate::{Endpoint, EndpointKind, ModelEvent, ModelProvider, ModelRequest, ModelStream, ProviderError, tokens};
use assemble::{Assembler, Fault};
use refusal::Refused;

const OPENAI_URL: &str = "https://api.openai.com/v1";
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

pub(crate) struct OpenAi {
    egress: Egress,
    provider: String,
    url: String,
    kind: EndpointKind,
    key: SecretString,
    chosen_by: ChosenBy,
    waits: Waits,
}

impl OpenAi {
    pub(crate) fn new(
        egress: Egress,
        provider: &str,
        endpoint: Endpoint,
        chosen_by: ChosenBy,
    ) -> Result<OpenAi, ProviderError> {
        let base_url = match (endpoint.base_url, endpoint.kind) {
            (Some(url), _) => url,
            (None, EndpointKind::Openai) => OPENAI_URL.to_owned(),
            (None, EndpointKind::OpenaiCompatible) => {
                return Err(ProviderError::BaseUrlMissing { provider: provider.to_owned() });
            }
        };
        let mut url = match chosen_by {
            ChosenBy::Tenant => egress.check_url(&base_url)?,
            ChosenBy::Operator => Url::parse(&base_url).map_err(|_| EgressError::BadUrl("it is not a URL"))?,
        };
        url.path_segments_mut()
            .map_err(|()| EgressError::BadUrl("it must begin with https://"))?
            .pop_if_empty()
            .extend(["chat", "completions"]);
        Ok(OpenAi {
            egress,
            provider: provider.to_owned(),
            url: url.into(),
            kind: endpoint.kind,
            key: endpoint.api_key,
            chosen_by,
            waits: WAITS,
        })
    }

    fn headers(&self) -> Result<HeaderMap, ProviderError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        let key = self.key.expose_secret();
        if !key.is_empty() {
            // A key that no header can carry is a key that the provider would refuse.
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))
                .map_err(|_| ProviderError::KeyRefused { provider: self.provider.clone() })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(headers)
    }

    async fn refused(&self, model: &str, mut response: Response) -> ProviderError {
        let mut said = Vec::new();
        while let Some(Ok(piece)) = response.body.next().await {
            said.extend_from_slice(&piece[..piece.len().min(REFUSAL_BYTES_MAX - said.len())]);
            if said.len() == REFUSAL_BYTES_MAX {
                break;
            }
        }
        let said = refusal::message(&said, self.key.expose_secret());
        Refused { provider: &self.provider, model, said }.by_status(response.status, &response.headers)
    }
}

#[async_trait]
impl ModelProvider for OpenAi {
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
        let body = body::build(self.kind, request).to_string();
        let response = self
            .egress
            .send(Request {
                method: Method::POST,
                url: self.url.clone(),
                headers: self.headers()?,
                body: Bytes::from(body),
                chosen_by: self.chosen_by,
                first_byte: self.waits.first_byte,
                between_bytes: self.waits.between_bytes,
                body_bytes_max: BODY_BYTES_MAX,
            })
            .await
            .map_err(|error| sending(&self.provider, error))?;
        if response.status != StatusCode::OK {
            return Err(self.refused(&request.model.name, response).await);
        }
        let reader = Reader {
            provider: self.provider.clone(),
            key: self.key.clone(),
            request: request.clone(),
            body: response.body,
        };
        Ok(reader.events())
    }
}

/// An answer that is being read.
struct Reader {
    provider: String,
    key: SecretString,
    request: ModelRequest,
    body: BoxStream<'static, Result<Bytes, EgressError>>,
}

impl Reader {
    fn events(self) -> ModelStream {
        async_stream::try_stream! {
            let Reader { provider, key, request, body } = self;
            let mut assembler = Assembler::default();
            let mut frames = sse::frames(body);
            loop {
                let frame = match frames.next().await {
                    None => break,
                    Some(Ok(frame)) if frame.trim() == "[DONE]" => {
                        assembler.done();
                        break;
                    }
                    Some(Ok(frame)) => frame,
                    // The answer was whole before the connection failed.
                    Some(Err(_)) if assembler.is_whole() => break,
                    Some(Err(error)) => Err(reading(&provider, error))?,
                };
                let text = assembler.push(&frame).map_err(|fault| match fault {
                    Fault::Bad(reason) => ProviderError::BadStream { provider: provider.clone(), reason },
                    Fault::Said(error) => {
                        let said = refusal::clean(&error.message, key.expose_secret());
                        Refused { provider: &provider, model: &request.model.name, said }.by_kind(&error.kind)
                    }
                })?;
                if let Some(text) = text {
                    yield ModelEvent::Text(text);
                }
            }
            if !assembler.is_whole() {
                Err(if assembler.is_untouched() {
                    ProviderError::BadStream { provider, reason: "it is no event stream" }
                } else {
                    ProviderError::CutShort { provider }
                })?;
                return;
            }
            if !assembler.has_usage() {
                tokens::load().await;
            }
            for event in assembler.end(|| tokens::count_request(&request)) {
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
mod tests;
