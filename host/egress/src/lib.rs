//! The only way out: parse, resolve, check the address, connect.
//!
//! Owns: no table.
//! May use: domain.
//! Never: knows a business rule; leaves another way out beside it.
//! Start at: `Egress::request`.
