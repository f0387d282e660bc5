//! One exchange on its way: bytes are counted, secrets taken out, the tape and the receipt told.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use egress::{EgressError, Failure, GivenUp, Piece, Wait};
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio::sync::OwnedSemaphorePermit;
use tool_api::HostCall;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::{
    capabilities::ledger::{Ledger, micros_since},
    redact::{Redaction, Redactor},
    replay::Tape,
};

/// Why an exchange without an answer stands on the receipt.
const NO_ANSWER: &str = "no answer came before the tool gave up or the call ended";
/// Why an exchange was ended by the call's limit.
const TOO_MANY_BYTES: &str = "the call has used up its http_bytes";

/// What the exchanges of one call share.
pub(super) struct Traffic {
    bytes_left: AtomicU64,
    spent: AtomicBool,
    /// The call is over: what it has not finished is not finished.
    over: AtomicBool,
}

/// The call has no more bytes to move.
pub(super) struct Spent;

impl Traffic {
    pub(super) fn new(bytes_max: u64) -> Traffic {
        Traffic { bytes_left: bytes_max.into(), spent: false.into(), over: false.into() }
    }

    pub(super) fn take(&self, bytes: usize) -> Result<(), Spent> {
        let take = |left: u64| left.checked_sub(bytes as u64);
        self.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map(drop).map_err(|_| {
            self.spent.store(true, Ordering::Relaxed);
            Spent
        })
    }

    pub(super) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// What the receipt will say of an exchange, told once: when its body ends or is dropped, or when the call ends.
#[derive(Clone)]
pub(super) struct Entry(Arc<Mutex<Option<Untold>>>);

struct Untold {
    call: HostCall,
    started: Instant,
    ledger: Ledger,
}

impl Entry {
    pub(super) fn new(call: HostCall, ledger: Ledger) -> Entry {
        let call = HostCall { error: Some(NO_ANSWER.into()), ..call };
        Entry(Arc::new(Mutex::new(Some(Untold { call, started: Instant::now(), ledger }))))
    }

    pub(super) fn tell(&self) {
        let untold = self.untold().take();
        if let Some(Untold { call, started, ledger }) = untold {
            ledger.tell(HostCall { duration_us: micros_since(started), ..call });
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.change(|call| call.bytes_in += bytes as u64);
    }

    pub(super) fn came(&self, bytes: usize) {
        self.change(|call| call.bytes_out += bytes as u64);
    }

    fn answered(&self) {
        self.change(|call| call.error = None);
    }

    pub(super) fn failed(&self, why: impl Into<String>) {
        self.change(|call| call.error = Some(why.into()));
    }

    fn change(&self, change: impl FnOnce(&mut HostCall)) {
        if let Some(untold) = &mut *self.untold() {
            change(&mut untold.call);
        }
    }

    /// A panic of ours while the lock was held leaves an entry that can still be told.
    fn untold(&self) -> MutexGuard<'_, Option<Untold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells its entry when it is dropped.
struct Open(Entry);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.tell();
    }
}

/// One exchange, whoever answers it.
pub(super) struct Way {
    pub(super) traffic: Arc<Traffic>,
    pub(super) tape: Tape,
    /// Secrets that the tool does not hold.
    pub(super) bound: Option<Arc<Redactor>>,
    /// All secrets of the call, where it is recorded.
    pub(super) untold: Option<Arc<Redactor>>,
    open: Open,
}

impl Way {
    pub(super) fn new(
        traffic: Arc<Traffic>,
        tape: Tape,
        bound: Option<Arc<Redactor>>,
        untold: Option<Arc<Redactor>>,
        entry: Entry,
    ) -> Way {
        Way { traffic, tape, bound, untold, open: Open(entry) }
    }

    fn entry(&self) -> &Entry {
        &self.open.0
    }

    /// The exchange came to nothing.
    pub(super) fn failed(&self, error: Error, words: String) -> Error {
        self.entry().failed(if self.traffic.is_spent() { TOO_MANY_BYTES.into() } else { words });
        self.tape.failed(&error);
        error
    }

