//! What was used, and what it costs.
//!
//! Owns: usage_event, price_book, budget, budget_window, hold.
//! May use: domain, tenancy.
//! Never: computes with floats; commits.
//! Start at: `usage::record`.

// A float cannot hold a tenth: money that passed through one is no longer exact.
#![deny(clippy::float_arithmetic)]

pub mod budgets;
pub mod holds;
pub mod prices;
pub mod usage;

pub use budgets::{Budget, BudgetError, BudgetPatch, BudgetSpec};
pub use holds::{Crossed, Exceeded, Left, Spend, Spender};
pub use prices::{PriceBook, PriceError, Standing};
pub use usage::{Cause, NewEvent, UsageError, UsageEvent, UsageReport, Used};
