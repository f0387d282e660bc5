//! A run's events in the process that drives it: told live from here, durable from the step's commit.

use std::sync::{Mutex, PoisonError};

use domain::MessageId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    events::{EventCursor, RunEvent},
    relay::Outlet,
    runs::Turn,
};

/// The log of one run since this process began to drive it, in memory. Its size is bounded by what a run's model and
/// tools may say.
pub(crate) struct Feed {
    log: Mutex<Log>,
    /// How many changes there were.
    told: watch::Sender<u64>,
    /// To readers in other processes.
    outlet: Option<Outlet>,
}

#[derive(Default)]
struct Log {
    /// The last event that was stored before the log began; absent until that is known.
    begins_after: Option<u32>,
    items: Vec<Item>,
    /// Where the last item ends.
    end: EventCursor,
    /// Of all data and text.
    bytes: u64,
    /// The run as it has ended, once it has ended here.
    ended: Option<Turn>,
    closed: bool,
}

/// What was told at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    /// What it follows. A reader who has not seen all of that has missed something.
    pub(crate) follows: EventCursor,
    #[serde(flatten)]
    pub(crate) said: Said,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    Event {
        seq: u32,
        kind: String,
        data: Value,
    },
    /// The next piece of the text after the event that it follows.
    Delta {
        message: MessageId,
        text: String,
    },
}

/// What a reader gets next.
#[derive(Debug)]
pub(crate) enum Told {
    Events(Vec<RunEvent>),
    /// The reader lacks what is not told from here: it is stored.
    Behind,
    /// Nothing more comes from here.
    Closed,
}

/// What an item is to a reader.
enum Next {
    Seen,
    New(RunEvent),
    Gap,
}

impl Feed {
    pub(crate) fn new(outlet: Option<Outlet>) -> Self {
        Self { log: Mutex::default(), told: watch::Sender::new(0), outlet }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut log);
        self.told.send_modify(|changes| *changes += 1);
        result
    }

    /// From here on the log tells everything that comes after the event `seq`, which is stored.
    pub(crate) fn begin(&self, seq: u32) {
        self.change(|log| {
            log.begins_after = Some(seq);
            log.end = EventCursor { seq, offset: 0 };
        });
    }

    pub(crate) fn event(&self, seq: u32, kind: &str, data: Value) {
        self.say(Said::Event { seq, kind: kind.to_owned(), data });
    }

    pub(crate) fn text(&self, message: MessageId, text: &str) {
        self.say(Said::Delta { message, text: text.to_owned() });
    }

    fn say(&self, said: Said) {
        self.change(|log| {
            let item = Item { follows: log.end, said };
            self.outlet.iter().for_each(|outlet| outlet.tell(&item));
            log.push(item);
        });
    }

    /// What another process has told.
    pub(crate) fn hear(&self, item: Item) {
        self.change(|log| log.push(item));
    }

    /// How much was said so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    pub(crate) fn close(&self) {
        self.change(|log| log.closed = true);
    }

    /// Waits until there is something after the `read` first items, and gives it from `cursor` on.
    pub(crate) async fn read(&self, read: &mut usize, cursor: EventCursor) -> Told {
        let mut told = self.told.subscribe();
        loop {
            told.borrow_and_update();
            if let Some(now) = self.log.lock().unwrap_or_else(PoisonError::into_inner).read(read, cursor) {
                return now;
            }
            if told.changed().await.is_err() {
                return Told::Closed;
            }
        }
    }

    /// The run has ended, and that is stored.
    pub(crate) fn ended(&self, turn: Turn) {
        self.change(|log| log.ended = Some(turn));
    }

    /// Waits until the run is no longer driven here: the run, if that is because it has ended.
    pub(crate) async fn closed(&self) -> Option<Turn> {
        let mut told = self.told.subscribe();
        let over = || {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            (log.closed || log.ended.is_some()).then(|| log.ended.clone())
        };
        loop {
            match over() {
                Some(ended) => return ended,
                None if told.changed().await.is_err() => return None,
                None => {}
            }
        }
    }
}

impl Log {
    fn push(&mut self, item: Item) {
        self.end = item.end();
        self.bytes += item.bytes();
        self.items.push(item);
    }

