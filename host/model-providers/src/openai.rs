//! OpenAI and every address that speaks its chat completions: Gemini's compatible one, and whatever a tenant names.

mod body;
mod frames;

use http::{HeaderName, header};
use serde_json::Value;
use url::Url;

use crate::{
    ModelRequest,
    wire::{Dialect, Frames, Lines},
};

/// Whose chat completions they are. They differ in names of fields, and in what they leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    Openai,
    Gemini,
    Compatible,
}

impl Flavor {
    /// Where it is when nobody says. A compatible one must say.
    pub(crate) fn base_url(self) -> Option<&'static str> {
        match self {
            Flavor::Openai => Some("https://api.openai.com/v1"),
            Flavor::Gemini => Some("https://generativelanguage.googleapis.com/v1beta/openai"),
            Flavor::Compatible => None,
        }
    }
}

impl Dialect for Flavor {
    fn path(&self, _: &Url) -> &'static [&'static str] {
        &["chat", "completions"]
    }

    fn authentication(&self, key: &str) -> (HeaderName, String) {
        (header::AUTHORIZATION, format!("Bearer {key}"))
    }

    fn body(&self, request: &ModelRequest) -> Value {
        body::build(*self, request)
    }

    /// Images come only to who asks for them.
    fn lines(&self, request: &ModelRequest) -> Lines {
        let asked = request.options.get("modalities").and_then(Value::as_array);
        let images = asked.is_some_and(|asked| asked.iter().any(|one| one == "image"));
        if images { Lines::Images } else { Lines::Texts }
    }

    fn frames(&self) -> Box<dyn Frames> {
        Box::new(frames::Chunks::of(*self))
    }
}

#[cfg(test)]
mod tests;
