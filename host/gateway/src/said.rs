//! What a client says in a message: a text, or parts of text and images.

use std::fmt;

use conversation_store::messages::check_parts;
use domain::{
    FieldError,
    message::{Part, Role},
};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, OneOfBuilder, Ref, RefOr, Schema},
};

/// A text, or parts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<InputPart>),
}

/// A part that a client may send. The host fetches no URL.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, try_from = "PartFields")]
pub(crate) enum InputPart {
    Text {
        text: String,
    },
    Image {
        /// `image/png`, `image/jpeg`, `image/gif` or `image/webp`.
        media_type: String,
        /// Base64 (RFC 4648, with padding).
        data: String,
    },
}

/// A part as it is read. Read by its tag, serde could not say at which field it is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartFields {
    #[serde(rename = "type")]
    kind: PartKind,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PartKind {
    Text,
    Image,
}

impl TryFrom<PartFields> for InputPart {
    type Error = &'static str;

    fn try_from(fields: PartFields) -> Result<Self, Self::Error> {
        match fields {
            PartFields { kind: PartKind::Text, text: Some(text), media_type: None, data: None } => {
                Ok(InputPart::Text { text })
            }
            PartFields { kind: PartKind::Image, text: None, media_type: Some(media_type), data: Some(data) } => {
                Ok(InputPart::Image { media_type, data })
            }
            PartFields { kind: PartKind::Text, .. } => Err("a part of type `text` has a `text` and nothing else"),
            PartFields { kind: PartKind::Image, .. } => {
                Err("a part of type `image` has `media_type` and `data` and nothing else")
            }
        }
    }
}

/// A message of `user` or `assistant`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaidMessage {
    #[schema(value_type = String, pattern = "^(user|assistant)$")]
    pub(crate) role: String,
    pub(crate) content: Content,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of parts {type: \"text\" or \"image\", ...}")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        let parts = ArrayBuilder::new().items(Ref::from_schema_name(InputPart::name()));
        OneOfBuilder::new().item(String::schema()).item(parts).into()
    }
}

impl ToSchema for Content {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((InputPart::name().into(), InputPart::schema()));
    }
}

impl Content {
    /// As a message holds it; or what is wrong with it, below `pointer`.
    pub(crate) fn parts(self, pointer: &str) -> Result<Vec<Part>, Vec<FieldError>> {
        let parts: Vec<Part> = match self {
            Content::Text(text) => vec![Part::Text { text }],
            Content::Parts(parts) => parts.into_iter().map(Part::from).collect(),
        };
        match check_parts(pointer, &parts) {
            wrong if wrong.is_empty() => Ok(parts),
            wrong => Err(wrong),
        }
    }
}

impl From<InputPart> for Part {
    fn from(part: InputPart) -> Self {
        match part {
            InputPart::Text { text } => Part::Text { text },
            InputPart::Image { media_type, data } => Part::Image { media_type, data },
        }
    }
}

/// Who may have said something: not `system` or `developer`, who speak in the agent's prompt, and not `tool`.
pub(crate) fn role(text: &str) -> Option<Role> {
    match text {
        "user" => Some(Role::User),
        "assistant" => Some(Role::Assistant),
        _ => None,
    }
}
