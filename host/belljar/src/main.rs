//! The binary: command line, configuration, wiring, `dev` and `serve`.
//!
//! Owns: no table.
//! May use: everything.
//! Never: holds logic worth a test of its own.
//! Start at: `wire::assemble`.

fn main() {}
