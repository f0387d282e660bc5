//! An error for tools that have no better one.

use std::fmt;

/// Words for the model. Every standard error becomes one by `?`.
///
/// ```
/// use belljar_tool::{Error, Result, tool};
///
/// /// Halves an even number.
/// #[tool]
/// fn halve(number: String) -> Result<i64> {
///     let number: i64 = number.trim().parse()?;
///     if number % 2 != 0 {
///         return Err(Error::new(format!("{number} is odd; give an even number")));
///     }
///     Ok(number / 2)
/// }
///
/// assert_eq!(halve("12".into()).unwrap(), 6);
/// assert_eq!(halve("x".into()).unwrap_err().to_string(), "invalid digit found in string");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// A result that fails with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error in words; say what to do instead.
    pub fn new(words: impl fmt::Display) -> Self {
        Self(words.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `Error` itself is no `std::error::Error`: that would collide with `From<T> for T`.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}
