//! Anthropic's messages, and every address that speaks them.

mod body;
mod frames;

use http::HeaderName;
use serde_json::Value;
use url::Url;

use crate::{
    ModelRequest,
    wire::{Dialect, Frames, Lines},
};

pub(crate) const BASE_URL: &str = "https://api.anthropic.com/v1";
/// The version of the format that is spoken here.
const VERSION: &str = "2023-06-01";

pub(crate) struct Messages;

impl Dialect for Messages {
    /// Anthropic's own clients name the host alone.
    fn path(&self, base_url: &Url) -> &'static [&'static str] {
        if base_url.path().trim_matches('/').is_empty() { &["v1", "messages"] } else { &["messages"] }
    }

    fn authentication(&self, key: &str) -> (HeaderName, String) {
        (HeaderName::from_static("x-api-key"), key.to_owned())
    }

    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[("anthropic-version", VERSION)]
    }

    fn body(&self, request: &ModelRequest) -> Value {
        body::build(request)
    }

    fn lines(&self, _: &ModelRequest) -> Lines {
        Lines::Texts
    }

    fn frames(&self) -> Box<dyn Frames> {
        Box::new(frames::Blocks::default())
    }
}

#[cfg(test)]
mod tests;
