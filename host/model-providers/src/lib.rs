//! Models behind one trait: the demo model and every OpenAI-compatible address.
//!
//! Owns: no table.
//! May use: domain, egress.
//! Never: touches the database.
//! Start at: `ModelProvider`.
