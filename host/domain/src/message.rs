//! Roles and the parts of a message. The same shape in the database, the API and on the way to a model.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{CallId, FunctionName, ToolName};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    User,
    Assistant,
    /// Results of tool calls.
    Tool,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    pub fn parse(text: &str) -> Option<Role> {
        [Role::User, Role::Assistant, Role::Tool].into_iter().find(|role| role.as_str() == text)
    }
}

/// One piece of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    Text {
        text: String,
    },
    Image {
        media_type: String,
        /// Base64 (RFC 4648, with padding).
        data: String,
    },
    /// What a model's provider wants back unchanged, such as what the model thought: opaque. Only in a message of the
    /// assistant, and never in an answer of the API.
    Reasoning {
        /// Only this one gets it.
        provider: String,
        data: Value,
    },
    /// The model asks for a call. Only in a message of the assistant.
    ToolCall {
        id: CallId,
        /// The id that the model's provider gave, sent back to it unchanged.
        provider_id: String,
        /// As the model wrote it: `tool__function`, or a name that no binding has.
        name: String,
        /// As the model wrote them; a string when they were not JSON.
        arguments: Value,
    },
    /// What a call came to. Only in a message of a tool.
    ToolResult {
        id: CallId,
        provider_id: String,
        is_error: bool,
        /// What the model reads.
        text: String,
    },
}

impl Part {
    pub fn text(text: impl Into<String>) -> Part {
        Part::Text { text: text.into() }
    }
}

/// The text of a message: its text parts, one after the other.
pub fn text_of(parts: &[Part]) -> String {
    parts
        .iter()
        .filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// A function of a tool as a model is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionSpec {
    pub tool: ToolName,
    pub function: FunctionName,
    /// `tool__function`.
    pub model_name: String,
    pub description: String,
    pub input_schema: Value,
}