    /// The response as the tool sees it.
    pub(super) fn answer(
        self,
        status: http::StatusCode,
        mut headers: HeaderMap,
        body: BoxStream<'static, Result<Piece, Error>>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<http::Response<WasiBody>, Error> {
        let bytes = head_bytes(&headers);
        self.entry().came(bytes);
        if self.traffic.take(bytes).is_err() {
            return Err(self.failed(Error::HttpResponseHeaderSectionSize(None), TOO_MANY_BYTES.into()));
        }
        if let Some(bound) = &self.bound {
            if let Some(coding) = coding(&headers) {
                let words = "the answer is compressed, so that a reflected secret could not be taken out of it";
                return Err(self.failed(Error::HttpResponseContentCoding(Some(coding)), words.into()));
            }
            bound.headers(&mut headers);
        }
        self.tape_headers(&headers, |tape, headers| tape.head(status.as_u16(), headers));
        self.entry().answered();
        let bound = self.bound.clone().map(Redaction::new);
        let taped = self.untold.clone().map(Redaction::new);
        let body = Body { way: self, body, bound, taped, trailers: None, _place: place };
        let body = StreamBody::new(futures::stream::unfold(Some(body), Body::next)).boxed_unsync();
        let mut response = http::Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }

    fn tape_headers(&self, headers: &HeaderMap, tell: impl FnOnce(&Tape, &HeaderMap)) {
        match &self.untold {
            None => tell(&self.tape, headers),
            Some(untold) => {
                let mut headers = headers.clone();
                untold.headers(&mut headers);
                tell(&self.tape, &headers);
            }
        }
    }
}

/// The coding of a body that is not sent as it is.
fn coding(headers: &HeaderMap) -> Option<String> {
    let codings = headers.get_all(header::CONTENT_ENCODING).into_iter().map(HeaderValue::as_bytes);
    let other = codings.into_iter().find(|coding| !coding.eq_ignore_ascii_case(b"identity") && !coding.is_empty())?;
    Some(String::from_utf8_lossy(other).chars().take(40).collect())
}

/// Bytes of a head's lines, about.
pub(super) fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

/// A response's body as the tool reads it.
struct Body {
    way: Way,
    body: BoxStream<'static, Result<Piece, Error>>,
    bound: Option<Redaction>,
    taped: Option<Redaction>,
    /// Came, and wait for the rest of the data.
    trailers: Option<HeaderMap>,
    /// One of the call's connections.
    _place: Option<OwnedSemaphorePermit>,
}

impl Body {
    /// Each frame, up to the first error. When nothing is left to come, the body is dropped at once: its connection is
    /// free, and the receipt told.
    async fn next(body: Option<Body>) -> Option<(Result<Frame<Bytes>, Error>, Option<Body>)> {
        let mut body = body?;
        if let Some(trailers) = body.trailers.take() {
            return Some((Ok(Frame::trailers(trailers)), None));
        }
        loop {
            match body.body.next().await {
                Some(Ok(Piece::Data(piece))) => {
                    body.way.entry().came(piece.len());
                    if body.way.traffic.take(piece.len()).is_err() {
                        let error = body.way.failed(Error::HttpResponseBodySize(None), TOO_MANY_BYTES.into());
                        return Some((Err(error), None));
                    }
                    let piece = match &mut body.bound {
                        Some(bound) => bound.push(piece),
                        None => piece,
                    };
                    if !piece.is_empty() {
                        body.tape(&piece);
                        return Some((Ok(Frame::data(piece)), Some(body)));
                    }
                }
                Some(Ok(Piece::Trailers(mut trailers))) => {
                    let bytes = head_bytes(&trailers);
                    body.way.entry().came(bytes);
                    if body.way.traffic.take(bytes).is_err() {
                        let error = body.way.failed(Error::HttpResponseTrailerSectionSize(None), TOO_MANY_BYTES.into());
                        return Some((Err(error), None));
                    }
                    if let Some(bound) = &body.way.bound {
                        bound.headers(&mut trailers);
                    }
                    let rest = body.rest();
                    body.way.tape_headers(&trailers, |tape, trailers| tape.trailers(trailers));
                    if rest.is_empty() {
                        return Some((Ok(Frame::trailers(trailers)), None));
                    }
                    body.trailers = Some(trailers);
                    return Some((Ok(Frame::data(rest)), Some(body)));
                }
                Some(Err(error)) => {
                    body.rest();
                    let words = error.to_string();
                    return Some((Err(body.way.failed(error, words)), None));
                }
                None => {
                    let rest = body.rest();
                    return (!rest.is_empty()).then(|| (Ok(Frame::data(rest)), None));
                }
            }
        }
    }

