//! A run's events in the process that drives it: events live from here, durable from the step's commit.

use std::sync::{Mutex, PoisonError};

use domain::MessageId;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::events::{EventCursor, RunEvent};

/// The log of one run since its start, in memory. Its size is bounded by what a run's model and tools may say.
pub(crate) struct Feed {
    log: Mutex<Log>,
    /// How many items there are; closed when the run is no longer driven here.
    told: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    items: Vec<Item>,
    /// Bytes of text since the last event.
    offset: u64,
    last_seq: u32,
    /// Of all data and text.
    bytes: u64,
    closed: bool,
}

#[derive(Clone)]
enum Item {
    Event { seq: u32, kind: &'static str, data: Value },
    Delta { seq: u32, start: u64, message: MessageId, text: String },
}

/// What a reader gets next.
pub(crate) enum Told {
    Events(Vec<RunEvent>),
    /// Nothing more comes from here.
    Closed,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { log: Mutex::default(), told: watch::Sender::new(0) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut log);
        self.told.send_replace(log.items.len() + usize::from(log.closed));
        result
    }

    pub(crate) fn event(&self, seq: u32, kind: &'static str, data: Value) {
        self.change(|log| {
            log.bytes += data.to_string().len() as u64;
            log.items.push(Item::Event { seq, kind, data });
            (log.last_seq, log.offset) = (seq, 0);
        });
    }

    pub(crate) fn text(&self, message: MessageId, text: &str) {
        self.change(|log| {
            log.items.push(Item::Delta { seq: log.last_seq, start: log.offset, message, text: text.to_owned() });
            log.offset += text.len() as u64;
            log.bytes += text.len() as u64;
        });
    }

    /// How much was said so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    pub(crate) fn close(&self) {
        self.change(|log| log.closed = true);
    }

    /// Waits until there is something after `read` items, and gives it from `after` on.
    pub(crate) async fn read(&self, read: &mut usize, after: EventCursor) -> Told {
        let mut told = self.told.subscribe();
        loop {
            told.borrow_and_update();
            {
                let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                let events: Vec<_> = log.items[*read..].iter().filter_map(|item| item.after(after)).collect();
                *read = log.items.len();
                if !events.is_empty() {
                    return Told::Events(events);
                }
                if log.closed {
                    return Told::Closed;
                }
            }
            if told.changed().await.is_err() {
                return Told::Closed;
            }
        }
    }

    /// Waits until the run is no longer driven here.
    pub(crate) async fn closed(&self) {
        let mut told = self.told.subscribe();
        let is_closed = || self.log.lock().unwrap_or_else(PoisonError::into_inner).closed;
        while !is_closed() && told.changed().await.is_ok() {}
    }
}

impl Item {
    /// The part of this item that a reader at `after` has not seen.
    fn after(&self, after: EventCursor) -> Option<RunEvent> {
        match self {
            Item::Event { seq, kind, data } => (*seq > after.seq).then(|| RunEvent {
                seq: *seq,
                offset: None,
                kind: (*kind).to_owned(),
                data: data.clone(),
            }),
            Item::Delta { seq, start, message, text } => {
                let seen = if *seq == after.seq { after.offset.saturating_sub(*start) } else { 0 };
                (*seq >= after.seq).then_some(())?;
                delta(*seq, *start, *message, text, seen)
            }
        }
    }
}

/// The text from its byte `seen` on, as an event whose id says how far the text then is. `None` when all was seen.
pub(crate) fn delta(seq: u32, start: u64, message: MessageId, text: &str, seen: u64) -> Option<RunEvent> {
    let from = text.floor_char_boundary(usize::try_from(seen).unwrap_or(usize::MAX));
    let rest = &text[from..];
    (!rest.is_empty()).then(|| RunEvent {
        seq,
        offset: Some(start + text.len() as u64),
        kind: "message.delta".to_owned(),
        data: json!({"message_id": message, "text": rest}),
    })
}

#[cfg(test)]
mod tests {
    use domain::{Ids, SystemIds};

    use super::*;

    async fn ids_after(feed: &Feed, after: EventCursor) -> Vec<String> {
        let (mut read, mut ids) = (0, Vec::new());
        while let Told::Events(events) = feed.read(&mut read, after).await {
            ids.extend(
                events.iter().map(|event| format!("{} {}", event.id(), event.data["text"].as_str().unwrap_or("-"))),
            );
        }
        ids
    }

    #[tokio::test]
    async fn a_reader_resumes_without_gap_or_duplicate() {
        let feed = Feed::new();
        let message = MessageId::from(SystemIds.uuid());
        feed.event(1, "run.started", json!({}));
        feed.text(message, "Grüße");
        feed.text(message, " an alle");
        feed.event(2, "step.completed", json!({}));
        feed.close();
        for (after, expected) in [
            ("0", vec!["1 -", "1.7 Grüße", "1.15  an alle", "2 -"]),
            ("1", vec!["1.7 Grüße", "1.15  an alle", "2 -"]),
            ("1.7", vec!["1.15  an alle", "2 -"]),
            ("1.3", vec!["1.7 üße", "1.15  an alle", "2 -"]),
            ("1.15", vec!["2 -"]),
            ("2", vec![]),
            ("9.9", vec![]),
        ] {
            assert_eq!(ids_after(&feed, after.parse().unwrap()).await, expected, "{after}");
        }
    }
}
