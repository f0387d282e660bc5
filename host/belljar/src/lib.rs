//! The product: command line, configuration, wiring, `dev` and `serve`.
//!
//! Owns: no table.
//! May use: domain, tool-api, egress, private-postgres, tenancy, agent-config, billing-meter, model-providers,
//! tool-executor, agent-runtime, gateway.
//! Never: holds logic worth a crate of its own.
//! Start at: `wire::assemble`.
#![expect(clippy::print_stdout, reason = "a program of the command line answers on standard output")]

pub mod cli;
pub mod config;
mod dev;
mod keys;
mod migrate;
mod private_file;
pub mod serve;
mod shown;
mod tool;
pub mod wire;
