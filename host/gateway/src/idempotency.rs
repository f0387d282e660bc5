//! `Idempotency-Key`: a POST is done once, however often it is sent.
//!
//! Every handler of a POST takes a `Once` after its `Caller`, and asks it first and last. One that works in a single
//! transaction asks `answered` and ends with `commit`; one that works longer goes `around` its work. What a chat or a tool
//! call came to is a row already: they are known by their `request`. `tests/it/once.rs` sends every POST twice.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use domain::{Clock, Kind, Problem};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tenancy::{
    Db, Tenant, TenantTx,
    idempotency::{
        self, Answer, IdempotencyError, Opened, Request, Reservation, Way,
        operator::{self, OperatorTx},
    },
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Gateway,
    answer::Made,
    caller::CallerError,
    problem::{Refusal, RequestError},
};

/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 255;
/// Between two looks for what is a day old. Nobody waits for it: an old row is as good as none.
const SWEEP_PAUSE: Duration = Duration::from_secs(600);

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is the one to an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Whose keys a request may use: the API key that it came with; nil for the operator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder(pub(crate) Uuid);

/// What a request asks, as far as its body says it: the hash of that. For whoever reads the body.
#[derive(Debug, Default)]
pub(crate) struct Payload(Mutex<[u8; 32]>);

impl Payload {
    pub(crate) fn is(&self, parts: &[&[u8]]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = digest(parts);
    }

    fn get(&self) -> [u8; 32] {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A POST, with the key that it came with, if it came with one.
pub(crate) struct Once {
    gateway: Gateway,
    keyed: Option<Keyed>,
}

struct Keyed {
    holder: Holder,
    key: [u8; 32],
    /// Method, path and query.
    route: [u8; 32],
    payload: Arc<Payload>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum KeyError {
    #[error("`Idempotency-Key` stands twice; send it once")]
    Twice,
    #[error("an `Idempotency-Key` has 1 to {KEY_BYTES_MAX} bytes, bare or in quotes, such as a UUID")]
    Unreadable,
}

impl Problem for KeyError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }

    fn code(&self) -> &'static str {
        "idempotency_key.invalid"
    }
}

impl FromRequestParts<Gateway> for Once {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        let gateway = gateway.clone();
        let Some(key) = key(&parts.headers)? else { return Ok(Once { gateway, keyed: None }) };
        // Who asks is known by now: every handler takes its caller first.
        let holder = *parts.extensions.get::<Holder>().ok_or(CallerError::Missing)?;
        let asked = parts.uri.path_and_query().map_or("", |asked| asked.as_str());
        let route = digest(&[parts.method.as_str().as_bytes(), asked.as_bytes()]);
        let payload = Arc::<Payload>::default();
        parts.extensions.insert(payload.clone());
        Ok(Once { gateway, keyed: Some(Keyed { holder, key: digest(&[&key]), route, payload }) })
    }
}

impl Once {
    /// By what the request is known again. Asked when its body has been read.
    pub(crate) fn request(&self) -> Option<Request> {
        let Keyed { holder, key, route, payload } = self.keyed.as_ref()?;
        Some(Request { holder: holder.0, key: *key, fingerprint: digest(&[route, &payload.get()]) })
    }

    /// What the request asks, where its body does not say it byte by byte.
    pub(crate) fn asks(&self, parts: &[&[u8]]) {
        if let Some(keyed) = &self.keyed {
            keyed.payload.is(parts);
        }
    }

    /// The first answer, when there was one. Else the request is this transaction's, which ends with `commit`.
    pub(crate) async fn answered(&self, tx: &mut TenantTx) -> Result<Option<Response>, Refusal> {
        let Some(request) = self.request() else { return Ok(None) };
        let (master, now) = (&self.gateway.master_key, self.gateway.clock.now());
        match idempotency::open(tx, master, &request, Way::Answer, now).await? {
            Opened::First => Ok(None),
            Opened::Answered(answer) => Ok(Some(replayed(answer)?)),
            Opened::Again(_) | Opened::Run { .. } | Opened::Call(_) => Err(IdempotencyError::Unkept.into()),
        }
    }

