//! What other processes tell of runs that are followed here.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use domain::RunId;
use redis::{RedisResult, aio::MultiplexedConnection, streams::StreamReadReply};

use super::{ANSWER_MAX, RECONNECT_PAUSE, Shared, stream_key};
use crate::feed::{Feed, Item};

/// How long one question waits for something to be told.
const BLOCK: Duration = Duration::from_secs(1);
/// Entries of a stream that one answer brings.
const ENTRIES_AT_ONCE: u32 = 512;
/// Runs of others that are followed here at once: each is named in every question. More wait for what is committed.
const MIRRORS_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Mirrors {
    is_connected: bool,
    runs: HashMap<RunId, Mirror>,
}

struct Mirror {
    /// Gone when nobody reads it any more.
    feed: Weak<Feed>,
    /// The last entry of the stream that is in the feed.
    last: String,
}

/// One entry of a stream.
struct Entry {
    key: String,
    id: String,
    value: Vec<u8>,
}

impl Mirrors {
    /// A run's feed, and whether it is new. `None`: what others tell cannot be heard.
    pub(super) fn of(&mut self, run: RunId) -> Option<(Arc<Feed>, bool)> {
        if !self.is_connected {
            return None;
        }
        if let Some(feed) = self.runs.get(&run).and_then(|mirror| mirror.feed.upgrade()) {
            return Some((feed, false));
        }
        if self.runs.len() >= MIRRORS_MAX {
            return None;
        }
        let feed = Arc::new(Feed::new(None));
        feed.begin(0);
        self.runs.insert(run, Mirror { feed: Arc::downgrade(&feed), last: "0-0".into() });
        Some((feed, true))
    }

    fn followed(&mut self) -> Vec<(RunId, String)> {
        self.runs.retain(|_, mirror| mirror.feed.strong_count() > 0);
        self.runs.iter().map(|(run, mirror)| (*run, mirror.last.clone())).collect()
    }

    fn told(&mut self, run: RunId, entry: Entry) {
        let Some(mirror) = self.runs.get_mut(&run) else { return };
        let Some(feed) = mirror.feed.upgrade() else { return };
        mirror.last = entry.id;
        // What cannot be read is a gap.
        let Ok(item) = serde_json::from_slice::<Item>(&entry.value) else { return };
        feed.hear(item);
    }

    fn lost(&mut self) {
        self.is_connected = false;
        self.runs.drain().filter_map(|(_, mirror)| mirror.feed.upgrade()).for_each(|feed| feed.close());
    }
}

/// Until the relay stops.
pub(super) async fn read(shared: &Shared) {
    loop {
        let error = match shared.connect(BLOCK + ANSWER_MAX).await {
            Ok(connection) => listen(shared, connection).await.err(),
            Err(error) => Some(error),
        };
        shared.mirrors().lost();
        if let Some(error) = error {
            tracing::debug!(%error, "Redis cannot be listened to");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn listen(shared: &Shared, mut connection: MultiplexedConnection) -> RedisResult<()> {
    let (wake_key, mut woken) = (shared.wake_key(), "0-0".to_owned());
    shared.mirrors().is_connected = true;
    loop {
        let followed = shared.mirrors().followed();
        let runs: HashMap<String, RunId> = followed.iter().map(|(run, _)| (stream_key(*run), *run)).collect();
        let mut ask = redis::cmd("XREAD");
        ask.arg("COUNT").arg(ENTRIES_AT_ONCE).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        ask.arg(&wake_key).arg(followed.iter().map(|(run, _)| stream_key(*run)).collect::<Vec<_>>());
        ask.arg(&woken).arg(followed.iter().map(|(_, last)| last).collect::<Vec<_>>());
        let answer: Option<StreamReadReply> = ask.query_async(&mut connection).await?;
        for entry in answer.into_iter().flat_map(entries) {
            if entry.key == wake_key {
                woken = entry.id;
            } else if let Some(run) = runs.get(&entry.key) {
                shared.mirrors().told(*run, entry);
            }
        }
    }
}

fn entries(answer: StreamReadReply) -> impl Iterator<Item = Entry> {
    answer.keys.into_iter().flat_map(|stream| {
        let key = stream.key;
        stream.ids.into_iter().map(move |entry| {
            let value = entry.get::<Vec<u8>>("e").unwrap_or_default();
            Entry { key: key.clone(), id: entry.id, value }
        })
    })
}
