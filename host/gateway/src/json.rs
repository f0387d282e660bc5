//! JSON bodies: bounded before they are read, and refused with the place of each mistake.

use axum::{
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use domain::{FieldError, json::pointer_step};
use http::{HeaderMap, header};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, error::Category};
use serde_path_to_error::{Path, Segment};

use crate::{
    Gateway,
    limits::{self, BODY_SECONDS},
    problem::{Refusal, RequestError},
};

/// Bytes of a JSON body where nothing says otherwise.
const JSON_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a body that may carry images in base64.
const LARGE_JSON_BYTES_MAX: usize = 20 * 1024 * 1024;
/// Values in one body: each costs some 50 bytes of memory, whatever it takes in the body.
const JSON_VALUES_MAX: usize = 200_000;
/// Characters of the parser's words that are passed on: they may quote the body.
const DETAIL_CHARS_MAX: usize = 300;

/// A JSON body, in and out.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body with room for images.
#[derive(Debug)]
pub(crate) struct LargeJson<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Gateway> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Gateway) -> Result<Self, Refusal> {
        let bytes = read(request, JSON_BYTES_MAX).await?;
        screen(&bytes, Nul::Refused)?;
        Ok(Json(parse(&bytes)?))
    }
}

impl<T: DeserializeOwned> FromRequest<Gateway> for LargeJson<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Gateway) -> Result<Self, Refusal> {
        let bytes = read(request, LARGE_JSON_BYTES_MAX).await?;
        screen(&bytes, Nul::Replaced)?;
        Ok(LargeJson(parse(&bytes)?))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
            Err(error) => Refusal::from(RequestError::Unwritable(Box::new(error))).into_response(),
        }
    }
}

async fn read(request: Request, bytes_max: usize) -> Result<Bytes, RequestError> {
    if !is_json(request.headers()) {
        return Err(RequestError::MediaType("`application/json`"));
    }
    limits::body(request, bytes_max, BODY_SECONDS).await
}

/// `application/json` or a type made of it, such as `application/merge-patch+json`.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = media_type(headers);
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// `Content-Type` without its parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RequestError> {
    // Serde would take a list for the fields in their order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(RequestError::field("", "send a JSON object, not a list"));
    }
    // serde_json refuses more than 128 levels.
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| wrong(pointer(error.path()), error.inner()))?;
    deserializer.end().map_err(|error| wrong(String::new(), &error))?;
    Ok(value)
}

/// A part of a form that is JSON. Its mistakes are told below `pointer`.
pub(crate) fn part<T: DeserializeOwned>(bytes: &[u8], pointer: &str) -> Result<T, RequestError> {
    let below = |field: FieldError| FieldError::new(format!("{pointer}{}", field.pointer), field.detail);
    screen(bytes, Nul::Refused)?;
    parse(bytes).map_err(|error| match error {
        RequestError::Invalid(fields) => RequestError::Invalid(fields.into_iter().map(below).collect()),
        RequestError::BadJson(words, field) => RequestError::BadJson(words, below(field)),
        other => other,
    })
}

/// The same for a value that was made of a body.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, RequestError> {
    serde_path_to_error::deserialize(value).map_err(|error| wrong(pointer(error.path()), error.inner()))
}

/// What becomes of NUL characters, which the database cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nul {
    Refused,
    /// By those who store what people say, so that no message is lost for one character.
    Replaced,
}

/// Refuses what must not reach the parser: countless values.
fn screen(bytes: &[u8], nul: Nul) -> Result<(), RequestError> {
    let (mut values, mut in_text, mut rest) = (0, false, bytes);
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (in_text, first) {
            (true, b'\\') if nul == Nul::Refused && tail.starts_with(b"u0000") => return Err(RequestError::Nul),
            // An escaped quote ends nothing.
            (true, b'\\') => rest = tail.get(1..).unwrap_or_default(),
            (_, b'"') => in_text = !in_text,
            (false, b',' | b'[' | b'{') => values += 1,
            _ => {}
        }
    }
    if values > JSON_VALUES_MAX { Err(RequestError::TooManyValues(JSON_VALUES_MAX)) } else { Ok(()) }
}

fn wrong(pointer: String, error: &serde_json::Error) -> RequestError {
    let said = error.to_string();
    match error.classify() {
        Category::Data => {
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(words, _)| words);
            RequestError::Invalid(vec![FieldError::new(pointer, cut(said))])
        }
        _ => RequestError::BadJson(cut(&said), FieldError::new(pointer, cut(&said))),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(DETAIL_CHARS_MAX).collect()
}

/// RFC 6901.
fn pointer(path: &Path) -> String {
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => pointer_step(&index.to_string()),
            Segment::Map { key } => pointer_step(key),
            Segment::Enum { .. } | Segment::Unknown => String::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use domain::Problem;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "only read")]
        lines: Vec<u8>,
    }

    #[test]
    fn a_mistake_has_a_code_and_a_place() {
        for (body, code, place) in [
            (r#"{"lines": [1, 2"#, "request.bad_json", "/lines"),
            (r#"{"lines": [1 2]}"#, "request.bad_json", "/lines"),
            ("", "request.bad_json", ""),
            (r#"{"lines": []} x"#, "request.bad_json", ""),
            (r#"{"lines": [1, 300]}"#, "request.invalid", "/lines/1"),
            (r#"{"lines": [], "a/b~": 1}"#, "request.invalid", "/a~1b~0"),
            ("{}", "request.invalid", ""),
            ("[]", "request.invalid", ""),
            (" [[1]]", "request.invalid", ""),
        ] {
            let error = parse::<Order>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), code, "{body}");
            assert_eq!(error.fields()[0].pointer, place, "{body}: {error:?}");
        }
    }

    #[test]
    fn a_body_cannot_hold_countless_values_or_nul() {
        let many = format!("[{}1]", "1,".repeat(JSON_VALUES_MAX));
        assert_eq!(screen(many.as_bytes(), Nul::Replaced).unwrap_err().code(), "request.too_complex");
        let text = json!([",".repeat(JSON_VALUES_MAX + 1), "\"[", "\\"]);
        assert!(screen(text.to_string().as_bytes(), Nul::Refused).is_ok());
        assert!(matches!(screen(br#"["a\u0000"]"#, Nul::Refused), Err(RequestError::Nul)));
        assert!(screen(br#"["a\u0000"]"#, Nul::Replaced).is_ok());
        assert!(screen(br#"["a\\u0000"]"#, Nul::Refused).is_ok());
        let deep = r#"{"a":"#.repeat(200);
        assert_eq!(parse::<Value>(deep.as_bytes()).unwrap_err().code(), "request.bad_json");
    }
}
