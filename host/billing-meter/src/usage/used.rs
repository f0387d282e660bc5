//! What was used, and how it is counted.

use rust_decimal::Decimal;
use serde::Serialize;

/// Most that one event bills, in its kind's units: ten times what the largest limit of a tool call allows. What a model
/// provider claims beyond it is not usage.
pub(crate) const QUANTITY_MAX: u64 = 1_000_000_000_000;
const MICROSECONDS: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageKind {
    /// Input that no cache held.
    ModelInputTokens,
    ModelCachedInputTokens,
    ModelOutputTokens,
    ToolFuel,
    /// Peak memory times the call's wall time.
    ToolMemoryByteSeconds,
}

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// Only what no cache held: see `Used::model`.
    ModelInput {
        tokens: u64,
    },
    ModelCachedInput {
        tokens: u64,
    },
    ModelOutput {
        tokens: u64,
    },
    ToolFuel {
        fuel: u64,
    },
    /// Bytes times microseconds.
    ToolMemory {
        byte_us: u128,
    },
}

impl UsageKind {
    const ALL: [UsageKind; 5] = [
        UsageKind::ModelInputTokens,
        UsageKind::ModelCachedInputTokens,
        UsageKind::ModelOutputTokens,
        UsageKind::ToolFuel,
        UsageKind::ToolMemoryByteSeconds,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            UsageKind::ModelInputTokens => "model_input_tokens",
            UsageKind::ModelCachedInputTokens => "model_cached_input_tokens",
            UsageKind::ModelOutputTokens => "model_output_tokens",
            UsageKind::ToolFuel => "tool_fuel",
            UsageKind::ToolMemoryByteSeconds => "tool_memory_byte_seconds",
        }
    }

    /// The units that a price is for: a million tokens, a billion fuel, a GiB for a second.
    pub fn per(self) -> u64 {
        match self {
            UsageKind::ModelInputTokens | UsageKind::ModelCachedInputTokens | UsageKind::ModelOutputTokens => 1_000_000,
            UsageKind::ToolFuel => 1_000_000_000,
            UsageKind::ToolMemoryByteSeconds => 1 << 30,
        }
    }

    pub(super) fn parse(text: &str) -> Option<UsageKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl Used {
    /// What one model call used. `input_tokens` is all input, as providers and our own `Usage` report it, of which
    /// `cached_input_tokens` came from a cache: each token is billed once. Nothing used is no event.
    pub fn model(input_tokens: u64, cached_input_tokens: u64, output_tokens: u64) -> Vec<Used> {
        // A provider that claims more cached input than input is believed for the lower number.
        let cached = cached_input_tokens.min(input_tokens);
        not_nothing([
            Used::ModelInput { tokens: input_tokens - cached },
            Used::ModelCachedInput { tokens: cached },
            Used::ModelOutput { tokens: output_tokens },
        ])
    }

    /// What one tool call used, from its receipt.
    pub fn tool_call(fuel_used: u64, memory_peak_bytes: u64, total_us: u64) -> Vec<Used> {
        not_nothing([
            Used::ToolFuel { fuel: fuel_used },
            Used::ToolMemory { byte_us: u128::from(memory_peak_bytes) * u128::from(total_us) },
        ])
    }

    pub fn kind(&self) -> UsageKind {
        match self {
            Used::ModelInput { .. } => UsageKind::ModelInputTokens,
            Used::ModelCachedInput { .. } => UsageKind::ModelCachedInputTokens,
            Used::ModelOutput { .. } => UsageKind::ModelOutputTokens,
            Used::ToolFuel { .. } => UsageKind::ToolFuel,
            Used::ToolMemory { .. } => UsageKind::ToolMemoryByteSeconds,
        }
    }

    /// In the units of `kind`, at most `QUANTITY_MAX`.
    pub fn quantity(&self) -> Decimal {
        match *self {
            Used::ModelInput { tokens } | Used::ModelCachedInput { tokens } | Used::ModelOutput { tokens } => {
                tokens.min(QUANTITY_MAX).into()
            }
            Used::ToolFuel { fuel } => fuel.min(QUANTITY_MAX).into(),
            Used::ToolMemory { byte_us } => {
                let byte_us = byte_us.min(u128::from(QUANTITY_MAX * MICROSECONDS));
                (Decimal::from(byte_us) / Decimal::from(MICROSECONDS)).normalize()
            }
        }
    }
}

fn not_nothing<const N: usize>(used: [Used; N]) -> Vec<Used> {
    used.into_iter().filter(|used| !used.quantity().is_zero()).collect()
}
