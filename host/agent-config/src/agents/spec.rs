//! What a revision of an agent holds, as it is written and read.

use std::{fmt, time::Duration};

use domain::{AgentName, Amount, FieldError, Money};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use tool_api::schema::Schema;

use super::AgentError;
use crate::{bindings, bindings::BindingSpec, json};

/// Bytes of a system prompt: every model call carries it.
pub const SYSTEM_PROMPT_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a description: it is shown in lists.
pub const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a display name: it is shown in one line.
pub const DISPLAY_NAME_BYTES_MAX: usize = 256;
/// Bytes of an agent's metadata as JSON: it is kept with each revision and answered with each agent.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a model's options as JSON: every model call carries them.
pub const OPTIONS_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a model's name: longer than any that a provider uses.
pub const MODEL_NAME_BYTES_MAX: usize = 200;
/// Bindings of one revision: each is at least one function, and a model takes 128.
pub const TOOLS_MAX: usize = 64;
/// Models to fall back to: each is tried while a user waits.
pub const FALLBACK_MODELS_MAX: usize = 4;
/// Steps of one run when the agent says nothing.
pub const STEPS_DEFAULT: u32 = 16;
/// Steps of one run at most: a model in a circle ends here.
pub const STEPS_MAX: u32 = 64;
/// Tokens of a window at most: twice what the largest models take.
pub const INPUT_TOKENS_MAX: u32 = 2_000_000;
/// Tokens of a window at least where what does not fit is summarised: below it a turn, a summary and the words that ask
/// for one do not fit beside each other.
pub const SUMMARIZE_INPUT_TOKENS_MIN: u32 = 1_000;
/// Seconds of one run when the agent says nothing.
pub const DEADLINE_SECONDS_DEFAULT: u32 = 300;
/// Seconds of one run at most. People who approve calls sleep, and have weekends.
pub const DEADLINE_SECONDS_MAX: u32 = 7 * 24 * 3600;

/// What a revision holds. `tools` are bindings as they were written (`BindingSpec`) or as they were resolved
/// (`Binding`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec<B = BindingSpec> {
    pub name: AgentName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `{{key}}` is replaced by that key of the turn's `context`.
    pub system_prompt: String,
    pub model: ModelChoice,
    /// Tried in order when the model's provider fails before its first token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback_models: Vec<ModelChoice>,
    #[serde(default = "Vec::new")]
    pub tools: Vec<B>,
    #[serde(default)]
    pub limits: AgentLimits,
    #[serde(default)]
    pub context: ContextSpec,
    /// A JSON Schema of an object: the last answer of a run is one that fits, or the run fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// A model of a provider. Written as an object or as a string: `gpt-4o`, `openai/gpt-4o`, `demo`. What is absent is not
/// sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelChoice {
    /// The name of a provider key or of a provider of the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Sent to the provider as they are.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
}

/// What one run may take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentLimits {
    /// 16 when absent, 64 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    /// No tool is called once the run has cost this much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Money>,
    /// 300 when absent, 3600 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u32>,
}

/// How the history of a conversation is fitted into the model's window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextSpec {
    #[serde(default)]
    pub strategy: Strategy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_tokens: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The oldest messages are left out.
    #[default]
    Truncate,
    /// The oldest messages are summarised by the model, in a step that is billed; the summary is kept, and sent in their
    /// place.
    Summarize,
}

impl AgentLimits {
    pub fn steps(&self) -> u32 {
        self.max_steps.unwrap_or(STEPS_DEFAULT)
    }

    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds.unwrap_or(DEADLINE_SECONDS_DEFAULT).into())
    }
}

impl AgentSpec {
    /// What a client wrote, with the tenant's default model where it names none.
    pub fn with_default_model(mut agent: Value, model: Option<String>) -> Value {
        if let (Value::Object(fields), Some(model)) = (&mut agent, model) {
            fields.entry("model").or_insert(Value::String(model));
        }
        agent
    }

