//! The bell jar: runs one tool call in a store of its own and says what it consumed.
//!
//! Owns: no table.
//! May use: domain, tool-api, egress.
//! Never: touches the database; holds a secret beyond its call.
//! Start at: `call::Executor::call`.
