//! The shapes that answers have.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{json::Json, problem::Refusal};

pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

/// 204.
pub(crate) type Done = Result<StatusCode, Refusal>;

pub(crate) const DONE: Done = Ok(StatusCode::NO_CONTENT);

/// 201, or 202 for what is still being made, with the place of the new thing; or 200.
#[derive(Debug)]
pub(crate) struct Made<T> {
    pub(crate) status: StatusCode,
    pub(crate) location: Option<String>,
    pub(crate) body: T,
}

impl<T> Made<T> {
    /// 200: nothing new has a place.
    pub(crate) fn told(body: T) -> Self {
        Made { status: StatusCode::OK, location: None, body }
    }

    pub(crate) fn created(location: String, body: T) -> Self {
        Made { status: StatusCode::CREATED, location: Some(location), body }
    }

    pub(crate) fn accepted(location: String, body: T) -> Self {
        Made { status: StatusCode::ACCEPTED, location: Some(location), body }
    }

    /// 201 for a new thing, 200 for one that was there.
    pub(crate) fn put(new: bool, location: String, body: T) -> Self {
        Made { status: if new { StatusCode::CREATED } else { StatusCode::OK }, location: Some(location), body }
    }
}

impl<T: Serialize> IntoResponse for Made<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        // Ids and names have no character that a header could not hold.
        if let Some(location) = self.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// Whether the client asks for this media type by name.
pub(crate) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|range| range.trim().eq_ignore_ascii_case(media_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_asked_for_by_name() {
        for (accept, expected) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.9", true),
            ("*/*", false),
            ("text/event-streams", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(accepts(&headers, "text/event-stream"), expected, "{accept}");
        }
    }
}