    /// Reads what a client wrote: a whole agent, or a patch that was merged over one.
    pub fn parse(value: Value) -> Result<AgentSpec, AgentError> {
        if let Some(pointer) = json::nul(&value) {
            return Err(invalid(pointer, "contains a NUL character, which cannot be stored; remove it"));
        }
        let Value::Object(mut fields) = value else {
            return Err(invalid("", "not an agent: send a JSON object"));
        };
        let temperature = take_temperature(&mut fields)?;
        take_out_told(&mut fields);
        let mut spec: AgentSpec =
            json::parse(Value::Object(fields)).map_err(|error| AgentError::Invalid(vec![error]))?;
        if temperature.is_some() {
            spec.model.temperature = temperature;
        }
        match spec.check() {
            wrong if wrong.is_empty() => Ok(spec),
            wrong => Err(AgentError::Invalid(wrong)),
        }
    }

    /// This spec with `patch` (RFC 7396) merged over it.
    pub(crate) fn patched(present: &AgentSpec<bindings::Binding>, patch: Value) -> Result<AgentSpec, AgentError> {
        let mut merged = serde_json::to_value(present).map_err(crate::unreadable)?;
        // `temperature` at the top stands for the model's, so that its removal is the removal of that one.
        if patch.get("temperature").is_some_and(Value::is_null) {
            domain::json::merge(&mut merged, serde_json::json!({"model": {"temperature": null}}));
        }
        domain::json::merge(&mut merged, patch);
        AgentSpec::parse(merged)
    }

    /// Every bound that a type does not keep.
    fn check(&self) -> Vec<FieldError> {
        let mut wrong = Vec::new();
        let sizes = [
            ("/display_name", self.display_name.as_ref().map_or(0, String::len), DISPLAY_NAME_BYTES_MAX),
            ("/description", self.description.as_ref().map_or(0, String::len), DESCRIPTION_BYTES_MAX),
            ("/system_prompt", self.system_prompt.len(), SYSTEM_PROMPT_BYTES_MAX),
            ("/metadata", json::bytes(&self.metadata), METADATA_BYTES_MAX),
        ];
        for (pointer, bytes, max) in sizes {
            if bytes > max {
                wrong.push(FieldError::new(pointer, format!("has {bytes} bytes, more than {max}; shorten it")));
            }
        }
        let counts = [
            ("/tools", self.tools.len(), TOOLS_MAX),
            ("/fallback_models", self.fallback_models.len(), FALLBACK_MODELS_MAX),
        ];
        for (pointer, count, max) in counts {
            if count > max {
                wrong.push(FieldError::new(pointer, format!("has {count} entries, more than {max}; remove some")));
            }
        }
        if let Some(schema) = &self.output_schema {
            // A schema of anything else is refused by the providers that check answers themselves.
            let checked = match schema.get("type").and_then(Value::as_str) {
                Some("object") => Schema::parse(schema).map(drop).map_err(|error| error.to_string()),
                _ => Err("an answer is a JSON object; give the schema `\"type\": \"object\"`".to_owned()),
            };
            wrong.extend(checked.err().map(|detail| FieldError::new("/output_schema", detail)));
        }
        self.model.check("/model", &mut wrong);
        for (index, model) in self.fallback_models.iter().enumerate() {
            model.check(&format!("/fallback_models/{index}"), &mut wrong);
        }
        let numbers = [
            ("/limits/max_steps", self.limits.max_steps, STEPS_MAX),
            ("/limits/deadline_seconds", self.limits.deadline_seconds, DEADLINE_SECONDS_MAX),
            ("/context/max_input_tokens", self.context.max_input_tokens, INPUT_TOKENS_MAX),
        ];
        for (pointer, number, max) in numbers {
            if number.is_some_and(|number| !(1..=max).contains(&number)) {
                wrong.push(FieldError::new(pointer, format!("use a number from 1 to {max}")));
            }
        }
        if self.context.strategy == Strategy::Summarize
            && self.context.max_input_tokens.is_some_and(|tokens| tokens < SUMMARIZE_INPUT_TOKENS_MIN)
        {
            let detail = format!("use {SUMMARIZE_INPUT_TOKENS_MIN} or more, or the strategy `truncate`");
            wrong.push(FieldError::new("/context/max_input_tokens", detail));
        }
        if self.limits.max_cost.as_ref().is_some_and(|cost| cost.amount <= Amount::ZERO) {
            wrong.push(FieldError::new("/limits/max_cost", "use an amount above zero"));
        }
        wrong
    }
}

