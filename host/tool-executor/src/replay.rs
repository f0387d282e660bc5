//! Where a call's host inputs come from: the world, the world and a copy for later, or such a copy.
//!
//! What a tool cannot compute itself it gets through `Inputs`: the time, chance, entries of the tenant's store, answers
//! to requests. Nothing else that a host function answers may depend on the world. Which of several waits ended first is
//! not kept: in a replay an answer is there at once.

mod error;
mod player;
mod recorder;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::HeaderMap;
use tool_api::{HostError, Recording, recording::HttpExchange};
use wasmtime_wasi_http::Error;

use player::Player;
use recorder::Recorder;

/// The host inputs of one call. Clones are the same inputs. Every capability that reads the world asks here, with the
/// way to read it; in a replay that way is not taken.
///
/// - clocks, chance: `wall_clock_ms`, `monotonic_ms`, `seed` (`call.rs` and `capabilities/wasi.rs` ask).
/// - key-value: `key_value_get` and `key_value_keys`, for what would go to `CallHost`. Reads that the call's own overlay
///   answers do not come here.
/// - HTTP: `http`, once the grant allows the request and before a name is looked up. A request that no grant allows
///   does not come here: it is refused again in a replay.
#[derive(Clone, Default)]
pub(crate) enum Inputs {
    #[default]
    Live,
    Recording(Arc<Mutex<Recorder>>),
    Replaying(Arc<Mutex<Player>>),
}

/// What to do about one granted request.
pub(crate) enum Exchange {
    /// Send it, and tell the tape what goes and comes.
    Send(Tape),
    /// Send nothing: this is the answer.
    Answer(Answer),
    /// Send nothing: the recording does not hold it. An error for the tool.
    Missing(Error),
}

/// Keeps what is told of one exchange, where the call is recorded; forgets it elsewhere. Nothing that is told may hold
/// a secret that the host added.
#[derive(Clone, Default)]
pub(crate) struct Tape(Option<(Arc<Mutex<Recorder>>, usize)>);

/// A recorded exchange.
#[derive(Clone)]
pub(crate) struct Answer {
    recording: Arc<Recording>,
    index: usize,
}

impl Inputs {
    pub(crate) fn recording(started_unix_ms: u64) -> Inputs {
        Inputs::Recording(Arc::new(Mutex::new(Recorder::new(started_unix_ms))))
    }

    pub(crate) fn replaying(recording: Arc<Recording>) -> Inputs {
        Inputs::Replaying(Arc::new(Mutex::new(Player::new(recording))))
    }

    /// When the call began, in milliseconds since 1970: its deadline counts from here.
    pub(crate) fn started_unix_ms(&self, now: impl FnOnce() -> u64) -> u64 {
        match self {
            Inputs::Live => now(),
            Inputs::Recording(recorder) => locked(recorder).started_unix_ms(),
            Inputs::Replaying(player) => locked(player).started_unix_ms(),
        }
    }

    pub(crate) fn wall_clock_ms(&self, now: impl FnOnce() -> u64) -> u64 {
        match self {
            Inputs::Live => now(),
            Inputs::Recording(recorder) => locked(recorder).wall_clock(now()),
            Inputs::Replaying(player) => locked(player).wall_clock(),
        }
    }

    /// Milliseconds since the call began.
    pub(crate) fn monotonic_ms(&self, now: impl FnOnce() -> u64) -> u64 {
        match self {
            Inputs::Live => now(),
            Inputs::Recording(recorder) => locked(recorder).monotonic_clock(now()),
            Inputs::Replaying(player) => locked(player).monotonic_clock(),
        }
    }

    /// All random numbers of the call come from this.
    pub(crate) fn seed<E>(&self, fresh: impl FnOnce() -> Result<[u8; 32], E>) -> Result<[u8; 32], E> {
        match self {
            Inputs::Live => fresh(),
            Inputs::Recording(recorder) => fresh().map(|seed| locked(recorder).seed(seed)),
            Inputs::Replaying(player) => Ok(locked(player).seed()),
        }
    }

    /// `read` is what `CallHost::get` answers.
    pub(crate) async fn key_value_get(
        &self,
        namespace: &str,
        key: &str,
        read: impl Future<Output = Result<Option<Bytes>, HostError>>,
    ) -> Result<Option<Bytes>, HostError> {
        if let Inputs::Replaying(player) = self {
            return locked(player).key_value_get(namespace, key);
        }
        let value = read.await;
        if let Inputs::Recording(recorder) = self {
            locked(recorder).key_value_get(namespace, key, &value);
        }
        value
    }