    /// What was held back, at the end of the data.
    fn rest(&mut self) -> Bytes {
        let rest = self.bound.as_mut().map(Redaction::finish).unwrap_or_default();
        self.tape(&rest);
        if let Some(taped) = &mut self.taped {
            let rest = taped.finish();
            self.way.tape.body(&rest);
        }
        rest
    }

    fn tape(&mut self, piece: &Bytes) {
        match &mut self.taped {
            None => self.way.tape.body(piece),
            Some(taped) => {
                let piece = taped.push(piece.clone());
                self.way.tape.body(&piece);
            }
        }
    }
}

/// A request's body as the server reads it. `length` is what the head tells; a body that does not keep it is given up.
pub(super) fn request_body(
    body: WasiBody,
    length: Option<u64>,
    traffic: Arc<Traffic>,
    tape: Tape,
    entry: Entry,
) -> BoxStream<'static, Result<Bytes, GivenUp>> {
    struct State {
        frames: BodyStream<WasiBody>,
        left: Option<u64>,
        traffic: Arc<Traffic>,
        tape: Tape,
        entry: Entry,
    }
    let state = State { frames: BodyStream::new(body), left: length, traffic, tape, entry };
    futures::stream::unfold(Some(state), async |state: Option<State>| {
        let mut state = state?;
        loop {
            let Some(frame) = state.frames.next().await else {
                // A body ends in the same way when the tool finishes it and when the call is torn down.
                let whole = !state.traffic.is_over() && state.left.unwrap_or(0) == 0;
                return (!whole).then_some((Err(GivenUp), None));
            };
            let Ok(frame) = frame else { return Some((Err(GivenUp), None)) };
            // Trailers are not sent: no grant covers them.
            let Ok(piece) = frame.into_data() else { continue };
            let fits = match &mut state.left {
                None => true,
                Some(left) => left.checked_sub(piece.len() as u64).map(|rest| *left = rest).is_some(),
            };
            if !fits || state.traffic.take(piece.len()).is_err() {
                return Some((Err(GivenUp), None));
            }
            state.tape.request_body(&piece);
            state.entry.sent(piece.len());
            return Some((Ok(piece), Some(state)));
        }
    })
    .boxed()
}

/// A failure in the words of `wasi:http`.
pub(super) fn error_of(error: &EgressError) -> Error {
    match error {
        EgressError::BadUrl(_) => Error::HttpRequestUriInvalid,
        EgressError::AddressRefused { .. } => Error::DestinationIpProhibited,
        EgressError::ConnectFailed { reason, .. } => match reason {
            Failure::Name => Error::DnsError { rcode: None, info_code: None },
            Failure::Refused => Error::ConnectionRefused,
            Failure::Tls => Error::TlsProtocolError,
            Failure::Unreachable => Error::DestinationUnavailable,
            Failure::NotHttp => Error::HttpProtocolError,
            Failure::Broken => Error::ConnectionTerminated,
        },
        EgressError::Timeout { waited_for: Wait::Connection, .. } => Error::ConnectionTimeout,
        EgressError::Timeout { waited_for: Wait::Head, .. } => Error::HttpResponseTimeout,
        EgressError::Timeout { waited_for: Wait::Body, .. } => Error::ConnectionReadTimeout,
        EgressError::TooLarge { .. } => Error::HttpResponseBodySize(None),
        EgressError::Setup(_) => Error::ConfigurationError,
    }
}
