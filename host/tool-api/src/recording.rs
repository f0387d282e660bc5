//! What the host gave to a call, so that the call can be run again on it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::Finished;

/// Host inputs of one call that are kept, in bytes: a recording is a row of a database and a page of a console.
pub const RECORDING_BYTES_MAX: usize = 2 << 20;
/// Things that a replayed call asked for in vain and that are told.
pub const MISSING_MAX: usize = 100;

/// A call's host inputs. No secret is in it: a secret's bytes are taken out before. Its arguments, grants and context
/// are not here: they belong to the call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Recording {
    /// The begin of the call, in milliseconds since 1970-01-01T00:00:00Z.
    pub started_unix_ms: u64,
    /// Seed of the call's random numbers, 64 hex digits.
    pub random_seed: String,
    /// What the tool read of the wall clock, in milliseconds since 1970-01-01T00:00:00Z.
    #[serde(default)]
    pub wall_clock: Vec<Reading>,
    /// What the tool read of the monotonic clock, in milliseconds since the call's begin.
    #[serde(default)]
    pub monotonic_clock: Vec<Reading>,
    /// Reads of the tenant's store, in order. What the call itself had written before is not here.
    #[serde(default)]
    pub key_value: Vec<KeyValueRead>,
    /// Listings of the tenant's store, in order.
    #[serde(default)]
    pub key_value_keys: Vec<KeyValueList>,
    /// Requests that were granted, in order.
    #[serde(default)]
    pub http: Vec<HttpExchange>,
    /// Larger than a recording may be: what came later is missing, and the call cannot be replayed.
    pub truncated: bool,
}

/// A time that was read, `count` times one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reading {
    pub ms: u64,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyValueRead {
    pub namespace: String,
    pub key: String,
    /// Absent: there was no such entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Base64>,
    /// The store could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyValueList {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    pub limit: u32,
    pub keys: Vec<String>,
    /// The store could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HttpExchange {
    pub method: String,
    /// As the tool wrote it, without userinfo. What the host added to it is not here.
    pub url: String,
    /// SHA-256 of the request's body, as far as it was sent, in hex. Absent when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_body_sha256: Option<String>,
    /// Absent when there was none: then `error` says why, or the call ended before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<HttpResponse>,
    /// How the exchange failed, in the words of `wasi:http`, before or after the response's head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HttpResponse {
    pub status: u16,
    /// Names and values, in order. A value's bytes are characters U+0000 to U+00FF (ISO 8859-1).
    pub headers: Vec<(String, String)>,
    /// As it came, in pieces: a tool can tell them apart.
    pub body: Vec<Base64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<(String, String)>,
}

/// Bytes; base64 (RFC 4648, section 4) in JSON.
#[derive(Debug, Clone, PartialEq, Eq, utoipa::ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct Base64(pub Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(|bytes| Base64(bytes.into())).map_err(D::Error::custom)
    }
}

/// A replayed call.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub finished: Finished,
    /// What the call asked for and the recording does not hold, in the order of asking. At most `MISSING_MAX`.
    pub missing: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_recording_survives_json() {
        let recording = Recording {
            wall_clock: vec![Reading { ms: 5, count: 2 }],
            key_value: vec![KeyValueRead {
                namespace: "n".into(),
                key: "k".into(),
                value: Some(Base64(Bytes::from_static(&[0, 255]))),
                failed: false,
            }],
            http: vec![HttpExchange {
                method: "GET".into(),
                url: "https://api.example.com/".into(),
                request_body_sha256: None,
                response: Some(HttpResponse { status: 200, ..HttpResponse::default() }),
                error: None,
            }],
            ..Recording::default()
        };
        let text = serde_json::to_string(&recording).unwrap();
        assert!(text.contains(r#""value":"AP8=""#), "{text}");
        assert_eq!(serde_json::from_str::<Recording>(&text).unwrap(), recording);
        let old = json!({"started_unix_ms": 1, "random_seed": "", "truncated": false});
        assert!(serde_json::from_value::<Recording>(old).is_ok());
        assert!(serde_json::from_value::<Base64>(json!("*")).is_err());
    }
}
