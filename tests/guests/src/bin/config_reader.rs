//! Reads its configuration: what was granted, what was not, and far too often.

use belljar_tool::{Error, Result, config, tool, toolbox};

/// One value; an error if it was not granted.
#[tool]
fn value(key: String) -> Result<String> {
    config::get(&key)?.ok_or(Error::new("not granted"))
}

/// How many values there are.
#[tool]
fn count() -> Result<usize> {
    Ok(config::get_all()?.len())
}

/// Reads all values for ever.
#[tool]
fn all_on() -> Result<()> {
    loop {
        std::hint::black_box(config::get_all()?);
    }
}

/// Asks for a value under a key of so many bytes.
#[tool]
fn long_key(bytes: usize) -> Result<bool> {
    Ok(config::get(&"k".repeat(bytes))?.is_some())
}

toolbox!(value, count, all_on, long_key);
fn main() {}
