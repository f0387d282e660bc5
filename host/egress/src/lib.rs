//! The only way out: parse, resolve, check the address, connect.
//!
//! Owns: no table.
//! May use: domain.
//! Never: knows a business rule; leaves another way out beside it.
//! Start at: `Egress::send`; for tools `Egress::exchange`.

mod address;
mod client;
mod error;
mod exchange;
mod lookup;
mod url_check;

use address::is_public;
pub use client::{ChosenBy, Egress, Request, Response};
pub use error::{EgressError, Failure, Wait};
pub use exchange::{Answer, Exchange, GivenUp, Piece, PlainHttp};
pub use lookup::{Lookup, SystemLookup};
pub use url_check::{TOOL_URL_BYTES_MAX, Target};
