//! What this process tells, written to Redis in batches.

use redis::{Pipeline, aio::MultiplexedConnection};
use tokio::{sync::mpsc, time::Instant};

use super::{ANSWER_MAX, Message, RECONNECT_PAUSE, Shared, stream_key};
use crate::feed::{Item, Said};

/// Messages of one round trip.
const BATCH_MAX: usize = 256;
/// Entries of a run's stream that are kept, about: a reader who comes late has the older ones from the database.
const ENTRIES_KEPT: u32 = 8192;
/// Seconds for which a run's stream is kept after its last entry: longer than most tool calls are silent. A stream that
/// is gone is a gap for who reads it, and the database closes it.
const STREAM_SECONDS: u32 = 600;
/// Bytes of one entry. What is larger comes with the commit: Redis holds what many runs say.
const ENTRY_BYTES_MAX: usize = 16 * 1024;
/// Bytes up to which pieces of text become one entry.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// Until the relay stops.
pub(super) async fn publish(shared: &Shared, mut inbox: mpsc::Receiver<Message>) {
    let mut connection: Option<MultiplexedConnection> = None;
    let mut away_until: Option<Instant> = None;
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let commands = commands(shared, joined(batch.drain(..)));
        if away_until.is_some_and(|until| Instant::now() < until) {
            continue;
        }
        let sent = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => shared.connect(ANSWER_MAX).await?,
            };
            commands.query_async::<()>(&mut open).await?;
            Ok::<_, redis::RedisError>(open)
        };
        match sent.await {
            Ok(open) => {
                if away_until.take().is_some() {
                    tracing::info!("Redis is back");
                }
                connection = Some(open);
            }
            Err(error) => {
                if away_until.is_none() {
                    tracing::warn!(%error, "Redis is away: readers of other processes wait for what is committed");
                }
                away_until = Some(Instant::now() + RECONNECT_PAUSE);
            }
        }
    }
}

/// Pieces of one text that wait together are told together.
fn joined(batch: impl Iterator<Item = Message>) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for message in batch {
        if let Message::Item(run, item) = &message
            && let Some(Message::Item(last_run, last)) = messages.last_mut()
            && last_run == run
            && last.end() == item.follows
            && let (Said::Delta { message, text }, Said::Delta { message: same, text: more }) =
                (&mut last.said, &item.said)
            && message == same
            && text.len() + more.len() <= TEXT_BYTES_MAX
        {
            text.push_str(more);
            continue;
        }
        messages.push(message);
    }
    messages
}

fn commands(shared: &Shared, messages: Vec<Message>) -> Pipeline {
    let mut commands = redis::pipe();
    let mut add = |key: &str, kept: u32, value: &[u8]| {
        commands.cmd("XADD").arg(key).arg("MAXLEN").arg("~").arg(kept).arg("*").arg("e").arg(value).ignore();
        commands.cmd("EXPIRE").arg(key).arg(STREAM_SECONDS).ignore();
    };
    for message in messages {
        match message {
            Message::Item(run, item) => {
                if let Some(entry) = entry(item) {
                    add(&stream_key(run), ENTRIES_KEPT, &entry);
                }
            }
            Message::Wake => add(&shared.wake_key(), 1, b""),
        }
    }
    commands
}

/// The last event goes without its body, which readers read themselves.
fn entry(mut item: Item) -> Option<Vec<u8>> {
    if let Said::Event { kind, data, .. } = &mut item.said
        && crate::events::is_terminal(kind)
    {
        *data = serde_json::Value::Null;
    }
    serde_json::to_vec(&item).ok().filter(|entry| entry.len() <= ENTRY_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use domain::{Ids, MessageId, RunId, SystemIds};
    use serde_json::json;

    use super::*;

    fn text(run: RunId, message: MessageId, follows: &str, text: &str) -> Message {
        let said = Said::Delta { message, text: text.into() };
        Message::Item(run, Item { follows: follows.parse().unwrap(), said })
    }

    #[test]
    fn pieces_of_one_text_are_told_together() {
        let (run, other, message) = (RunId::new(&SystemIds), RunId::new(&SystemIds), MessageId::from(SystemIds.uuid()));
        let long = "x".repeat(TEXT_BYTES_MAX);
        let batch = [
            text(run, message, "1", "a"),
            text(run, message, "1.1", "b"),
            text(other, message, "1.2", "c"),
            text(run, message, "1.2", "d"),
            text(run, message, "1.4", "after a gap"),
            text(run, message, "1.15", &long),
            Message::Wake,
        ];
        let told: Vec<String> = joined(batch.into_iter())
            .into_iter()
            .map(|message| match message {
                Message::Item(_, Item { said: Said::Delta { text, .. }, .. }) => text,
                other => format!("{other:?}").chars().take(4).collect(),
            })
            .collect();
        assert_eq!(told, ["ab", "c", "d", "after a gap", &long, "Wake"]);
    }

    #[test]
    fn an_entry_is_read_as_it_was_told_and_none_is_large() {
        let event = |kind: &str, data| Item {
            follows: "3.7".parse().unwrap(),
            said: Said::Event { seq: 4, kind: kind.into(), data },
        };
        let read: Item = serde_json::from_slice(&entry(event("step.completed", json!({"step": 1}))).unwrap()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", event("step.completed", json!({"step": 1}))));
        let last = entry(event("run.completed", json!({"message": "x".repeat(ENTRY_BYTES_MAX)}))).unwrap();
        assert!(last.len() < 200, "without its body");
        assert!(entry(event("tool_call.completed", json!("x".repeat(ENTRY_BYTES_MAX)))).is_none());
    }
}
