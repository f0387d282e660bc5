//! Every file in `tests/guests` by name, so that a guest without a test does not compile.
//!
//! ```ignore
//! mod rows {
//!     pub(super) fn spin() -> Row { .. }
//! }
//! for (name, row) in every_guest::foreach_guest!(rows) { .. }
//! ```

include!(concat!(env!("OUT_DIR"), "/guests.rs"));