    /// Commits, with the answer for whoever asks again.
    pub(crate) async fn commit<T: Serialize>(&self, mut tx: TenantTx, made: Made<T>) -> Result<Response, Refusal> {
        let answer = kept(&made)?;
        if let Some(request) = self.request() {
            let (master, now) = (&self.gateway.master_key, self.gateway.clock.now());
            idempotency::keep(&mut tx, master, &request, None, &answer, now).await?;
        }
        tx.commit().await?;
        first(answer)
    }

    /// The same for what the operator asks that is of no tenant which exists.
    pub(crate) async fn operator_answered(&self, tx: &mut impl OperatorTx) -> Result<Option<Response>, Refusal> {
        let Some(request) = self.request() else { return Ok(None) };
        let answer = operator::open(tx, &self.gateway.master_key, &request, self.gateway.clock.now()).await?;
        answer.map(replayed).transpose()
    }

    pub(crate) async fn operator_commit<T: Serialize>(
        &self,
        mut tx: impl OperatorTx,
        made: Made<T>,
    ) -> Result<Response, Refusal> {
        let answer = kept(&made)?;
        if let Some(request) = self.request() {
            operator::keep(&mut tx, &self.gateway.master_key, &request, &answer).await?;
        }
        tx.done().await?;
        first(answer)
    }

    /// Work of more than one transaction, whose answer is kept in one that follows. A crash between the two lets it be done
    /// again, so it is for what may be done twice without harm.
    pub(crate) async fn around<T: Serialize>(
        &self,
        tenant: &Tenant,
        work: impl Future<Output = Result<Made<T>, Refusal>>,
    ) -> Result<Response, Refusal> {
        let reservation = match self.reserve(tenant).await? {
            Reserved::Before(response) => return Ok(response),
            Reserved::Here(reservation) => reservation,
        };
        let made = self.renewing(tenant, reservation, work).await?;
        let answer = kept(&made)?;
        if let Some(reservation) = reservation {
            let mut tx = tenant.begin().await?;
            let (master, now) = (&self.gateway.master_key, self.gateway.clock.now());
            reservation.keep(&mut tx, master, &answer, now).await?;
            tx.commit().await?;
        }
        first(answer)
    }

    /// Makes the request this process's, in a transaction of its own.
    pub(crate) async fn reserve(&self, tenant: &Tenant) -> Result<Reserved, Refusal> {
        let Some(request) = self.request() else { return Ok(Reserved::Here(None)) };
        let reservation = Reservation { request, by: self.gateway.ids.uuid() };
        let way = Way::Reserved { by: reservation.by, call: None };
        let mut tx = tenant.begin().await?;
        match idempotency::open(&mut tx, &self.gateway.master_key, &request, way, self.gateway.clock.now()).await? {
            Opened::First | Opened::Again(_) => {
                tx.commit().await?;
                Ok(Reserved::Here(Some(reservation)))
            }
            Opened::Answered(answer) => Ok(Reserved::Before(replayed(answer)?)),
            Opened::Run { .. } | Opened::Call(_) => Err(IdempotencyError::Unkept.into()),
        }
    }

    /// Works, and renews the reservation meanwhile. After an error the key is free again.
    pub(crate) async fn renewing<T>(
        &self,
        tenant: &Tenant,
        reservation: Option<Reservation>,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let Some(reservation) = reservation else { return work.await };
        let done = reservation.renewing(tenant, &*self.gateway.clock, work).await?;
        if done.is_err() {
            let mut tx = tenant.begin().await?;
            reservation.release(&mut tx).await?;
            tx.commit().await?;
        }
        done
    }
}

/// Who does a request.
pub(crate) enum Reserved {
    /// Somebody did, and this is what was answered.
    Before(Response),
    /// This process. With a reservation, where the request has a key.
    Here(Option<Reservation>),
}

