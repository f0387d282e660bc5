//! What was sent to a model and how it went, in sizes and times: the developer's view of a step. No contents, no secrets.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::Problem;
use futures::StreamExt;
use model_providers::{ModelEvent, ModelRequest, ModelStream, ProviderError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

/// Failed tries kept of one step: past them, only their number would be news.
const TRIES_MAX: usize = 20;

/// A step's model call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trace {
    pub sent: Sent,
    /// From the step's beginning to the first piece of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// The step answers nobody: it summarised so many messages of the conversation, which it is sent in place of from then
    /// on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summarized_messages: Option<usize>,
    /// Tries that failed before a model answered, in order; and the one whose answer broke off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_tries: Vec<FailedTry>,
}

/// What the model was sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Sent {
    /// Of the conversation, with what the run has said since.
    pub messages: usize,
    /// Of the system prompt.
    pub system_bytes: usize,
    /// Of the messages as JSON.
    pub message_bytes: usize,
    pub functions: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// The provider was told of the agent's `output_schema`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_schema: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailedTry {
    /// `provider/name`.
    pub model: String,
    pub code: String,
    /// How long it took to fail.
    pub took_ms: u64,
}

/// Where the tries of one step are written down, whichever model they ask.
#[derive(Clone)]
pub(crate) struct Tracer(Arc<Mutex<Tracing>>);

struct Tracing {
    began: Instant,
    trace: Trace,
}

impl Tracer {
    pub(crate) fn new() -> Tracer {
        Tracer(Arc::new(Mutex::new(Tracing { began: Instant::now(), trace: Trace::default() })))
    }

    fn tracing(&self) -> MutexGuard<'_, Tracing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub(crate) fn begin(&self) {
        *self.tracing() = Tracing { began: Instant::now(), trace: Trace::default() };
    }

    pub(crate) fn taken(&self) -> Trace {
        std::mem::take(&mut self.tracing().trace)
    }

    fn failed(&self, model: &str, error: &ProviderError, began: Instant) {
        let failed = FailedTry { model: model.to_owned(), code: error.code().to_owned(), took_ms: ms_since(began) };
        let tries = &mut self.tracing().trace.failed_tries;
        if tries.len() < TRIES_MAX {
            tries.push(failed);
        }
    }

    /// One try: what is sent, and how it goes.
    pub(crate) async fn watch(
        &self,
        request: &ModelRequest,
        asked: impl Future<Output = Result<ModelStream, ProviderError>>,
    ) -> Result<ModelStream, ProviderError> {
        self.tracing().trace.sent = Sent::of(request);
        let (tracer, model, began) = (self.clone(), request.model.to_string(), Instant::now());
        let stream = asked.await.inspect_err(|error| tracer.failed(&model, error, began))?;
        let watched = stream.inspect(move |event: &Result<ModelEvent, ProviderError>| match event {
            Ok(_) => {
                let mut tracing = tracer.tracing();
                let waited = ms_since(tracing.began);
                tracing.trace.first_token_ms.get_or_insert(waited);
            }
            Err(error) => tracer.failed(&model, error, began),
        });
        Ok(watched.boxed())
    }
}

impl Sent {
    fn of(request: &ModelRequest) -> Sent {
        Sent {
            messages: request.messages.len(),
            system_bytes: request.system.len(),
            message_bytes: request.messages.iter().map(|message| json!(message.parts).to_string().len()).sum(),
            functions: request.functions.len(),
            temperature: request.temperature,
            max_output_tokens: request.max_output_tokens,
            output_schema: request.output_schema.is_some(),
        }
    }
}

fn ms_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use model_providers::{ModelRef, StopReason, Usage};

    use super::*;

    #[tokio::test]
    async fn tries_are_written_down_until_a_model_answers() {
        let tracer = Tracer::new();
        let request = |model: &str| ModelRequest {
            model: ModelRef::parse(model),
            system: "four".into(),
            messages: Vec::new(),
            functions: Vec::new(),
            temperature: Some(0.5),
            max_output_tokens: None,
            options: Default::default(),
            output_schema: None,
        };
        let timeout = || ProviderError::Timeout { provider: "x".into() };
        assert!(tracer.watch(&request("a"), async { Err(timeout()) }).await.is_err());
        let breaks = async { Ok(stream::iter([Err(timeout())]).boxed()) };
        let _: Vec<_> = tracer.watch(&request("b"), breaks).await.unwrap().collect().await;
        let end = ModelEvent::End { stop: StopReason::Done, usage: Usage::default() };
        let says = async { Ok(stream::iter([Ok(ModelEvent::Text("hi".into())), Ok(end)]).boxed()) };
        let _: Vec<_> = tracer.watch(&request("demo"), says).await.unwrap().collect().await;
        let trace = tracer.taken();
        let tried: Vec<_> =
            trace.failed_tries.iter().map(|tried| (tried.model.as_str(), tried.code.as_str())).collect();
        assert_eq!(tried, [("openai/a", "provider.timeout"), ("openai/b", "provider.timeout")]);
        assert_eq!((trace.sent.system_bytes, trace.sent.temperature), (4, Some(0.5)));
        assert!(trace.first_token_ms.is_some());
        assert_eq!(tracer.taken(), Trace::default(), "the next step begins anew");
    }
}
