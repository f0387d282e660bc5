//! Who is calling, and until when.

use crate::host;

/// What the host knows of the call that is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// `call_...`: the id of this call in the API.
    pub call_id: String,
    /// Stable across attempts of the same call: give it to services that refuse a second execution.
    pub idempotency_key: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// When the host ends the call, in milliseconds since 1970-01-01T00:00:00Z.
    pub deadline_unix_ms: u64,
    /// The agent's name; none in a direct call.
    pub agent: Option<String>,
    /// `conv_...`; none in a direct call.
    pub conversation: Option<String>,
    /// The end user, as the API caller named them; never the model's word.
    pub external_user_id: Option<String>,
    /// What the API caller said about this turn, by key; never the model's word.
    pub context: Vec<(String, String)>,
}

impl Context {
    /// One value of the turn's `context`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.context.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The context of this call.
///
/// ```
/// use belljar_tool::{context, testing::Call, tool};
///
/// /// Names the end user.
/// #[tool]
/// fn who() -> String {
///     context::get().external_user_id.unwrap_or("nobody".into())
/// }
///
/// assert_eq!(Call::new().external_user_id("ada").run(who), "ada");
/// ```
pub fn get() -> Context {
    host::context()
}
