//! What an upload turns out to be.

use std::collections::BTreeMap;

use domain::{FunctionName, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ArtifactHash;

/// Functions of one tool, and of one agent, at most: the most that model providers take.
pub const FUNCTIONS_MAX: usize = 128;
/// Longest description of a function, in bytes: every model call carries it.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;

/// One callable of a tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Function {
    pub name: FunctionName,
    pub description: String,
    /// JSON Schema of the arguments.
    pub input_schema: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}

/// An upload, but for its bytes.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Whose turn it takes.
    pub tenant: TenantId,
    pub artifact: ArtifactHash,
    /// What a component with plain typed exports cannot say of itself.
    pub manifest: Option<Manifest>,
    /// The tenant has not had these bytes before. Then the answer takes as long as their compilation took, so that it
    /// does not tell whether another tenant has them.
    pub first: bool,
}

/// The JSON part beside the bytes of a typed component.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// By function, as it is exported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub functions: BTreeMap<String, FunctionManifest>,
    /// In the shape of grants, without values, each with a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub requires: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionManifest {
    /// What it does, in words for a model.
    #[serde(default)]
    pub description: String,
}

/// A component that can be called.
#[derive(Debug, Clone)]
pub struct Inspection {
    pub artifact: ArtifactHash,
    pub functions: Vec<Function>,
    /// Grants the tool asks for, as it wrote them.
    pub requires: Value,
    /// The contract it was built against: `belljar:tool@1.0.0`; `wit` for plain typed exports.
    pub contract: String,
}

/// Why a component was refused, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{detail}")]
pub struct Rejection {
    /// `component.not_wasm`, `component.core_module`, `component.no_toolbox`, `component.unknown_import`,
    /// `component.untranslatable_type`, `component.too_complex`, `component.compile_limit`, `component.compile_failed`,
    /// `toolbox.describe_failed`, `toolbox.bad_function`, `toolbox.duplicate_function`, `toolbox.bad_schema`,
    /// `toolbox.bad_requires`, `toolbox.too_many_functions`, `manifest.not_needed`, `manifest.unknown_function`,
    /// `manifest.bad_function`, `manifest.bad_requires`.
    pub code: String,
    pub detail: String,
}

impl Rejection {
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into() }
    }
}

/// How an inspection ends without a component.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The bytes are at fault: the same bytes will be refused again.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// This host is at fault: the same bytes may pass later.
    #[error("the component could not be inspected")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}
