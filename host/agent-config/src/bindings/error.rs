//! Why a binding cannot be.

use domain::{FieldError, FunctionName, Kind, Problem, ToolName, grants::GrantsError, limits::LimitError};

use crate::tools::{VersionRef, VersionStatus};

/// Which binding of an agent cannot be, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct BindingError {
    /// Its place in `tools`.
    pub at: usize,
    pub reason: BindingReason,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BindingReason {
    #[error(
        "tool `{tool}` has no version `{version}` that is ready; upload it, or name one of `GET /v1/tools/{tool}/versions`"
    )]
    VersionNotFound { tool: ToolName, version: VersionRef },
    #[error("version `{version}` of tool `{tool}` is {}; bind one that is ready", status.as_str())]
    VersionNotReady { tool: ToolName, version: VersionRef, status: VersionStatus },
    #[error("tool `{tool}` is bound twice; put its functions into one binding")]
    DuplicateTool { tool: ToolName },
    #[error("this version of tool `{tool}` has no function `{function}`; it has {}", listed(has))]
    FunctionNotFound { tool: ToolName, index: usize, function: FunctionName, has: Vec<String> },
    #[error("limit {0}; ask for less, or for a plan that allows it")]
    LimitAbovePlan(LimitError),
    #[error("{0}")]
    GrantInvalid(GrantsError),
    #[error(
        "tool `{tool}` asks for config values that the binding does not give: {}; set them in `grants.config`",
        listed(keys)
    )]
    GrantMissing { tool: ToolName, keys: Vec<String> },
    #[error("these grants are not available yet: {}; leave them out", listed(names))]
    GrantUnavailable { names: Vec<String> },
    #[error("approvals are not available yet; leave `{field}` out or set `approval` to `never`")]
    ApprovalUnavailable { field: &'static str },
    #[error("recording is not available yet; leave `record` out or set it to false")]
    RecordingUnavailable,
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

impl Problem for BindingError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }

    fn code(&self) -> &'static str {
        match self.reason {
            BindingReason::VersionNotFound { .. } => "binding.version_not_found",
            BindingReason::VersionNotReady { .. } => "binding.version_not_ready",
            BindingReason::DuplicateTool { .. } => "binding.duplicate_tool",
            BindingReason::FunctionNotFound { .. } => "binding.function_not_found",
            BindingReason::LimitAbovePlan(_) => "binding.limit_above_plan",
            BindingReason::GrantInvalid(_) => "binding.grant_invalid",
            BindingReason::GrantMissing { .. } => "binding.grant_missing",
            BindingReason::GrantUnavailable { .. } => "binding.grant_unavailable",
            BindingReason::ApprovalUnavailable { .. } => "binding.approval_unavailable",
            BindingReason::RecordingUnavailable => "binding.recording_unavailable",
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let places = match &self.reason {
            BindingReason::VersionNotFound { .. }
            | BindingReason::VersionNotReady { .. }
            | BindingReason::DuplicateTool { .. } => vec![String::new()],
            BindingReason::FunctionNotFound { index, .. } => vec![format!("/functions/{index}")],
            BindingReason::LimitAbovePlan(error) => vec![format!("/limits/{}", error.name)],
            BindingReason::GrantInvalid(_) | BindingReason::GrantMissing { .. } => vec!["/grants/config".into()],
            BindingReason::GrantUnavailable { names } => names.iter().map(|name| format!("/grants/{name}")).collect(),
            BindingReason::ApprovalUnavailable { field } => vec![format!("/{field}")],
            BindingReason::RecordingUnavailable => vec!["/record".into()],
        };
        let detail = self.reason.to_string();
        places.into_iter().map(|place| FieldError::new(format!("/tools/{}{place}", self.at), detail.clone())).collect()
    }
}
