//! What a model is asked, and what it answers.

use async_trait::async_trait;
use domain::message::{FunctionSpec, Part, Role};
use futures::stream::BoxStream;
use serde_json::{Map, Value};

use crate::{ModelRef, ProviderError};

/// The names of one limit among the options of a request: OpenAI's new one, and everybody's.
pub(crate) const OUTPUT_LIMITS: [&str; 2] = ["max_completion_tokens", "max_tokens"];

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
    /// The next piece of what nobody is shown: thoughts, names and arguments of calls, as they come. It is told so that an
    /// answer that is cut short can be counted: what comes of a whole one are the events below. Empty: something came
    /// that has no text.
    Unseen(String),
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

/// What a model may say where the agent has no `max_output_tokens`: what its options allow, else an answer of `answer`
/// tokens, and what it thinks.
pub fn output_tokens(options: &Map<String, Value>, answer: u32) -> u32 {
    let tokens = |value: Option<&Value>| Some(u32::try_from(value?.as_u64()?).unwrap_or(u32::MAX));
    let limits = OUTPUT_LIMITS.iter().filter_map(|name| tokens(options.get(*name)));
    let thinking = tokens(options.get("thinking").and_then(|thinking| thinking.get("budget_tokens"))).unwrap_or(0);
    limits.min().unwrap_or(answer.saturating_add(thinking))
}

/// Ends after `ModelEvent::End` or its first error. Dropping it ends the model call.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, ProviderError>>;

#[async_trait]
pub trait ModelProvider: Send + Sync {
    /// Sends the request once.
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError>;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_model_may_say_by_its_options() {
        for (options, tokens) in [
            (json!({}), 4096),
            (json!({"max_tokens": 7}), 7),
            (json!({"max_completion_tokens": 9000}), 9000),
            (json!({"max_tokens": 9000, "max_completion_tokens": 7}), 7),
            (json!({"max_tokens": "many", "thinking": "hard"}), 4096),
            (json!({"max_tokens": -1, "thinking": {"budget_tokens": 1.5}}), 4096),
            (json!({"max_tokens": u64::MAX}), u32::MAX),
            (json!({"thinking": {"budget_tokens": 2000}}), 6096),
            (json!({"thinking": {"budget_tokens": u64::MAX}}), u32::MAX),
            (json!({"thinking": {"budget_tokens": 2000}, "max_tokens": 3000}), 3000),
        ] {
            assert_eq!(output_tokens(options.as_object().unwrap(), 4096), tokens, "{options}");
        }
    }
}
