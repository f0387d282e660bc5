//! One attempt: signed, sent once, and judged by the status of the answer.

use std::time::Duration;

use agent_config::webhooks::{
    Target,
    deliveries::{Attempted, Due},
};
use domain::Ids;
use egress::{ChosenBy, EgressError, Request, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::json;
use tokio::time::Instant;

use super::{
    SenderParts,
    schedule::{self, Outcome},
    sign,
};

/// Longest wait for a receiver's answer: whoever has more to do takes the notice first and works later.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Characters of an error that are kept: they are shown to people.
const ERROR_CHARS_MAX: usize = 300;

pub(super) async fn make(parts: &SenderParts, target: &Target, due: &Due) -> Attempted {
    let (at, began) = (parts.clock.now(), Instant::now());
    let answer = send(parts, target, due, at.unix_us().div_euclid(1_000_000)).await;
    let (response_status, outcome) = judge(answer);
    let after = schedule::after(outcome, due.attempt, target.failing_since, parts.clock.now(), chance(&*parts.ids));
    Attempted { at, duration: began.elapsed(), response_status, after }
}

/// The last 32 bits of an id are random.
fn chance(ids: &dyn Ids) -> f64 {
    f64::from(ids.uuid().as_u128() as u32) / f64::from(u32::MAX)
}

async fn send(parts: &SenderParts, target: &Target, due: &Due, timestamp: i64) -> Result<Response, EgressError> {
    let body = json!({"type": due.event, "timestamp": due.created_at, "data": due.data}).to_string();
    let id = due.id.to_string();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("Belljar-Webhooks/1"));
    for (name, value) in [
        ("webhook-id", id.clone()),
        ("webhook-timestamp", timestamp.to_string()),
        ("webhook-signature", sign::header(&target.keys, &id, timestamp, &body)),
    ] {
        // Ids, digits and base64: always a header's text.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    let request = Request {
        method: Method::POST,
        url: target.url.clone(),
        headers,
        body: body.into(),
        chosen_by: ChosenBy::Tenant,
        first_byte: ANSWER_MAX,
        // The body of the answer is never read: it is dropped with the connection.
        between_bytes: ANSWER_MAX,
        body_bytes_max: u64::MAX,
    };
    parts.egress.send(request).await
}

fn judge(answer: Result<Response, EgressError>) -> (Option<u16>, Outcome) {
    let response = match answer {
        Ok(response) => response,
        Err(error) => {
            let error = error.to_string().chars().take(ERROR_CHARS_MAX).collect();
            return (None, Outcome::Failed { error, retry_after: None });
        }
    };
    let status = response.status;
    let outcome = match status {
        status if status.is_success() => Outcome::Arrived,
        StatusCode::GONE => Outcome::Gone,
        status if status.is_redirection() => Outcome::Failed {
            error: format!(
                "it answered {}: redirects are not followed; give the webhook the final URL",
                status.as_u16()
            ),
            retry_after: None,
        },
        status => Outcome::Failed {
            error: format!("it answered {}; answer 2xx once the notice is taken", status.as_u16()),
            retry_after: retry_after(&response.headers),
        },
    };
    (Some(status.as_u16()), outcome)
}

/// In seconds; dates are rare, and a clock that is wrong would be believed.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
