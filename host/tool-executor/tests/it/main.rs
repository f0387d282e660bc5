//! The bell jar with real tools inside: what each hostile one ends with, and that nobody else notices.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod calls;
mod hostile;
mod jar;
mod upload;
