//! Why a binding cannot be.

use domain::{FieldError, FunctionName, Kind, Problem, ToolName, grants::GrantsError, limits::LimitError};

use crate::{
    secrets::SecretError,
    tools::{VersionRef, VersionStatus},
};

/// Which binding of an agent cannot be, and why.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct BindingError {
    /// Its place in `tools`.
    pub at: usize,
    pub reason: BindingReason,
}

#[derive(Debug, thiserror::Error)]
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
    #[error(
        "what this version of tool `{tool}` asks for cannot be read (`requires{}`: {}); write `grants` yourself",
        mistake.pointer, mistake.detail
    )]
    RequiresUnreadable { tool: ToolName, mistake: FieldError },
    #[error(transparent)]
    Secret(SecretError),
    #[error("`approval.functions` names `{function}`, which the binding does not give; name one that it gives")]
    ApprovalOfNothing { function: FunctionName },
    #[error("use 1 to {} seconds", super::APPROVAL_SECONDS_MAX)]
    ApprovalExpires,
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

impl Problem for BindingError {
    fn kind(&self) -> Kind {
        match &self.reason {
            BindingReason::Secret(error) => error.kind(),
            _ => Kind::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match &self.reason {
            BindingReason::VersionNotFound { .. } => "binding.version_not_found",
            BindingReason::VersionNotReady { .. } => "binding.version_not_ready",
            BindingReason::DuplicateTool { .. } => "binding.duplicate_tool",
            BindingReason::FunctionNotFound { .. } => "binding.function_not_found",
            BindingReason::LimitAbovePlan(_) => "binding.limit_above_plan",
            BindingReason::GrantInvalid(_) => "binding.grant_invalid",
            BindingReason::GrantMissing { .. } => "binding.grant_missing",
            BindingReason::RequiresUnreadable { .. } => "binding.requires_unreadable",
            BindingReason::Secret(error) => error.code(),
            BindingReason::ApprovalOfNothing { .. } | BindingReason::ApprovalExpires => "binding.approval_invalid",
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let place = match &self.reason {
            BindingReason::VersionNotFound { .. }
            | BindingReason::VersionNotReady { .. }
            | BindingReason::DuplicateTool { .. } => String::new(),
            BindingReason::FunctionNotFound { index, .. } => format!("/functions/{index}"),
            BindingReason::LimitAbovePlan(error) => format!("/limits/{}", error.name),
            BindingReason::GrantInvalid(error) => format!("/grants{}", error.pointer()),
            BindingReason::GrantMissing { .. } => "/grants/config".into(),
            BindingReason::RequiresUnreadable { .. } => "/grants".into(),
            BindingReason::Secret(error) => format!("/grants{}", error.pointer()),
            BindingReason::ApprovalOfNothing { function } => format!("/approval/functions/{function}"),
            BindingReason::ApprovalExpires => "/approval_expires_seconds".into(),
        };
        vec![FieldError::new(format!("/tools/{}{place}", self.at), self.reason.to_string())]
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match &self.reason {
            BindingReason::Secret(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}
