//! Tells a run's events: live at once, and kept for the step's commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::MessageId;
use serde_json::{Value, json};

use crate::{events::NewEvent, feed::Feed, runs::Turn};

/// One run's. Numbers are given and told under one lock, so that readers get them in order whoever tells.
pub(crate) struct Teller {
    feed: Arc<Feed>,
    log: Mutex<Log>,
}

struct Log {
    /// The last number that was given.
    seq: u32,
    /// What was told and is not stored yet.
    untold: Vec<NewEvent>,
}

/// An event that is true only once it is committed.
pub(crate) struct Truth {
    pub(crate) kind: &'static str,
    pub(crate) stored: Value,
    pub(crate) told: Value,
    /// Of a run's end: the run as it then is. Its event is stored without it.
    pub(crate) ended: Option<Turn>,
}

impl Truth {
    pub(crate) fn new(kind: &'static str, data: Value) -> Truth {
        Truth { kind, stored: data.clone(), told: data, ended: None }
    }

    pub(crate) fn end(kind: &'static str, turn: Turn) -> Truth {
        Truth { kind, stored: json!({}), told: json!(turn), ended: Some(turn) }
    }
}

impl Teller {
    /// A run that begins here. Its first event is stored already.
    pub(crate) fn begin(feed: &Arc<Feed>, started: Value) -> Arc<Teller> {
        feed.begin(0);
        feed.event(1, "run.started", started);
        Teller::after(feed, 1)
    }

    /// A run whose events up to `seq` are stored.
    pub(crate) fn go_on(feed: &Arc<Feed>, seq: u32) -> Arc<Teller> {
        feed.begin(seq);
        Teller::after(feed, seq)
    }

    fn after(feed: &Arc<Feed>, seq: u32) -> Arc<Teller> {
        Arc::new(Teller { feed: feed.clone(), log: Mutex::new(Log { seq, untold: Vec::new() }) })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn event(&self, kind: &'static str, data: Value) {
        let mut log = self.log();
        log.seq += 1;
        let seq = log.seq;
        self.feed.event(seq, kind, data.clone());
        log.untold.push(NewEvent::Event { seq, kind, data });
    }

    /// A piece of a message, as it comes.
    pub(crate) fn delta(&self, message: MessageId, text: &str) {
        self.feed.text(message, text);
    }

    /// A message whose pieces were told.
    pub(crate) fn said(&self, message: MessageId, text: String) {
        let mut log = self.log();
        let after = log.seq;
        log.untold.push(NewEvent::Text { after, message, text });
    }

    /// What a commit stores: what was told since the last one, then what it makes true.
    pub(crate) fn to_store(&self, truths: &[Truth]) -> Vec<NewEvent> {
        let log = self.log();
        let truths = (log.seq + 1..).zip(truths).map(|(seq, Truth { kind, stored, .. })| NewEvent::Event {
            seq,
            kind,
            data: stored.clone(),
        });
        log.untold.iter().cloned().chain(truths).collect()
    }

    /// The commit is done.
    pub(crate) fn stored(&self, truths: Vec<Truth>) {
        let mut log = self.log();
        log.untold.clear();
        for Truth { kind, told, ended, .. } in truths {
            log.seq += 1;
            self.feed.event(log.seq, kind, told);
            ended.into_iter().for_each(|turn| self.feed.ended(turn));
        }
    }
}
