//! JSON that strangers write: read with the place of each mistake, kept storable.

use domain::{FieldError, json::pointer_step};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

/// Reads a value; the mistake points (RFC 6901) to its place.
pub(crate) fn parse<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let mut pointer = String::new();
        for segment in error.path() {
            match segment {
                Segment::Seq { index } => pointer.push_str(&pointer_step(&index.to_string())),
                Segment::Map { key } => pointer.push_str(&pointer_step(key)),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        FieldError::new(pointer, error.into_inner().to_string())
    })
}

/// The place of a NUL character, which Postgres stores in no text and no jsonb.
pub(crate) fn nul(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            let mut pointer = format!("/{index}");
            pointer.push_str(&nul(item)?);
            Some(pointer)
        }),
        Value::Object(fields) => fields.iter().find_map(|(key, item)| {
            let mut pointer = pointer_step(key);
            if !key.contains('\0') {
                pointer.push_str(&nul(item)?);
            }
            Some(pointer)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Bytes of a value's JSON.
pub(crate) fn bytes(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A value of ours always becomes JSON; if one did not, what was written until then still counts.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mistake_has_a_place() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Item {
            #[expect(dead_code, reason = "only read")]
            n: Vec<u8>,
        }
        let place = |value| parse::<Item>(value).unwrap_err().pointer;
        assert_eq!(place(json!({"n": [1, 300]})), "/n/1");
        assert_eq!(place(json!({"n": [], "a/b~": 1})), "/a~1b~0");
        assert_eq!(place(json!({})), "");
        assert_eq!(nul(&json!({"a/b": ["x", "y\0"]})).as_deref(), Some("/a~1b/1"));
        assert_eq!(nul(&json!({"a": "\\u0000"})), None);
    }

    #[test]
    fn bytes_are_those_of_the_json() {
        assert_eq!(bytes(&json!({"a": "é"})), r#"{"a":"é"}"#.len());
    }
}