/// Says that what is answered was done before.
pub(crate) fn mark(mut response: Response) -> Response {
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// Forgets what is older than a day, until the process stops.
pub async fn sweep(db: Db, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(SWEEP_PAUSE)).await.is_some() {
        if let Err(error) = db.sweep_idempotency(clock.now()).await {
            tracing::warn!(%error, "old idempotency keys were not forgotten");
        }
        if let Err(error) = db.sweep_holds().await {
            tracing::warn!(%error, "what dead calls hold of budgets was not given back");
        }
    }
}

fn kept<T: Serialize>(made: &Made<T>) -> Result<Answer, RequestError> {
    let body = serde_json::to_string(&made.body).map_err(|error| RequestError::Unwritable(Box::new(error)))?;
    Ok(Answer { status: made.status.as_u16(), location: made.location.clone(), body })
}

fn first(answer: Answer) -> Result<Response, Refusal> {
    let status = StatusCode::from_u16(answer.status).map_err(|error| RequestError::Unwritable(Box::new(error)))?;
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], answer.body).into_response();
    if let Some(location) = answer.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

fn replayed(answer: Answer) -> Result<Response, Refusal> {
    first(answer).map(mark)
}

/// The key of a request, without quotes: both forms are one key.
fn key(headers: &HeaderMap) -> Result<Option<Vec<u8>>, KeyError> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(KeyError::Twice);
    }
    let text = value.as_bytes().trim_ascii();
    let key = if text.starts_with(b"\"") { unquoted(text).ok_or(KeyError::Unreadable)? } else { text.to_vec() };
    if (1..=KEY_BYTES_MAX).contains(&key.len()) { Ok(Some(key)) } else { Err(KeyError::Unreadable) }
}

/// A string of a structured field (RFC 8941, 3.3.3).
fn unquoted(text: &[u8]) -> Option<Vec<u8>> {
    let mut rest = text.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let mut key = Vec::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        rest = tail;
        key.push(match first {
            b'"' => return None,
            b'\\' => {
                let [escaped @ (b'"' | b'\\'), tail @ ..] = rest else { return None };
                rest = tail;
                *escaped
            }
            byte => *byte,
        });
    }
    Some(key)
}

/// Each part with its length, so that no two lists are alike.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, KeyError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEY, HeaderValue::from_str(value).unwrap());
        }
        Ok(key(&headers)?.map(|key| String::from_utf8(key).unwrap()))
    }

    #[test]
    fn a_key_comes_bare_or_quoted() {
        let long = "x".repeat(KEY_BYTES_MAX);
        for (values, expected) in [
            (vec![], Ok(None)),
            (vec!["abc"], Ok(Some("abc"))),
            (vec![" abc "], Ok(Some("abc"))),
            (vec!["\"abc\""], Ok(Some("abc"))),
            (vec!["\"a\\\"b\\\\\""], Ok(Some("a\"b\\"))),
            (vec![long.as_str()], Ok(Some(long.as_str()))),
            (vec!["a", "a"], Err(KeyError::Twice)),
            (vec![""], Err(KeyError::Unreadable)),
            (vec!["\"\""], Err(KeyError::Unreadable)),
            (vec!["\""], Err(KeyError::Unreadable)),
            (vec!["\"a"], Err(KeyError::Unreadable)),
            (vec!["\"a\"b\""], Err(KeyError::Unreadable)),
            (vec!["\"a\\\""], Err(KeyError::Unreadable)),
            (vec!["\"\\a\""], Err(KeyError::Unreadable)),
            (vec![&format!("{long}x")], Err(KeyError::Unreadable)),
        ] {
            assert_eq!(read(&values), expected.map(|key| key.map(str::to_owned)), "{values:?}");
        }
    }

    #[test]
    fn what_is_asked_is_not_what_it_is_made_of() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_ne!(digest(&[b"ab"]), digest(&[b"ab", b""]));
    }
}