    /// `read` is what `CallHost::keys` answers.
    pub(crate) async fn key_value_keys(
        &self,
        namespace: &str,
        after: Option<&str>,
        limit: u32,
        read: impl Future<Output = Result<Vec<String>, HostError>>,
    ) -> Result<Vec<String>, HostError> {
        if let Inputs::Replaying(player) = self {
            return locked(player).key_value_keys(namespace, after, limit);
        }
        let keys = read.await;
        if let Inputs::Recording(recorder) = self {
            locked(recorder).key_value_keys(namespace, after, limit, &keys);
        }
        keys
    }

    /// Begins an exchange. `url` is as the tool wrote it, with its own query, without what the host adds.
    pub(crate) fn http(&self, method: &str, url: &str) -> Exchange {
        match self {
            Inputs::Live => Exchange::Send(Tape(None)),
            Inputs::Recording(recorder) => {
                let index = locked(recorder).http(method, url);
                Exchange::Send(Tape(index.map(|index| (Arc::clone(recorder), index))))
            }
            Inputs::Replaying(player) => match locked(player).http(method, url) {
                Some((recording, index)) => Exchange::Answer(Answer { recording, index }),
                None => Exchange::Missing(Error::InternalError(Some("not in the recording".into()))),
            },
        }
    }

    /// The recording, once. `None` when the call was not recorded.
    pub(crate) fn finish(&self) -> Option<Recording> {
        match self {
            Inputs::Recording(recorder) => Some(locked(recorder).finish()),
            Inputs::Live | Inputs::Replaying(_) => None,
        }
    }

    /// What a replayed call asked for in vain.
    pub(crate) fn missing(&self) -> Vec<String> {
        match self {
            Inputs::Replaying(player) => locked(player).missing(),
            Inputs::Live | Inputs::Recording(_) => Vec::new(),
        }
    }
}

impl Tape {
    /// A piece of the request's body, as the tool wrote it.
    pub(crate) fn request_body(&self, piece: &[u8]) {
        self.tell(|recorder, index| recorder.http_request_body(index, piece));
    }

    /// The response's head, as the tool sees it.
    pub(crate) fn head(&self, status: u16, headers: &HeaderMap) {
        self.tell(|recorder, index| recorder.http_head(index, status, headers));
    }

    /// A piece of the response's body, as the tool sees it.
    pub(crate) fn body(&self, piece: &Bytes) {
        self.tell(|recorder, index| recorder.http_body(index, piece));
    }

    pub(crate) fn trailers(&self, trailers: &HeaderMap) {
        self.tell(|recorder, index| recorder.http_trailers(index, trailers));
    }

    /// The exchange failed, before or after the response's head.
    pub(crate) fn failed(&self, why: &Error) {
        self.tell(|recorder, index| recorder.http_failed(index, error::words(why)));
    }

    fn tell(&self, what: impl FnOnce(&mut Recorder, usize)) {
        if let Some((recorder, index)) = &self.0 {
            what(&mut locked(recorder), *index);
        }
    }
}

impl Answer {
    /// The head, or why there was none.
    pub(crate) fn head(&self) -> Result<(u16, HeaderMap), Error> {
        match (&self.exchange().response, &self.exchange().error) {
            (Some(response), _) => Ok((response.status, recorder::header_map(&response.headers))),
            (None, Some(words)) => Err(error::of_words(words)),
            // The recorded call ended before its answer came.
            (None, None) => Err(Error::ConnectionTerminated),
        }
    }

    /// The pieces of the body, in order.
    pub(crate) fn body(&self) -> Vec<Bytes> {
        let response = self.exchange().response.iter();
        response.flat_map(|response| &response.body).map(|piece| piece.0.clone()).collect()
    }

    /// What came after the body: trailers, or the failure that cut it off.
    pub(crate) fn end(&self) -> Result<Option<HeaderMap>, Error> {
        let exchange = self.exchange();
        if let Some(words) = &exchange.error {
            return Err(error::of_words(words));
        }
        let trailers = exchange.response.as_ref().map(|response| &response.trailers);
        Ok(trailers.filter(|trailers| !trailers.is_empty()).map(|trailers| recorder::header_map(trailers)))
    }

    fn exchange(&self) -> &HttpExchange {
        &self.recording.http[self.index]
    }
}

/// A panic of ours while the lock was held leaves inputs that are still readable.
fn locked<T>(inputs: &Mutex<T>) -> MutexGuard<'_, T> {
    inputs.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
