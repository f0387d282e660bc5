//! Asks the host for one enormous random buffer.

use belljar_tool::{tool, toolbox};
use wasip2::random::{insecure, random};

/// Asks for 1 GiB, or for as many bytes as it is told to.
#[tool]
fn run(bytes: Option<u64>) -> String {
    random::get_random_bytes(bytes.unwrap_or(1 << 30)).len().to_string()
}

/// The same, of the insecure kind.
#[tool]
fn insecure_bytes(bytes: Option<u64>) -> String {
    insecure::get_insecure_random_bytes(bytes.unwrap_or(1 << 30)).len().to_string()
}

toolbox!(run, insecure_bytes);
fn main() {}
