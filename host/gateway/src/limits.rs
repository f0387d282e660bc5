//! What one request may take, and what surrounds every one: its id, its place, its share of memory, its line in the log.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use domain::TenantId;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::{
    Gateway,
    idempotency::Payload,
    metrics,
    problem::{self, Refusal, RequestError},
    rates::Standing,
};

/// Requests that one listener answers at once; one more is sent away with 503.
const REQUESTS_MAX: usize = 1024;
/// Event streams open at once: each holds a connection and little else.
const STREAMS_MAX: usize = 4096;
/// Requests of one tenant at once, so that there is room for others.
const TENANT_REQUESTS_MAX: usize = 256;
/// Event streams of one tenant at once.
const TENANT_STREAMS_MAX: usize = 256;
/// Bodies held in memory at once, in KiB: eight of the largest uploads.
const BODIES_KIB_MAX: u32 = 512 * 1024;
/// Bytes of an uploaded component, whatever a plan says: components of Python have 20 MB.
pub(crate) const UPLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Seconds in which a JSON body must have arrived.
pub(crate) const BODY_SECONDS: u64 = 30;
/// Seconds in which an upload must have arrived.
pub(crate) const UPLOAD_SECONDS: u64 = 300;
/// Characters of a request's id that a client chose.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Room that is made for a body before it arrives, in bytes: `Content-Length` is only a promise.
const BODY_BYTES_FIRST: usize = 64 * 1024;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What all requests share.
pub(crate) struct Shared {
    bodies_kib: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    tenant_requests: Arc<PerTenant>,
    tenant_streams: Arc<PerTenant>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            bodies_kib: Arc::new(Semaphore::new(BODIES_KIB_MAX as usize)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            tenant_requests: Arc::new(PerTenant::new(TENANT_REQUESTS_MAX, "requests")),
            tenant_streams: Arc::new(PerTenant::new(TENANT_STREAMS_MAX, "event streams")),
        }
    }

    /// A place for an event stream, kept as long as the stream.
    pub(crate) fn stream(&self, tenant: TenantId) -> Result<StreamPlace, RequestError> {
        let of_tenant = self.tenant_streams.take(tenant)?;
        let of_all = self.streams.clone().try_acquire_owned().map_err(|_| RequestError::Overloaded)?;
        Ok(StreamPlace { _of_tenant: of_tenant, _of_all: of_all })
    }

    /// Counts a request as its tenant's until it is answered. For whoever finds out whose it is.
    pub(crate) fn count(&self, tenant: TenantId, extensions: &http::Extensions) -> Result<(), RequestError> {
        if let Some(share) = extensions.get::<Arc<Share>>() {
            // A second look at the same request changes nothing.
            let _ = share.of_tenant.set(self.tenant_requests.take(tenant)?);
        }
        Ok(())
    }
}

/// Notes how much of its rate a request leaves, for the headers of its answer.
pub(crate) fn note_standing(extensions: &http::Extensions, standing: Standing) {
    if let Some(share) = extensions.get::<Arc<Share>>() {
        let _ = share.standing.set(standing);
    }
}

pub(crate) struct StreamPlace {
    _of_tenant: TenantPlace,
    _of_all: OwnedSemaphorePermit,
}

/// How many of something each tenant has now.
struct PerTenant {
    most: usize,
    what: &'static str,
    counts: Mutex<HashMap<TenantId, usize>>,
}

impl PerTenant {
    fn new(most: usize, what: &'static str) -> Self {
        Self { most, what, counts: Mutex::default() }
    }

    fn take(self: &Arc<Self>, tenant: TenantId) -> Result<TenantPlace, RequestError> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(tenant).or_default();
        if *count >= self.most {
            return Err(RequestError::TooMany(self.most, self.what));
        }
        *count += 1;
        Ok(TenantPlace { places: self.clone(), tenant })
    }
}

struct TenantPlace {
    places: Arc<PerTenant>,
    tenant: TenantId,
}

impl Drop for TenantPlace {
    fn drop(&mut self) {
        let mut counts = self.places.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.tenant);
            }
        }
    }
}

/// What one request takes until it is answered: memory for its body, and a place of its tenant's.
struct Share {
    bodies_kib: Arc<Semaphore>,
    taken: AtomicU32,
    of_tenant: OnceLock<TenantPlace>,
    standing: OnceLock<Standing>,
}

impl Share {
    fn new(bodies_kib: Arc<Semaphore>) -> Self {
        Self { bodies_kib, taken: AtomicU32::new(0), of_tenant: OnceLock::new(), standing: OnceLock::new() }
    }

    fn take(&self, bytes: usize) -> Result<(), RequestError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.bodies_kib.try_acquire_many(kib).map_err(|_| RequestError::Overloaded)?.forget();
        self.taken.fetch_add(kib, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.bodies_kib.add_permits(self.taken.load(Ordering::Relaxed) as usize);
    }
}

