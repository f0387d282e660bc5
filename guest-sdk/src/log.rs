//! Lines for the call's receipt, which the tenant reads and the model does not.
//!
//! ```
//! use belljar_tool::{log, testing::Call};
//!
//! let call = Call::new();
//! call.run(|| log::info!("{} rows", 3));
//! assert_eq!(call.logs()[0].message, "3 rows");
//! ```

use crate::host;

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every step.
    Trace,
    /// For whoever looks for a fault.
    Debug,
    /// Worth knowing.
    Info,
    /// Odd, but it went on.
    Warn,
    /// Something failed.
    Error,
    /// Nothing works.
    Critical,
}

/// Writes one line. `context` names the part of the tool that speaks; it may be empty.
pub fn log(level: Level, context: &str, message: &str) {
    host::log(level, context, message);
}

#[doc(hidden)]
#[macro_export]
macro_rules! __trace {
    ($($format:tt)+) => { $crate::log::log($crate::log::Level::Trace, "", &::std::format!($($format)+)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __debug {
    ($($format:tt)+) => { $crate::log::log($crate::log::Level::Debug, "", &::std::format!($($format)+)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __info {
    ($($format:tt)+) => { $crate::log::log($crate::log::Level::Info, "", &::std::format!($($format)+)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __warn {
    ($($format:tt)+) => { $crate::log::log($crate::log::Level::Warn, "", &::std::format!($($format)+)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __error {
    ($($format:tt)+) => { $crate::log::log($crate::log::Level::Error, "", &::std::format!($($format)+)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __critical {
    ($($format:tt)+) => { $crate::log::log($crate::log::Level::Critical, "", &::std::format!($($format)+)) };
}

/// Logs at this level what `format!` would write.
#[doc(inline)]
pub use crate::__critical as critical;
/// Logs at this level what `format!` would write.
#[doc(inline)]
pub use crate::__debug as debug;
/// Logs at this level what `format!` would write.
#[doc(inline)]
pub use crate::__error as error;
/// Logs at this level what `format!` would write.
#[doc(inline)]
pub use crate::__info as info;
/// Logs at this level what `format!` would write.
#[doc(inline)]
pub use crate::__trace as trace;
/// Logs at this level what `format!` would write.
#[doc(inline)]
pub use crate::__warn as warn;
