//! The front door: a turn of a conversation with an agent.

mod turn;

use std::time::Duration;

use agent_config::{
    AgentRef,
    provider_keys::{self, ProviderKeyError},
};
use agent_runtime::{EventCursor, RunStatus, StartOnce, Started, Turn};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use domain::SecretString;
use http::{HeaderMap, HeaderName};
use tenancy::{idempotency::IdempotencyError, keys::Scope};

use crate::{
    Gateway,
    answer::{Made, accepts},
    caller::Caller,
    idempotency::{self, Once},
    json::{Json, LargeJson},
    path::Named,
    problem::{Refusal, RequestError},
    sse,
};
use turn::{ChatBody, ChatError};

/// How long an answer is waited for when nobody says, and at most, in seconds: proxies give up after about that.
const WAIT_SECONDS_MAX: u64 = 60;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PROVIDER_KEY: HeaderName = HeaderName::from_static("x-provider-key");

/// How the client wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    /// Events as they come.
    Stream,
    /// The run at once.
    Background,
    /// The whole answer, if it comes within this time; else the run.
    Wait(Duration),
}

impl Reply {
    /// For how long the client waits for the run's end.
    fn waits(self) -> Duration {
        match self {
            Reply::Wait(limit) => limit,
            Reply::Stream | Reply::Background => Duration::ZERO,
        }
    }
}

