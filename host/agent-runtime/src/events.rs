//! A run's event log: appended in the step's transaction, read after a cursor.

use std::{fmt, str::FromStr};

use domain::{MessageId, RunId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};
use tenancy::TenantTx;

use crate::{changes, feed, host::PROGRESS_TOLD_MAX, runs::RunError, step::CALLS_PER_STEP_MAX};

/// How far the events of a process that takes a run over are numbered past the last stored one. More than one step
/// tells: whatever a reader saw of the process before, and was never committed, has a smaller number than all that
/// comes, so that the reader misses nothing of it.
pub(crate) const RESUME_GAP: u32 = 4096;

const _: () = {
    // `started` and `completed` once a call, and `approval.requested`; progress with each try; the step's own and the end.
    let call = 3 + PROGRESS_TOLD_MAX * changes::ATTEMPTS_MAX;
    assert!(CALLS_PER_STEP_MAX as u32 * call + 2 < RESUME_GAP);
};

/// One event as a client is told of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunEvent {
    /// The run's n-th stored event, from 1; for a text delta, the event that it comes after.
    pub seq: u32,
    /// For a text delta: bytes of the text so far.
    pub offset: Option<u64>,
    pub kind: String,
    pub data: Value,
}

impl RunEvent {
    /// `n`, or `n.offset`: what `Last-Event-ID` gives back.
    pub fn id(&self) -> EventCursor {
        EventCursor { seq: self.seq, offset: self.offset.unwrap_or(0) }
    }

    pub fn is_terminal(&self) -> bool {
        is_terminal(&self.kind)
    }
}

pub(crate) fn is_terminal(kind: &str) -> bool {
    matches!(kind, "run.completed" | "run.failed" | "run.cancelled")
}

/// How far a reader is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventCursor {
    pub seq: u32,
    pub offset: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an event id: give back the `id` of the last event you saw")]
pub struct BadCursor;

impl FromStr for EventCursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let (seq, offset) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { seq: seq.parse().map_err(|_| BadCursor)?, offset: offset.parse().map_err(|_| BadCursor)? })
    }
}

impl Serialize for EventCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventCursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => write!(f, "{}", self.seq),
            offset => write!(f, "{}.{offset}", self.seq),
        }
    }
}

/// The run goes on in another process.
pub(crate) const RESUMED: &str = "run.resumed";

/// An event to be stored, or the text that was streamed after one.
#[derive(Debug, Clone)]
pub(crate) enum NewEvent {
    Event { seq: u32, kind: &'static str, data: Value },
    Text { after: u32, message: MessageId, text: String },
}

/// New events as they are stored, in columns.
#[derive(Default)]
pub(crate) struct Columns {
    pub(crate) seqs: Vec<i32>,
    pub(crate) parts: Vec<i16>,
    pub(crate) kinds: Vec<String>,
    pub(crate) data: Vec<Value>,
}

impl Columns {
    pub(crate) fn of(events: &[NewEvent]) -> Columns {
        let mut columns = Columns::default();
        for event in events {
            let (seq, part, kind, value) = match event {
                NewEvent::Event { seq, kind, data } => (*seq, 0, *kind, data.clone()),
                NewEvent::Text { after, message, text } => {
                    (*after, 1, "message.delta", json!({"message_id": message, "text": text.replace('\0', "\u{fffd}")}))
                }
            };
            columns.seqs.push(seq.cast_signed());
            columns.parts.push(part);
            columns.kinds.push(kind.to_owned());
            columns.data.push(value);
        }
        columns
    }
}

/// Appends what a transaction makes durable.
pub(crate) async fn append(tx: &mut TenantTx, run: RunId, events: &[NewEvent]) -> Result<(), RunError> {
    let Columns { seqs, parts, kinds, data } = Columns::of(events);
    sqlx::query!(
        r#"
        INSERT INTO run_event (tenant_id, run_id, seq, part, type, data)
        SELECT $1, $2, seq, part, type, data
        FROM unnest($3::int[], $4::smallint[], $5::text[], $6::jsonb[]) AS e (seq, part, type, data)
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        &seqs,
        &parts,
        &kinds,
        &data,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Stores that another process drives the run from here on: `restarts_after` is the last event that counts, and what a
/// reader was told after it is void. The caller has fenced the run in this transaction. Returns the event's number, with
/// which the process goes on.
pub(crate) async fn resumed(tx: &mut TenantTx, run: RunId, attempt: u32, at: Timestamp) -> Result<u32, RunError> {
    let last = last_seq(tx, run).await?;
    let seq = last + RESUME_GAP;
    let data = json!({"attempt": attempt, "restarts_after": last, "at": at});
    append(tx, run, &[NewEvent::Event { seq, kind: RESUMED, data }]).await?;
    Ok(seq)
}

/// The stored events after a cursor, in order. Terminal events come without their body: the caller tells it as it is now.
pub(crate) async fn read(tx: &mut TenantTx, run: RunId, after: EventCursor) -> Result<Vec<RunEvent>, RunError> {
    #[derive(Deserialize)]
    struct Text {
        message_id: MessageId,
        text: String,
    }
    let rows = sqlx::query!(
        r#"
        SELECT seq, part, type AS kind, data FROM run_event
        WHERE tenant_id = $1 AND run_id = $2 AND (seq > $3 OR (seq = $3 AND part = 1))
        ORDER BY seq, part
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        i32::try_from(after.seq).unwrap_or(i32::MAX),
    )
    .fetch_all(tx.conn())
    .await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        let seq = row.seq.cast_unsigned();
        if row.part == 0 {
            events.push(RunEvent { seq, offset: None, kind: row.kind, data: row.data });
        } else {
            let Text { message_id, text } =
                serde_json::from_value(row.data).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            let seen = if seq == after.seq { after.offset } else { 0 };
            events.extend(feed::delta(seq, 0, message_id, &text, seen));
        }
    }
    Ok(events)
}

/// The last stored event's number.
pub(crate) async fn last_seq(tx: &mut TenantTx, run: RunId) -> Result<u32, RunError> {
    let last = sqlx::query_scalar!(
        r#"SELECT coalesce(max(seq), 0) AS "last!" FROM run_event WHERE tenant_id = $1 AND run_id = $2"#,
        tx.tenant().uuid(),
        run.uuid(),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(last.cast_unsigned())
}
