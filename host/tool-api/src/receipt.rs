//! What a call consumed and touched.

use std::collections::BTreeMap;

use domain::SecretName;
use serde::{Deserialize, Serialize};

use crate::ArtifactHash;

/// Host calls that a receipt tells one by one. The others are counted.
pub const HOST_CALLS_TOLD_MAX: usize = 100;

/// Stored with the call, shown to the tenant, billed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    pub artifact: ArtifactHash,
    /// `belljar:tool@1.0.0`; `wit` for a component with plain typed exports.
    pub contract: String,
    pub fuel_used: u64,
    pub memory_peak_bytes: u64,
    /// Until the instance stood ready.
    pub instantiate_us: u64,
    /// From the call's begin to its end, instantiation included.
    pub total_us: u64,
    /// Calls into the host.
    pub host_call_count: u64,
    /// The first 100 uses of a capability, in order.
    #[serde(default)]
    pub host_calls: Vec<HostCall>,
    /// All uses of capabilities, by `interface.function`.
    #[serde(default)]
    pub host_call_counts: BTreeMap<String, u64>,
    /// Secrets that were read, or added to a request.
    #[serde(default)]
    pub secrets_used: Vec<SecretName>,
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

/// One use of a capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostCall {
    /// `wasi:http`, `wasi:keyvalue`, ...
    pub interface: String,
    pub function: String,
    /// What it was about: `GET https://host/path`, `namespace/key`, a name. Never a value, a query or a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// From the tool to the host.
    pub bytes_in: u64,
    /// From the host to the tool.
    pub bytes_out: u64,
    pub duration_us: u64,
    /// The grant that allowed it: `http api.example.com`. Absent when it was denied, or needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// Why it was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
