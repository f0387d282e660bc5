//! Answers from a recording.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use tool_api::{
    HostError, Recording,
    recording::{MISSING_MAX, Reading},
};

/// Longest text of a thing that is missing, in bytes: it is shown to people.
const MISSING_BYTES_MAX: usize = 300;
/// A secret of the recorded call as a tool may write it into a URL, and as the recording holds it.
const SECRET_IN_URL: (&str, &str) = ("%5Bsecret%5D", "[secret]");

pub(crate) struct Player {
    recording: Arc<Recording>,
    wall_clock: Hand,
    monotonic_clock: Hand,
    key_value: Answers<(String, String)>,
    key_value_keys: Answers<(String, Option<String>, u32)>,
    http: Answers<(String, String)>,
    missing: Vec<String>,
}

/// Where a clock of the recording stands.
#[derive(Default)]
struct Hand {
    run: usize,
    read: u64,
    /// The last time that was told.
    ms: u64,
    past_the_end: bool,
}

/// The answers to each question, in order.
struct Answers<Q>(HashMap<Q, VecDeque<usize>>);

impl<Q: std::hash::Hash + Eq> Answers<Q> {
    fn of(questions: impl Iterator<Item = Q>) -> Self {
        let mut answers: HashMap<Q, VecDeque<usize>> = HashMap::new();
        for (index, question) in questions.enumerate() {
            answers.entry(question).or_default().push_back(index);
        }
        Answers(answers)
    }

    /// Each answer once.
    fn next(&mut self, question: &Q) -> Option<usize> {
        self.0.get_mut(question)?.pop_front()
    }

    /// Each answer once, and the last one for ever: who reads an entry once more finds the same.
    fn next_or_last(&mut self, question: &Q) -> Option<usize> {
        let answers = self.0.get_mut(question)?;
        if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() }
    }
}

impl Hand {
    /// The next reading. Past the end the clock goes on by a tick, so that no loop waits for ever.
    fn next(&mut self, readings: &[Reading]) -> u64 {
        while readings.get(self.run).is_some_and(|run| self.read >= run.count) {
            (self.run, self.read) = (self.run + 1, 0);
        }
        match readings.get(self.run) {
            Some(run) => {
                self.read += 1;
                self.ms = run.ms;
            }
            None => {
                self.past_the_end = true;
                self.ms = self.ms.saturating_add(1);
            }
        }
        self.ms
    }
}

impl Player {
    pub(super) fn new(recording: Arc<Recording>) -> Player {
        let key_value = recording.key_value.iter().map(|read| (read.namespace.clone(), read.key.clone()));
        let lists = recording.key_value_keys.iter();
        let lists = lists.map(|list| (list.namespace.clone(), list.after.clone(), list.limit));
        let http = recording.http.iter().map(|exchange| (exchange.method.clone(), exchange.url.clone()));
        Player {
            wall_clock: Hand { ms: recording.started_unix_ms, ..Hand::default() },
            monotonic_clock: Hand::default(),
            key_value: Answers::of(key_value),
            key_value_keys: Answers::of(lists),
            http: Answers::of(http),
            missing: Vec::new(),
            recording,
        }
    }

    pub(super) fn started_unix_ms(&self) -> u64 {
        self.recording.started_unix_ms
    }

    pub(super) fn wall_clock(&mut self) -> u64 {
        let told = self.wall_clock.past_the_end;
        let ms = self.wall_clock.next(&self.recording.wall_clock);
        if self.wall_clock.past_the_end && !told {
            self.miss("wasi:clocks/wall-clock".into());
        }
        ms
    }

    pub(super) fn monotonic_clock(&mut self) -> u64 {
        let told = self.monotonic_clock.past_the_end;
        let ms = self.monotonic_clock.next(&self.recording.monotonic_clock);
        if self.monotonic_clock.past_the_end && !told {
            self.miss("wasi:clocks/monotonic-clock".into());
        }
        ms
    }

    /// Without a seed it is zeros, the same at every replay.
    pub(super) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        if hex::decode_to_slice(&self.recording.random_seed, &mut seed).is_err() {
            self.miss("wasi:random".into());
        }
        seed
    }

    pub(super) fn key_value_get(&mut self, namespace: &str, key: &str) -> Result<Option<Bytes>, HostError> {
        let found = self.key_value.next_or_last(&(namespace.to_owned(), key.to_owned()));
        match found.map(|index| &self.recording.key_value[index]) {
            Some(read) if read.failed => Err(failed()),
            Some(read) => Ok(read.value.as_ref().map(|value| value.0.clone())),
            None => {
                self.miss(format!("wasi:keyvalue get {namespace}/{key}"));
                Err(missing())
            }
        }
    }

    pub(super) fn key_value_keys(
        &mut self,
        namespace: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, HostError> {
        let found = self.key_value_keys.next_or_last(&(namespace.to_owned(), after.map(str::to_owned), limit));
        match found.map(|index| &self.recording.key_value_keys[index]) {
            Some(list) if list.failed => Err(failed()),
            Some(list) => Ok(list.keys.clone()),
            None => {
                let after = after.map(|after| format!(" after {after}")).unwrap_or_default();
                self.miss(format!("wasi:keyvalue list-keys {namespace}{after}"));
                Err(missing())
            }
        }
    }

    pub(super) fn http(&mut self, method: &str, url: &str) -> Option<(Arc<Recording>, usize)> {
        let url = url.replace(SECRET_IN_URL.0, SECRET_IN_URL.1);
        let found = self.http.next(&(method.to_owned(), url.clone()));
        if found.is_none() {
            let shown = url.split(['?', '#']).next().unwrap_or_default();
            self.miss(format!("wasi:http {method} {shown}"));
        }
        found.map(|index| (Arc::clone(&self.recording), index))
    }

    pub(super) fn missing(&mut self) -> Vec<String> {
        std::mem::take(&mut self.missing)
    }

    fn miss(&mut self, mut what: String) {
        if self.missing.len() < MISSING_MAX {
            what.truncate(what.floor_char_boundary(MISSING_BYTES_MAX));
            self.missing.push(what);
        }
    }
}

fn failed() -> HostError {
    HostError("the store could not be read when the call was recorded".into())
}

fn missing() -> HostError {
    HostError("not in the recording".into())
}
