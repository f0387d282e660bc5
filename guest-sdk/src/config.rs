//! Values that the agent's owner set for this tool.

use crate::host;

/// The host could not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub(crate) String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the configuration cannot be read: {}", self.0)
    }
}

impl std::error::Error for Error {}

/// One value; none if it was not granted.
///
/// ```
/// use belljar_tool::{config, testing::Call};
///
/// let unit = Call::new().config("unit", "mile").run(|| config::get("unit"));
/// assert_eq!(unit, Ok(Some("mile".into())));
/// ```
pub fn get(key: &str) -> Result<Option<String>, Error> {
    host::config(key)
}

/// Every value that was granted, by key.
pub fn get_all() -> Result<Vec<(String, String)>, Error> {
    host::config_all()
}