impl<B> AgentSpec<B> {
    /// The same with other bindings.
    pub(crate) fn with_tools<C>(self, tools: Vec<C>) -> AgentSpec<C> {
        let AgentSpec {
            name,
            display_name,
            description,
            system_prompt,
            model,
            fallback_models,
            tools: _,
            limits,
            context,
            output_schema,
            metadata,
        } = self;
        AgentSpec {
            name,
            display_name,
            description,
            system_prompt,
            model,
            fallback_models,
            tools,
            limits,
            context,
            output_schema,
            metadata,
        }
    }
}

impl ModelChoice {
    fn check(&self, at: &str, wrong: &mut Vec<FieldError>) {
        let mut say = |field: &str, detail: String| wrong.push(FieldError::new(format!("{at}{field}"), detail));
        if let Some(Err(error)) = self.provider.as_ref().map(|name| name.parse::<domain::names::ProviderName>()) {
            say("/provider", error.to_string());
        }
        if self.name.is_empty() || self.name.len() > MODEL_NAME_BYTES_MAX {
            say("/name", format!("use a model's name of 1 to {MODEL_NAME_BYTES_MAX} bytes"));
        }
        if self.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
            say("/temperature", "use a number from 0 to 2".into());
        }
        if self.max_output_tokens == Some(0) {
            say("/max_output_tokens", "use a number above zero, or leave it out".into());
        }
        let bytes = json::bytes(&self.options);
        if bytes > OPTIONS_BYTES_MAX {
            say("/options", format!("has {bytes} bytes, more than {OPTIONS_BYTES_MAX}; shorten it"));
        }
    }
}

impl From<&str> for ModelChoice {
    /// `provider/name`, split at the first slash, or a name alone.
    fn from(text: &str) -> Self {
        let (provider, name) = match text.split_once('/') {
            Some((provider, name)) => (Some(provider.to_owned()), name),
            None => (None, text),
        };
        Self { provider, name: name.to_owned(), temperature: None, max_output_tokens: None, options: Map::new() }
    }
}

impl<'de> Deserialize<'de> for ModelChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            #[serde(default)]
            provider: Option<String>,
            name: String,
            #[serde(default)]
            temperature: Option<f64>,
            #[serde(default)]
            max_output_tokens: Option<u32>,
            #[serde(default)]
            options: Map<String, Value>,
        }

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = ModelChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a model: \"provider/name\", \"name\" or {provider, name, ...}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ModelChoice, E> {
                Ok(ModelChoice::from(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelChoice, A::Error> {
                let Fields { provider, name, temperature, max_output_tokens, options } =
                    Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ModelChoice { provider, name, temperature, max_output_tokens, options })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Takes a temperature that stands at the top, where many clients send it; as a number or a string.
fn take_temperature(fields: &mut Map<String, Value>) -> Result<Option<f64>, AgentError> {
    let number = match fields.remove("temperature") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    match number {
        Some(number) if (0.0..=2.0).contains(&number) => Ok(Some(number)),
        _ => Err(invalid("/temperature", "use a number from 0 to 2")),
    }
}

/// Takes out what answers tell of a binding and nobody writes, so that an answer can be sent back.
fn take_out_told(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(tools)) = fields.get_mut("tools") {
        tools.iter_mut().for_each(bindings::take_out_told);
    }
}

fn invalid(pointer: impl Into<String>, detail: &str) -> AgentError {
    AgentError::Invalid(vec![FieldError::new(pointer, detail)])
}

#[cfg(test)]
mod tests;
