//! What was used, and what it costs.
//!
//! Owns: usage_event, price_book.
//! May use: domain, tenancy.
//! Never: computes with floats; commits.
//! Start at: `usage::record`.