/// Reads a whole body: at most so many bytes, within so many seconds.
pub(crate) async fn body(request: Request, bytes_max: usize, seconds: u64) -> Result<Bytes, RequestError> {
    if content_length(request.headers()).is_some_and(|bytes| bytes > bytes_max) {
        return Err(RequestError::TooLarge(bytes_max));
    }
    let share = request.extensions().get::<Arc<Share>>().cloned();
    let payload = request.extensions().get::<Arc<Payload>>().cloned();
    let mut chunks = request.into_body().into_data_stream();
    let read = async {
        let mut whole = BytesMut::with_capacity(BODY_BYTES_FIRST.min(bytes_max));
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| RequestError::BrokenBody)?;
            if whole.len() + chunk.len() > bytes_max {
                return Err(RequestError::TooLarge(bytes_max));
            }
            share.as_ref().map_or(Ok(()), |share| share.take(chunk.len()))?;
            whole.extend_from_slice(&chunk);
        }
        if let Some(payload) = payload {
            payload.is(&[&whole]);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(Duration::from_secs(seconds), read).await.map_err(|_| RequestError::SlowBody(seconds))?
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What `around` needs: each listener has its own places, so that tenants cannot lock the operator out.
#[derive(Clone)]
pub(crate) struct Entrance {
    pub(crate) gateway: Gateway,
    pub(crate) places: Arc<Semaphore>,
}

impl Entrance {
    pub(crate) fn new(gateway: Gateway) -> Self {
        Self { gateway, places: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }
}

/// Surrounds every request.
pub(crate) async fn around(State(entrance): State<Entrance>, mut request: Request, next: Next) -> Response {
    let Entrance { gateway, places } = entrance;
    let id = given_id(request.headers()).unwrap_or_else(|| format!("req_{}", gateway.ids.uuid().simple()));
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", |path| path.as_str()).to_owned();
    let method = request.method().clone();
    let share = Arc::new(Share::new(gateway.shared.bodies_kib.clone()));
    request.extensions_mut().insert(share.clone());
    let trace_parent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let span = tracing::info_span!("request", request.id = id, trace.parent = trace_parent);
    let answer = async move {
        // Until it is answered: what was read is held by the handler.
        let share = share;
        let began = Instant::now();
        let response = match places.try_acquire() {
            Ok(_place) => next.run(request).await,
            Err(_) => Refusal::from(RequestError::Overloaded).into_response(),
        };
        let code = response.extensions().get::<Refusal>().map(Refusal::code).unwrap_or_default();
        let (status, duration) = (response.status(), began.elapsed());
        metrics::request(&method, &route, status, duration);
        tracing::debug!(
            http.method = %method,
            http.route = route,
            http.status = status.as_u16(),
            problem.code = code,
            duration_ms = duration.as_millis(),
            "answered"
        );
        let mut response = problem::told(response, &id);
        if let Some(standing) = share.standing.get() {
            standing.tell(response.headers_mut());
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    };
    answer.instrument(span).await
}

/// The id that the client gave its request, if it is a short and printable one.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    ((1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use domain::Problem;

    use super::*;

    #[test]
    fn a_request_keeps_only_a_printable_id() {
        for (given, kept) in [("abc-1", true), ("", false), ("a b", false), (&"x".repeat(129), false)] {
            let headers = HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(given).unwrap())]);
            assert_eq!(given_id(&headers).as_deref(), kept.then_some(given), "{given}");
        }
    }

    #[tokio::test]
    async fn a_body_is_bounded_whatever_its_length_says() {
        let chunks = || futures::stream::iter((0..4).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4]))));
        let request = || Request::new(Body::from_stream(chunks()));
        assert_eq!(body(request(), 16, 1).await.unwrap().len(), 16);
        assert_eq!(body(request(), 15, 1).await.unwrap_err().code(), "request.too_large");
        let claims = Request::builder().header(header::CONTENT_LENGTH, "16").body(Body::empty()).unwrap();
        assert_eq!(body(claims, 15, 1).await.unwrap_err().code(), "request.too_large");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_not_waited_for() {
        let request = Request::new(Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()));
        assert_eq!(body(request, 16, 30).await.unwrap_err().code(), "request.slow_body");
    }

    #[test]
    fn memory_for_bodies_is_given_back() {
        let bodies_kib = Arc::new(Semaphore::new(2));
        let share = || Share::new(bodies_kib.clone());
        let first = share();
        first.take(1025).unwrap();
        assert!(matches!(share().take(1), Err(RequestError::Overloaded)));
        drop(first);
        share().take(2048).unwrap();
    }

    #[test]
    fn a_tenant_leaves_room_for_others() {
        let places = Arc::new(PerTenant::new(2, "requests"));
        let [ada, bob] = [(); 2].map(|()| TenantId::new(&domain::SystemIds));
        let held = (places.take(ada).unwrap(), places.take(ada).unwrap());
        assert_eq!(places.take(ada).err().unwrap().code(), "request.too_many");
        drop(places.take(bob).unwrap());
        drop(held.0);
        drop(places.take(ada).unwrap());
        drop(held.1);
        assert!(places.counts.lock().unwrap().is_empty());
    }
}
