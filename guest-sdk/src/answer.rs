//! What a function answers.

use crate::args;
use schemars::JsonSchema;
use serde::Serialize;
use std::any::Any;
use std::fmt::Display;

/// One part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Words.
    Text(String),
    /// A picture.
    Image {
        /// For example `image/png`.
        media_type: String,
        /// The file's bytes.
        data: Vec<u8>,
    },
}

/// An answer, part by part. Most functions return a string or a type of their own and never see it.
///
/// ```
/// use belljar_tool::{Answer, tool};
///
/// /// Draws a dot.
/// #[tool]
/// fn dot() -> Answer {
///     Answer::text("a dot").and_image("image/gif", *b"GIF89a...")
/// }
///
/// assert_eq!(dot().content.len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// What the model sees, in order.
    pub content: Vec<Content>,
    /// A JSON value beside it, for programs.
    pub structured: Option<String>,
    /// The function failed, in a way that the model may react to.
    pub is_error: bool,
}

impl Answer {
    /// An answer in words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { content: vec![Content::Text(text.into())], ..Self::default() }
    }

    /// A failure in words: say what to do instead.
    pub fn error(text: impl Into<String>) -> Self {
        Self { is_error: true, ..Self::text(text) }
    }

    /// A JSON value, as `structured` and as text. A JSON string is text alone, and `()` is `done`.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(json) if json == "null" => Self::text("done"),
            Ok(json) if json.starts_with('"') => Self::text(serde_json::from_str::<String>(&json).unwrap_or(json)),
            Ok(json) => Self { structured: Some(json.clone()), ..Self::text(json) },
            Err(error) => Self::error(format!("the answer cannot be written as JSON: {error}")),
        }
    }

    /// Adds words.
    pub fn and_text(mut self, text: impl Into<String>) -> Self {
        self.content.push(Content::Text(text.into()));
        self
    }

    /// Adds an image.
    pub fn and_image(mut self, media_type: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        self.content.push(Content::Image { media_type: media_type.into(), data: data.into() });
        self
    }
}

/// What a function may return: [`Answer`], and everything with serde's `Serialize` and schemars' `JsonSchema`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a tool's answer",
    note = "derive `serde::Serialize` and `schemars::JsonSchema`, or return a `belljar_tool::Answer`"
)]
pub trait IntoAnswer {
    /// The answer.
    fn into_answer(self) -> Answer;

    /// JSON Schema of `structured`, where every answer has one and it is an object.
    fn output_schema() -> Option<String>;
}

impl IntoAnswer for Answer {
    fn into_answer(self) -> Answer {
        self
    }

    fn output_schema() -> Option<String> {
        None
    }
}

impl<T: Serialize + JsonSchema + 'static> IntoAnswer for T {
    fn into_answer(self) -> Answer {
        let mut value = Some(self);
        // A string goes out as it is: through JSON and back, a long one would cost most of the call.
        match (&mut value as &mut dyn Any).downcast_mut::<Option<String>>() {
            Some(text) => Answer::text(text.take().unwrap_or_default()),
            None => Answer::json(&value),
        }
    }

    fn output_schema() -> Option<String> {
        args::output_schema::<T>()
    }
}

/// A `Result` by whatever name; `#[tool]` asks for it where the return type is called `Result`.
#[doc(hidden)]
pub trait Fallible {
    type Ok: IntoAnswer;

    fn answer(self) -> Answer;
}

impl<T: IntoAnswer, E: Display> Fallible for Result<T, E> {
    type Ok = T;

    fn answer(self) -> Answer {
        match self {
            Ok(value) => value.into_answer(),
            Err(error) => Answer::error(error.to_string()),
        }
    }
}
