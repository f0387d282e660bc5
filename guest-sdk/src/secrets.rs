//! Secrets that a grant makes readable. Most tools need none: a grant can add a secret to a request's header instead.

use crate::host;

/// No grant names this secret, or it is not stored as readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(pub(crate) String);

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "denied: {}; add the secret to the binding's secrets grants, and store it as readable", self.0)
    }
}

impl std::error::Error for Denied {}

/// The secret of this name.
///
/// ```
/// use belljar_tool::{secrets, testing::Call};
///
/// let call = Call::new().secret("token", "s3cret");
/// assert_eq!(call.run(|| secrets::get("token")), Ok("s3cret".into()));
/// assert!(call.run(|| secrets::get("other")).is_err());
/// ```
pub fn get(name: &str) -> Result<String, Denied> {
    host::secret(name)
}
