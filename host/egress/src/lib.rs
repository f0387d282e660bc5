//! The only way out: parse, resolve, check the address, connect.
//!
//! Owns: no table.
//! May use: domain.
//! Never: knows a business rule; leaves another way out beside it.
//! Start at: `Egress::send`.

mod address;
mod client;
mod error;
mod lookup;
mod url_check;

use address::is_public;
pub use client::{ChosenBy, Egress, Request, Response};
pub use error::EgressError;
pub use lookup::{Lookup, SystemLookup};