    /// `None`: nothing yet.
    fn read(&self, read: &mut usize, mut cursor: EventCursor) -> Option<Told> {
        let closed = self.closed.then_some(Told::Closed);
        let Some(begins_after) = self.begins_after else { return closed };
        if cursor.seq < begins_after {
            return Some(Told::Behind);
        }
        let (mut events, mut gap) = (Vec::new(), false);
        for item in &self.items[*read..] {
            match item.next(cursor) {
                Next::Seen => {}
                Next::New(event) => {
                    cursor = event.id();
                    events.push(event);
                }
                Next::Gap => {
                    gap = true;
                    break;
                }
            }
            *read += 1;
        }
        match (events.is_empty(), gap) {
            (false, _) => Some(Told::Events(events)),
            (true, true) => Some(Told::Behind),
            (true, false) => closed,
        }
    }
}

impl Item {
    pub(crate) fn end(&self) -> EventCursor {
        match &self.said {
            Said::Event { seq, .. } => EventCursor { seq: *seq, offset: 0 },
            Said::Delta { text, .. } => EventCursor { offset: self.follows.offset + text.len() as u64, ..self.follows },
        }
    }

    fn bytes(&self) -> u64 {
        match &self.said {
            Said::Event { data, .. } => data.to_string().len() as u64,
            Said::Delta { text, .. } => text.len() as u64,
        }
    }

    fn next(&self, cursor: EventCursor) -> Next {
        if self.end() <= cursor {
            return Next::Seen;
        }
        let from = self.follows;
        match &self.said {
            // Of the text, a part may have been seen.
            Said::Delta { message, text } if from.seq == cursor.seq && from.offset < cursor.offset => {
                delta(from.seq, from.offset, *message, text, cursor.offset - from.offset).map_or(Next::Seen, Next::New)
            }
            _ if from > cursor => Next::Gap,
            Said::Event { seq, kind, data } => {
                Next::New(RunEvent { seq: *seq, offset: None, kind: kind.clone(), data: data.clone() })
            }
            Said::Delta { message, text } => {
                delta(from.seq, from.offset, *message, text, 0).map_or(Next::Seen, Next::New)
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

    async fn ids_after(feed: &Feed, mut after: EventCursor) -> Vec<String> {
        let (mut read, mut ids) = (0, Vec::new());
        loop {
            match feed.read(&mut read, after).await {
                Told::Events(events) => {
                    after = events.last().unwrap().id();
                    let shown = events
                        .iter()
                        .map(|event| format!("{} {}", event.id(), event.data["text"].as_str().unwrap_or("-")));
                    ids.extend(shown);
                }
                Told::Behind => return [ids, vec!["behind".to_owned()]].concat(),
                Told::Closed => return ids,
            }
        }
    }

    #[tokio::test]
    async fn a_reader_resumes_without_gap_or_duplicate() {
        let feed = Feed::new(None);
        let message = MessageId::from(SystemIds.uuid());
        feed.begin(0);
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

    #[tokio::test]
    async fn a_reader_who_lacks_something_is_told_so() {
        let feed = Feed::new(None);
        let message = MessageId::from(SystemIds.uuid());
        feed.begin(5000);
        assert!(matches!(feed.read(&mut 0, "7.12".parse().unwrap()).await, Told::Behind), "before anything is said");
        feed.text(message, "Hello");
        feed.close();
        for (after, expected) in [("0", vec!["behind"]), ("4999.3", vec!["behind"]), ("5000", vec!["5000.5 Hello"])] {
            assert_eq!(ids_after(&feed, after.parse().unwrap()).await, expected, "{after}");
        }

        // As another process hears it: a piece was lost on the way.
        let mirror = Feed::new(None);
        mirror.begin(0);
        let event = |seq, follows: &str| Item {
            follows: follows.parse().unwrap(),
            said: Said::Event { seq, kind: "x".into(), data: json!({}) },
        };
        for item in [event(1, "0"), event(2, "1.9"), event(3, "2")] {
            mirror.hear(item);
        }
        mirror.close();
        for (after, expected) in
            [("0", vec!["1 -", "behind"]), ("1.8", vec!["behind"]), ("1.9", vec!["2 -", "3 -"]), ("2", vec!["3 -"])]
        {
            assert_eq!(ids_after(&mirror, after.parse().unwrap()).await, expected, "{after}");
        }
    }
}
