//! What goes into a tool call and what comes out.

use std::{collections::BTreeMap, sync::Arc};

use domain::{
    CallGrants, CallId, ConversationId, FunctionName, Kind, Limits, Problem, SecretName, SecretString, TenantId,
    ToolName,
    message::{Part, text_of},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ArtifactHash, Change, Receipt, Recording};

/// Everything the executor needs: it asks nobody.
#[derive(Debug, Clone)]
pub struct ToolCall {
    pub id: CallId,
    pub tenant: TenantId,
    pub tool: ToolName,
    pub artifact: ArtifactHash,
    pub function: FunctionName,
    /// A JSON object that fits the function's input schema.
    pub arguments: Value,
    pub grants: Arc<CallGrants>,
    /// Opened for this call: those that the grants name.
    pub secrets: Arc<BTreeMap<SecretName, OpenSecret>>,
    pub limits: Limits,
    pub context: CallContext,
    pub share: Share,
    /// Keep what the host gives to the call; see `Recording`.
    pub record: bool,
}

/// A secret in the clear.
#[derive(Debug, Clone)]
pub struct OpenSecret {
    pub value: SecretString,
    /// The tool may read it by name, where a grant says so too.
    pub readable: bool,
}

/// How much of the host a tenant's calls may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Of the processor, against other tenants that want it at the same moment. The plan's `weight`.
    pub weight: u32,
    /// Calls of the tenant at the same time. The plan's `concurrent_tool_calls`.
    pub calls_max: u32,
}

impl Default for Share {
    fn default() -> Self {
        Share { weight: 1, calls_max: u32::MAX }
    }
}

/// What the tool may know of its call (`belljar:tool/context`).
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    /// Stable across attempts.
    pub idempotency_key: String,
    /// 1 for the first.
    pub attempt: u32,
    pub agent: Option<String>,
    pub conversation: Option<ConversationId>,
    pub external_user_id: Option<String>,
    /// The turn's `context`, as the API caller gave it.
    pub entries: Arc<BTreeMap<String, String>>,
}

/// A call that began, and how it ended.
#[derive(Debug, Clone)]
pub struct Finished {
    pub outcome: Outcome,
    pub receipt: Receipt,
    /// What the call leaves in the tenant's key-value store, by namespace and key. Empty unless the tool answered.
    pub changes: Vec<Change>,
    /// When `ToolCall::record` asked for it.
    pub recording: Option<Recording>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// The function answered with an error.
    ToolError,
    /// A limit ended the call; `code` says which.
    Limit,
    /// The tool crashed.
    Trap,
    /// A denied host call, and then an error or a crash; or an approval that was not given.
    Denied,
    /// The platform failed while the call ran, after it had sent a request: whether that took effect is not known.
    OutcomeUnknown,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::ToolError => "tool_error",
            Status::Limit => "limit",
            Status::Trap => "trap",
            Status::Denied => "denied",
            Status::OutcomeUnknown => "outcome_unknown",
        }
    }
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    pub status: Status,
    /// `limit.fuel`, `limit.memory`, `limit.stack`, `limit.deadline`, `limit.host_calls`, `limit.handles`,
    /// `limit.output`, `limit.logs`, `limit.http_bytes`, `limit.http_requests`, `limit.abi`, `denied.<grant>`,
    /// `kv.conflict`, `approval.denied`, `approval.expired`, or `tool.*` for a call that did not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Text and images.
    pub content: Vec<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trap: Option<Trap>,
}

/// How a tool crashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trap {
    /// `unreachable`, `memory_out_of_bounds`, `exit`, ...
    pub kind: String,
    /// The tool's last line on standard error, where it wrote one: a panic's message.
    pub message: String,
    /// Names of functions, innermost first, at most 20.
    pub frames: Vec<String>,
}

impl Outcome {
    /// An outcome without an answer: a limit, a denial, a call that could not begin.
    pub fn failed(status: Status, code: impl Into<String>, message: impl Into<String>) -> Outcome {
        Outcome { status, code: Some(code.into()), content: vec![Part::text(message)], structured: None, trap: None }
    }

    pub fn is_error(&self) -> bool {
        self.status != Status::Ok
    }

    /// What the model reads: status, code and message of a failure; the text of an answer, else its JSON.
    pub fn for_model(&self) -> String {
        let text = text_of(&self.content);
        match (self.status, &self.code, &self.structured) {
            (Status::Ok, _, Some(structured)) if text.is_empty() => structured.to_string(),
            (Status::Ok, _, _) => text,
            (Status::ToolError, None, _) => text,
            (status, code, _) => {
                format!(
                    "{}{}: {text}",
                    status.as_str(),
                    code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default()
                )
            }
        }
    }

    /// What the model sees beside the text: the images of an answer that are what they say they are. A provider refuses
    /// every later request of a conversation that holds another.
    pub fn images_for_model(&self) -> impl Iterator<Item = &Part> {
        let shown = |part: &&Part| match part {
            Part::Image { media_type, data } => {
                IMAGE_BEGINNINGS.iter().any(|(known, begins)| media_type == known && data.starts_with(begins))
            }
            _ => false,
        };
        self.content.iter().filter(shown).take(IMAGES_FOR_MODEL_MAX)
    }
}

/// Images of one answer that a model sees: each costs about as much as a page of text.
const IMAGES_FOR_MODEL_MAX: usize = 4;
/// The formats that model providers take, and how each begins, in base64.
const IMAGE_BEGINNINGS: [(&str, &str); 4] =
    [("image/png", "iVBORw0KGgo"), ("image/jpeg", "/9j/"), ("image/gif", "R0lGOD"), ("image/webp", "UklGR")];

/// Why a call did not begin. Nothing ran and nothing is billed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Its code is not on this host: inspect the component, then call again. A call never compiles.
    #[error("the tool's code is not loaded here; try again")]
    NotCompiled(ArtifactHash),
    #[error("all places for tool calls are taken; try again in a second")]
    Busy,
    #[error("the executor failed")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Problem for CallError {
    fn kind(&self) -> Kind {
        match self {
            CallError::NotCompiled(_) | CallError::Busy => Kind::Unavailable,
            CallError::Internal(_) => Kind::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            CallError::NotCompiled(_) => "tool.not_compiled",
            CallError::Busy => "tool.busy",
            CallError::Internal(_) => "tool.internal_error",
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        Some(1)
    }
}
