//! Keeps host inputs as they pass.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use tool_api::{
    HostError, Recording,
    recording::{Base64, HttpExchange, HttpResponse, KeyValueList, KeyValueRead, RECORDING_BYTES_MAX, Reading},
};

/// What one kept thing costs beside its bytes: many small ones fill a recording too.
const ITEM_BYTES: usize = 32;

pub(crate) struct Recorder {
    recording: Recording,
    bytes: usize,
    /// Of the request bodies, by exchange.
    bodies: Vec<Option<Sha256>>,
}

impl Recorder {
    pub(super) fn new(started_unix_ms: u64) -> Recorder {
        let recording = Recording { started_unix_ms, ..Recording::default() };
        Recorder { recording, bytes: 0, bodies: Vec::new() }
    }

    pub(super) fn started_unix_ms(&self) -> u64 {
        self.recording.started_unix_ms
    }

    /// Whether there is room for so much more. Once there is not, nothing more is kept: a recording with a hole in the
    /// middle would replay something that never was.
    fn keeps(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes).saturating_add(ITEM_BYTES);
        self.recording.truncated |= self.bytes > RECORDING_BYTES_MAX;
        !self.recording.truncated
    }

    fn reading(&mut self, ms: u64, clock: fn(&mut Recording) -> &mut Vec<Reading>) -> u64 {
        match clock(&mut self.recording).last_mut().filter(|last| last.ms == ms) {
            Some(last) => last.count += 1,
            None => {
                if self.keeps(0) {
                    clock(&mut self.recording).push(Reading { ms, count: 1 });
                }
            }
        }
        ms
    }

    pub(super) fn wall_clock(&mut self, ms: u64) -> u64 {
        self.reading(ms, |recording| &mut recording.wall_clock)
    }

    pub(super) fn monotonic_clock(&mut self, ms: u64) -> u64 {
        self.reading(ms, |recording| &mut recording.monotonic_clock)
    }

    pub(super) fn seed(&mut self, seed: [u8; 32]) -> [u8; 32] {
        self.recording.random_seed = hex::encode(seed);
        seed
    }

    pub(super) fn key_value_get(&mut self, namespace: &str, key: &str, value: &Result<Option<Bytes>, HostError>) {
        let found = value.as_ref().ok().and_then(Option::as_ref);
        if self.keeps(namespace.len() + key.len() + found.map_or(0, Bytes::len)) {
            self.recording.key_value.push(KeyValueRead {
                namespace: namespace.to_owned(),
                key: key.to_owned(),
                value: found.cloned().map(Base64),
                failed: value.is_err(),
            });
        }
    }

    pub(super) fn key_value_keys(
        &mut self,
        namespace: &str,
        after: Option<&str>,
        limit: u32,
        keys: &Result<Vec<String>, HostError>,
    ) {
        let found = keys.as_ref().map(Vec::as_slice).unwrap_or_default();
        let bytes: usize = found.iter().map(|key| key.len() + ITEM_BYTES).sum();
        if self.keeps(namespace.len() + after.map_or(0, str::len) + bytes) {
            self.recording.key_value_keys.push(KeyValueList {
                namespace: namespace.to_owned(),
                after: after.map(str::to_owned),
                limit,
                keys: found.to_vec(),
                failed: keys.is_err(),
            });
        }
    }

    /// The index of a new exchange. `None`: there is no room for it.
    pub(super) fn http(&mut self, method: &str, url: &str) -> Option<usize> {
        if !self.keeps(method.len() + url.len()) {
            return None;
        }
        self.recording.http.push(HttpExchange {
            method: method.to_owned(),
            url: url.to_owned(),
            request_body_sha256: None,
            response: None,
            error: None,
        });
        self.bodies.push(None);
        Some(self.recording.http.len() - 1)
    }

    pub(super) fn http_request_body(&mut self, index: usize, piece: &[u8]) {
        if let Some(body) = self.bodies.get_mut(index) {
            body.get_or_insert_default().update(piece);
        }
    }

    pub(super) fn http_head(&mut self, index: usize, status: u16, headers: &HeaderMap) {
        if let Some(headers) = self.headers(headers) {
            let response = HttpResponse { status, headers, ..HttpResponse::default() };
            self.exchange(index, |exchange| exchange.response = Some(response));
        }
    }

    pub(super) fn http_body(&mut self, index: usize, piece: &Bytes) {
        if !piece.is_empty() && self.keeps(piece.len()) {
            let piece = Base64(piece.clone());
            self.response(index, |response| response.body.push(piece));
        }
    }

    pub(super) fn http_trailers(&mut self, index: usize, trailers: &HeaderMap) {
        if let Some(trailers) = self.headers(trailers) {
            self.response(index, |response| response.trailers = trailers);
        }
    }

    pub(super) fn http_failed(&mut self, index: usize, error: String) {
        if self.keeps(error.len()) {
            self.exchange(index, |exchange| exchange.error = Some(error));
        }
    }

    /// The recording, once: what is told after the end is forgotten.
    pub(super) fn finish(&mut self) -> Recording {
        let mut recording = std::mem::take(&mut self.recording);
        for (exchange, body) in recording.http.iter_mut().zip(self.bodies.drain(..)) {
            exchange.request_body_sha256 = body.map(|body| hex::encode(body.finalize()));
        }
        recording
    }

    fn headers(&mut self, headers: &HeaderMap) -> Option<Vec<(String, String)>> {
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ITEM_BYTES).sum();
        let pairs = headers.iter().map(|(name, value)| {
            let value = value.as_bytes().iter().copied().map(char::from).collect();
            (name.as_str().to_owned(), value)
        });
        self.keeps(bytes).then(|| pairs.collect())
    }

    fn exchange(&mut self, index: usize, change: impl FnOnce(&mut HttpExchange)) {
        self.recording.http.get_mut(index).map(change);
    }

    fn response(&mut self, index: usize, change: impl FnOnce(&mut HttpResponse)) {
        self.exchange(index, |exchange| {
            exchange.response.as_mut().map(change);
        });
    }
}

/// The headers that were kept. A recording may come from a file of a stranger: what is no header is left out.
pub(super) fn header_map(pairs: &[(String, String)]) -> HeaderMap {
    let pairs = pairs.iter().filter_map(|(name, value)| {
        let value: Vec<u8> = value.chars().map(|char| u8::try_from(char).ok()).collect::<Option<_>>()?;
        Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(&value).ok()?))
    });
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        // Only a map of 32,768 entries refuses one more.
        if map.try_append(name, value).is_err() {
            break;
        }
    }
    map
}
