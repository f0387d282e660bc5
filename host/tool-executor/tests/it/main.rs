//! The bell jar with real tools inside: what each hostile one ends with, and that nobody else notices.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod calls;
mod contracts;
mod host;
mod hostile;
mod http;
mod jar;
mod key_value;
mod languages;
mod progress;
mod replay;
mod residue;
mod scratch;
mod sdk;
mod secrets;
mod typed;
mod upload;