/// Says something to an agent. Answers when the run has ended, 202 with the run when it takes longer than `Prefer:
/// wait=n` seconds (60 at most), or an event stream. Scope `chat`.
#[utoipa::path(
    post, path = "/v1/agents/{agent}/chat", request_body = ChatBody,
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=n`: seconds to wait, 60 at most"),
        (
            "X-Provider-Key" = Option<String>, Header,
            description = "A key for the provider of the agent's model, for this run alone: kept sealed, and erased when it ends",
        ),
    ),
    responses(
        (status = 200, description = "The run has ended; it may have failed.", content(
            (Turn = "application/json"), (String = "text/event-stream"),
        )),
        (status = 202, body = Turn, description = "The run goes on."),
    )
)]
pub(crate) async fn chat(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named(agent): Named<AgentRef>,
    headers: HeaderMap,
    LargeJson(body): LargeJson<ChatBody>,
) -> Result<Response, Refusal> {
    caller.require(Scope::Chat)?;
    let reply = reply(&body, &headers)?;
    let user = caller.speaks_for(body.external_user_id.clone())?;
    let mut turn = body.turn(agent, user, caller.key, caller.agents())?;
    turn.configuration = Some(caller.configuration);
    turn.provider_key = provider_key(&headers)?;
    turn.once = once.request().map(|request| StartOnce { request, waits: reply.waits() });
    // Before anything is begun: a refusal afterwards would hide the run.
    let place = (reply == Reply::Stream).then(|| gateway.shared.stream(caller.tenant().id())).transpose()?;
    // On a task of its own: a client that leaves between the commit and the first step does not strand the run.
    let (runtime, tenant) = (gateway.runtime.clone(), caller.tenant().clone());
    let starting = gateway.background.spawn(async move { runtime.start(&tenant, turn).await });
    let started = starting.await.map_err(|error| RequestError::Panicked(error.to_string()))??;
    if let Some(place) = place {
        let events = gateway.runtime.follow_known(caller.tenant(), started.run, EventCursor::default());
        return Ok(again(&started, sse::told(&gateway, place, started.run, events)));
    }
    let turn = match reply {
        // The first request will get the answer.
        Reply::Wait(_) if started.before.is_some_and(|until| gateway.clock.now() < until) => {
            let turn = gateway.runtime.turn(caller.tenant(), started.run).await?;
            if matches!(turn.run.status, RunStatus::Queued | RunStatus::Running) {
                return Err(IdempotencyError::Running.into());
            }
            turn
        }
        Reply::Wait(limit) => gateway.runtime.wait(caller.tenant(), started.run, limit).await?,
        _ => gateway.runtime.turn(caller.tenant(), started.run).await?,
    };
    Ok(again(&started, answer(turn, reply)))
}

/// Says of a run that an earlier request started it.
fn again(started: &Started, response: Response) -> Response {
    if started.before.is_some() { idempotency::mark(response) } else { response }
}

fn answer(turn: Turn, reply: Reply) -> Response {
    match turn.run.status.is_terminal() && reply != Reply::Background {
        true => Json(turn).into_response(),
        false => Made::accepted(format!("/v1/runs/{}", turn.run.id), turn).into_response(),
    }
}

fn reply(body: &ChatBody, headers: &HeaderMap) -> Result<Reply, ChatError> {
    match (body.background, body.stream) {
        (true, Some(true)) => Err(ChatError::StreamInBackground),
        (true, _) => Ok(Reply::Background),
        (false, Some(true)) => Ok(Reply::Stream),
        (false, None) if accepts(headers, "text/event-stream") => Ok(Reply::Stream),
        (false, _) => Ok(Reply::Wait(Duration::from_secs(wait_seconds(headers)))),
    }
}

/// The key that this request brings for the provider of the agent's model.
fn provider_key(headers: &HeaderMap) -> Result<Option<SecretString>, ProviderKeyError> {
    let mut keys = headers.get_all(PROVIDER_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => provider_keys::of_request(key.as_bytes()).map(Some),
        (Some(_), Some(_)) => Err(ProviderKeyError::BadRequestKey),
    }
}

/// `Prefer: wait=n` (RFC 7240); what cannot be read is no preference.
fn wait_seconds(headers: &HeaderMap) -> u64 {
    let preferences = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let waits = preferences.flat_map(|value| value.split(',')).filter_map(|one| {
        let (name, value) = one.split(';').next()?.split_once('=')?;
        let seconds = value.trim().trim_matches('"').parse::<u64>().ok()?;
        name.trim().eq_ignore_ascii_case("wait").then_some(seconds)
    });
    waits.map(|seconds| seconds.min(WAIT_SECONDS_MAX)).next().unwrap_or(WAIT_SECONDS_MAX)
}

#[cfg(test)]
mod tests {
    use domain::{ExposeSecret, Problem};
    use http::{HeaderValue, header};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_waits_a_minute_at_most() {
        for (prefer, expected) in [
            (None, 60),
            (Some("wait=5"), 5),
            (Some("respond-async, Wait=\"7\""), 7),
            (Some("wait=0"), 0),
            (Some("wait=3600"), 60),
            (Some("wait=-1"), 60),
            (Some("wait"), 60),
            (Some("waiting=5"), 60),
        ] {
            let mut headers = HeaderMap::new();
            prefer.map(|value| headers.insert(PREFER, HeaderValue::from_static(value)));
            assert_eq!(wait_seconds(&headers), expected, "{prefer:?}");
        }
    }

    #[test]
    fn a_client_gets_the_form_it_asks_for() {
        let minute = Reply::Wait(Duration::from_secs(60));
        for (body, accept, expected) in [
            (json!({}), "*/*", Ok(minute)),
            (json!({"stream": true}), "*/*", Ok(Reply::Stream)),
            (json!({}), "text/event-stream", Ok(Reply::Stream)),
            (json!({"stream": false}), "text/event-stream", Ok(minute)),
            (json!({"background": true}), "text/event-stream", Ok(Reply::Background)),
            (json!({"background": true, "stream": true}), "*/*", Err(ChatError::StreamInBackground)),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            let given = serde_json::from_value(body.clone()).unwrap();
            assert_eq!(reply(&given, &headers), expected, "{body} {accept}");
        }
    }

    #[test]
    fn a_request_brings_one_key_or_none() {
        let given = |values: &[&'static str]| {
            let mut all = HeaderMap::new();
            for value in values {
                all.append(PROVIDER_KEY, HeaderValue::from_static(value));
            }
            provider_key(&all).map(|key| key.map(|key| key.expose_secret().to_owned())).map_err(|error| error.code())
        };
        assert_eq!(given(&[]), Ok(None));
        assert_eq!(given(&["sk-1"]), Ok(Some("sk-1".to_owned())));
        for wrong in [&["sk-1", "sk-1"][..], &["a b"], &[""]] {
            assert_eq!(given(wrong), Err("provider_key.bad_key"), "{wrong:?}");
        }
    }
}
