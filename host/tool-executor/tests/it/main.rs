//! The bell jar with real tools inside: what each hostile one ends with, and that nobody else notices.

mod calls;
mod hostile;
mod jar;
mod upload;
