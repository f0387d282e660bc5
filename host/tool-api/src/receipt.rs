//! What a call consumed and touched.

use serde::{Deserialize, Serialize};

use crate::ArtifactHash;

/// Stored with the call, shown to the tenant, billed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    pub artifact: ArtifactHash,
    /// `belljar:tool@0.1.0`.
    pub contract: String,
    pub fuel_used: u64,
    pub memory_peak_bytes: u64,
    /// Until the instance stood ready.
    pub instantiate_us: u64,
    /// From the call's begin to its end, instantiation included.
    pub total_us: u64,
    /// Calls into the host.
    pub host_call_count: u64,
    /// What was denied, by grant, in order of the first denial.
    pub denied: Vec<String>,
    pub logs: Vec<LogLine>,
    /// A line was cut, or lines are missing.
    pub logs_truncated: bool,
    pub attempt: u32,
    pub idempotency_key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    /// `trace` to `critical`, `stdout` or `stderr`.
    pub level: String,
    pub text: String,
}
