//! A run's events as server-sent events: with ids to resume from, kept alive, ended by exactly one terminal event.

use std::{convert::Infallible, time::Duration};

use agent_runtime::{EventCursor, RunError, RunEvent};
use axum::response::{
    IntoResponse, Response, Sse,
    sse::{Event, KeepAlive},
};
use domain::{Problem, RunId};
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};

use crate::{Gateway, limits::StreamPlace, problem::RequestError};

/// How often a silent stream says that it lives: proxies close what is silent for a minute or less.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Where a client wants to go on: the header that browsers send by themselves, else `?after=`, else the beginning.
pub(crate) fn after(headers: &HeaderMap, asked: Option<&str>) -> Result<EventCursor, RequestError> {
    let last = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or_default());
    let cursor = last.or(asked).map(str::parse::<EventCursor>).transpose();
    let wrong = |error: &dyn std::error::Error| match last {
        Some(_) => RequestError::field("", format!("`Last-Event-ID`: {error}")),
        None => RequestError::field("/after", error.to_string()),
    };
    Ok(cursor.map_err(|error| wrong(&error))?.unwrap_or_default())
}

/// Tells events as they come. When the process shuts down, or the events cannot be read, the stream ends without a
/// terminal event: the client resumes elsewhere.
pub(crate) fn told(
    gateway: &Gateway,
    place: StreamPlace,
    run: RunId,
    mut events: BoxStream<'static, Result<RunEvent, RunError>>,
) -> Response {
    let shutdown = gateway.shutdown.clone();
    let stream = async_stream::stream! {
        let _place = place;
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(event) => {
                    let last = event.is_terminal();
                    yield Ok::<_, Infallible>(one(run, event));
                    if last {
                        break;
                    }
                }
                Err(error) => {
                    tracing::error!(run.id = %run, code = error.code(), %error, "a stream of events broke off");
                    break;
                }
            }
        }
    };
    let stream = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // nginx holds answers back otherwise.
    ([("x-accel-buffering", "no")], stream).into_response()
}

fn one(run: RunId, event: RunEvent) -> Event {
    let id = event.id().to_string();
    Event::default().id(id).event(&event.kind).data(data(run, event).to_string())
}

/// Every event says whose it is, and its number.
fn data(run: RunId, event: RunEvent) -> Value {
    let mut data = json!({"run_id": run, "seq": event.seq});
    if let (Value::Object(data), Value::Object(said)) = (&mut data, event.data) {
        data.extend(said);
    }
    data
}

#[cfg(test)]
mod tests {
    use domain::{Ids, SystemIds};
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_client_resumes_where_it_was() {
        let header = |text| HeaderMap::from_iter([(LAST_EVENT_ID, HeaderValue::from_static(text))]);
        for (headers, asked, expected) in [
            (HeaderMap::new(), None, Ok("0")),
            (HeaderMap::new(), Some("3.17"), Ok("3.17")),
            (header("4"), Some("3"), Ok("4")),
            (header("four"), None, Err("")),
            (HeaderMap::new(), Some("-1"), Err("/after")),
        ] {
            let cursor = after(&headers, asked).map(|cursor| cursor.to_string());
            let cursor = cursor.map_err(|error| match error {
                RequestError::Invalid(fields) => fields[0].pointer.clone(),
                other => other.to_string(),
            });
            assert_eq!(cursor.as_deref().map_err(String::as_str), expected, "{headers:?} {asked:?}");
        }
    }

    #[test]
    fn an_event_says_whose_it_is() {
        let run = RunId::from(SystemIds.uuid());
        let event =
            RunEvent { seq: 2, offset: Some(7), kind: "message.delta".into(), data: json!({"text": "hi\nyou"}) };
        assert_eq!(data(run, event.clone()), json!({"run_id": run, "seq": 2, "text": "hi\nyou"}));
        let written = format!("{:?}", one(run, event));
        assert!(written.contains("id: 2.7"), "{written}");
    }
}
