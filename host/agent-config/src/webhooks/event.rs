//! What a tenant can be told of.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum EventKind {
    #[serde(rename = "run.completed")]
    RunCompleted,
    #[serde(rename = "run.failed")]
    RunFailed,
    #[serde(rename = "run.cancelled")]
    RunCancelled,
    #[serde(rename = "approval.requested")]
    ApprovalRequested,
    #[serde(rename = "tool_version.ready")]
    ToolVersionReady,
    #[serde(rename = "tool_version.rejected")]
    ToolVersionRejected,
    #[serde(rename = "budget.threshold")]
    BudgetThreshold,
}

impl EventKind {
    const ALL: [EventKind; 7] = [
        EventKind::RunCompleted,
        EventKind::RunFailed,
        EventKind::RunCancelled,
        EventKind::ApprovalRequested,
        EventKind::ToolVersionReady,
        EventKind::ToolVersionRejected,
        EventKind::BudgetThreshold,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::RunCompleted => "run.completed",
            EventKind::RunFailed => "run.failed",
            EventKind::RunCancelled => "run.cancelled",
            EventKind::ApprovalRequested => "approval.requested",
            EventKind::ToolVersionReady => "tool_version.ready",
            EventKind::ToolVersionRejected => "tool_version.rejected",
            EventKind::BudgetThreshold => "budget.threshold",
        }
    }

    pub fn parse(text: &str) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|event| event.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_stored_as_it_is_told() {
        for event in EventKind::ALL {
            assert_eq!(serde_json::to_value(event).unwrap(), event.as_str());
            assert_eq!(EventKind::parse(event.as_str()), Some(event));
        }
        assert_eq!(EventKind::parse("run.started"), None);
    }
}
