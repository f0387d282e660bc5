//! How far a call has come, for whoever follows the run.

use crate::host;

/// Shows words, and a part of 100 where it is known. The host shows at most 500 bytes, 10 times a second; the rest is
/// forgotten, and a call is never stopped by it before its limit of host calls.
///
/// ```
/// use belljar_tool::{progress, testing::Call};
///
/// let call = Call::new();
/// call.run(|| {
///     progress::report(None, "looking for pages");
///     progress::report(50, "read 1 of 2");
/// });
/// assert_eq!(call.progress()[1], (Some(50), "read 1 of 2".to_owned()));
/// ```
pub fn report(percent: impl Into<Option<u8>>, text: &str) {
    host::progress(percent.into(), text);
}
