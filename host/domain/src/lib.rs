//! The words: ids, money, limits, grants, messages, problems.
//!
//! Owns: no table.
//! May use: nothing.
//! Never: does I/O; is async; reads a clock but for the system clock itself.
//! Start at: `ids`.

pub mod grants;
pub mod ids;
pub mod json;
pub mod limits;
pub mod message;
pub mod money;
pub mod names;
pub mod nul;
pub mod page;
pub mod problem;
pub mod time;

pub use grants::{CallGrants, Grants};
pub use ids::*;
pub use limits::{Limits, LimitsRequest};
pub use money::{Amount, Money};
pub use names::{AgentName, FunctionName, SecretName, ToolName};
pub use problem::{FieldError, Kind, Problem};
pub use secrecy::{ExposeSecret, SecretString};
pub use time::{Clock, SystemClock, Timestamp};
