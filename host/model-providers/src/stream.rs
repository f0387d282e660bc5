//! What a model is asked, and what it answers.

use async_trait::async_trait;
use domain::message::{FunctionSpec, Part, Role};
use futures::stream::BoxStream;
use serde_json::{Map, Value};

use crate::{ModelRef, ProviderError};

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: Role,
    pub parts: Vec<Part>,
}

/// One model call.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRequest {
    pub model: ModelRef,
    /// Empty: none is sent.
    pub system: String,
    pub messages: Vec<Message>,
    pub functions: Vec<FunctionSpec>,
    /// Nothing is sent that was not set.
    pub temperature: Option<f64>,
    pub max_output_tokens: Option<u32>,
    /// Further fields of the provider's request, as the agent has them.
    pub options: Map<String, Value>,
    /// What the answer's text must fit, for a provider that can be told. The others ignore it: who sets it also says so
    /// in `system`, and checks the answer.
    pub output_schema: Option<Value>,
}

#[cfg(test)]
impl ModelRequest {
    pub(crate) fn for_tests() -> ModelRequest {
        ModelRequest {
            model: ModelRef::new("local", "m-1"),
            system: "Be brief.".into(),
            messages: vec![Message { role: Role::User, parts: vec![Part::text("1+1?")] }],
            functions: Vec::new(),
            temperature: None,
            max_output_tokens: None,
            options: Map::new(),
            output_schema: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// The next piece of the answer's text.
    Text(String),
    /// A whole image, in base64.
    Image { media_type: String, data: String },
    /// What the provider wants back with the next request of the conversation, unchanged: `Part::Reasoning`.
    Reasoning(Value),
    /// A whole call.
    ToolCall {
        provider_id: String,
        /// As the model wrote it.
        name: String,
        /// A string when they were not JSON.
        arguments: Value,
    },
    /// Exactly one, the last event.
    End { stop: StopReason, usage: Usage },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    Done,
    ToolCalls,
    /// At the limit of its output.
    Length,
    ContentFilter,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    /// Of the input tokens, those that the provider had kept.
    pub cached_input_tokens: u64,
    pub output_tokens: u64,
    /// By the provider. If not, we counted.
    pub reported: bool,
}

/// Ends after `ModelEvent::End` or its first error. Dropping it ends the model call.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, ProviderError>>;

#[async_trait]
pub trait ModelProvider: Send + Sync {
    /// Sends the request once.
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError>;
}
