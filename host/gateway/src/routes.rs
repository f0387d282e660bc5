//! One file a noun. A handler opens, asks the owner, answers; no rule lives here.

pub(crate) mod agents;
pub(crate) mod approvals;
pub(crate) mod budgets;
pub(crate) mod calls;
pub(crate) mod chat;
pub(crate) mod conversations;
pub(crate) mod health;
pub(crate) mod key_value;
pub(crate) mod keys;
pub(crate) mod models;
pub(crate) mod operator;
pub(crate) mod provider_keys;
pub(crate) mod runs;
pub(crate) mod secrets;
pub(crate) mod tenant;
pub(crate) mod tools;
pub(crate) mod usage;
pub(crate) mod webhooks;
