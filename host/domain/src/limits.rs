//! What one tool call may consume.

use serde::{Deserialize, Serialize};

/// The limits of one call. Each is exceeded with its own code, `limit.<name>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Units of wasmtime fuel: about one an operator, more for host calls and memory growth.
    pub fuel: u64,
    /// All linear memories together.
    pub memory_bytes: u64,
    /// Wall time of the whole call.
    pub deadline_ms: u64,
    /// What the function returns.
    pub output_bytes: u64,
    /// Log lines, standard output and standard error together.
    pub log_bytes: u64,
    /// Calls from the tool into the host.
    pub host_calls: u64,
    /// Requests sent, redirects included.
    #[serde(default = "http_requests_default")]
    pub http_requests: u64,
    /// Heads and bodies of all requests and responses together.
    #[serde(default = "http_bytes_default")]
    pub http_bytes: u64,
}

// Rows of an older release do not have these two.
fn http_requests_default() -> u64 {
    Limits::DEFAULT.http_requests
}

fn http_bytes_default() -> u64 {
    Limits::DEFAULT.http_bytes
}

/// Limits as a tenant writes them: what is absent is the plan's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_calls: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_bytes: Option<u64>,
}

/// A limit that is zero or above the plan's ceiling.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{name}` is {asked}; this plan allows 1 to {ceiling}")]
pub struct LimitError {
    pub name: &'static str,
    pub asked: u64,
    pub ceiling: u64,
}

impl Limits {
    /// What a call gets when nobody says. One billion fuel is about a second of plain work.
    pub const DEFAULT: Limits = Limits {
        fuel: 1_000_000_000,
        memory_bytes: 64 << 20,
        deadline_ms: 10_000,
        output_bytes: 256 << 10,
        log_bytes: 64 << 10,
        host_calls: 100_000,
        http_requests: 50,
        http_bytes: 8 << 20,
    };

    /// The most that any plan can allow: the engine's pool is built for it.
    pub const CEILING: Limits = Limits {
        fuel: 100_000_000_000,
        memory_bytes: 256 << 20,
        deadline_ms: 120_000,
        output_bytes: 4 << 20,
        log_bytes: 1 << 20,
        host_calls: 1_000_000,
        http_requests: 1_000,
        http_bytes: 64 << 20,
    };

    /// Each limit, the lower of two.
    pub fn min(self, other: Limits) -> Limits {
        Limits {
            fuel: self.fuel.min(other.fuel),
            memory_bytes: self.memory_bytes.min(other.memory_bytes),
            deadline_ms: self.deadline_ms.min(other.deadline_ms),
            output_bytes: self.output_bytes.min(other.output_bytes),
            log_bytes: self.log_bytes.min(other.log_bytes),
            host_calls: self.host_calls.min(other.host_calls),
            http_requests: self.http_requests.min(other.http_requests),
            http_bytes: self.http_bytes.min(other.http_bytes),
        }
    }
}

impl LimitsRequest {
    /// The limits that apply under a plan's `ceiling`; refused when one asks for more.
    pub fn resolve(self, ceiling: Limits) -> Result<Limits, LimitError> {
        let default = Limits::DEFAULT.min(ceiling);
        let pick = |name, asked: Option<u64>, default, ceiling| match asked {
            None => Ok(default),
            Some(asked) if (1..=ceiling).contains(&asked) => Ok(asked),
            Some(asked) => Err(LimitError { name, asked, ceiling }),
        };
        Ok(Limits {
            fuel: pick("fuel", self.fuel, default.fuel, ceiling.fuel)?,
            memory_bytes: pick("memory_bytes", self.memory_bytes, default.memory_bytes, ceiling.memory_bytes)?,
            deadline_ms: pick("deadline_ms", self.deadline_ms, default.deadline_ms, ceiling.deadline_ms)?,
            output_bytes: pick("output_bytes", self.output_bytes, default.output_bytes, ceiling.output_bytes)?,
            log_bytes: pick("log_bytes", self.log_bytes, default.log_bytes, ceiling.log_bytes)?,
            host_calls: pick("host_calls", self.host_calls, default.host_calls, ceiling.host_calls)?,
            http_requests: pick("http_requests", self.http_requests, default.http_requests, ceiling.http_requests)?,
            http_bytes: pick("http_bytes", self.http_bytes, default.http_bytes, ceiling.http_bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_above_the_ceiling() {
        let ceiling = Limits { fuel: 10, ..Limits::CEILING };
        let ask = |fuel| LimitsRequest { fuel, ..Default::default() }.resolve(ceiling).map(|limits| limits.fuel);
        assert_eq!(ask(Some(11)), Err(LimitError { name: "fuel", asked: 11, ceiling: 10 }));
        assert_eq!(ask(Some(0)), Err(LimitError { name: "fuel", asked: 0, ceiling: 10 }));
        assert_eq!(ask(Some(3)), Ok(3));
        assert_eq!(ask(None), Ok(10));
    }
}
