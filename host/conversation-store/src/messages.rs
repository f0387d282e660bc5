//! The messages of a conversation, numbered from 1. They never change.

use domain::{
    ConversationId, FieldError, Kind, MessageId, Problem, RunId, Timestamp,
    ids::Ids,
    message::{Part, Role, text_of},
    page::{Page, PageRequest},
};
use serde::Serialize;
use serde_json::Value;
use tenancy::{DbError, TenantTx};
use time::OffsetDateTime;
use uuid::Uuid;

use domain::nul;

/// Most messages in one imported history: it is written in one statement, within one request.
pub(crate) const HISTORY_MESSAGES_MAX: usize = 1_000;
/// Largest text of a message that a caller brings, in bytes: a model reads it again at every step.
pub(crate) const MESSAGE_TEXT_BYTES_MAX: usize = 256 * 1024;
/// Largest image of a message that a caller brings, in bytes of base64: 5 MiB of image, what model providers take.
const MESSAGE_IMAGE_BYTES_MAX: usize = 5 * 1024 * 1024 * 4 / 3 + 4;
/// Bytes of messages, as they are stored, after which no further one is read at once: what one reader holds in memory is
/// this and one message more.
const READ_BYTES_MAX: i64 = 32 << 20;
/// What an image may be: the formats that model providers take.
const IMAGE_MEDIA_TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Message {
    pub id: MessageId,
    /// Counts from 1 within the conversation.
    pub position: u32,
    pub role: Role,
    #[serde(serialize_with = "shown")]
    pub parts: Vec<Part>,
    /// The text parts, as one text.
    pub content: String,
    /// The run that wrote it, or that it was written for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NewMessage {
    pub id: MessageId,
    pub role: Role,
    pub parts: Vec<Part>,
    pub run_id: Option<RunId>,
}

#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("no conversation has this id; `GET /v1/conversations` lists those there are")]
    NotFound,
    #[error(
        "a history is at most {HISTORY_MESSAGES_MAX} messages of `user` and `assistant`, each with `text` and `image` \
         parts; `errors` says which is not"
    )]
    BadHistory(Vec<FieldError>),
    #[error("a stored message cannot be read")]
    Unreadable(#[source] Option<serde_json::Error>),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for MessageError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for MessageError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound => Kind::NotFound,
            Self::BadHistory(_) => Kind::Invalid,
            Self::Unreadable(_) => Kind::Internal,
            Self::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "conversation.not_found",
            Self::BadHistory(_) => "conversation.bad_history",
            Self::Unreadable(_) => "message.unreadable",
            Self::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            Self::BadHistory(fields) => fields.clone(),
            _ => Vec::new(),
        }
    }
}

/// Adds messages behind the last one. NUL characters become U+FFFD (Postgres keeps none); what is returned is what is
/// stored.
pub async fn append(
    tx: &mut TenantTx,
    conversation: ConversationId,
    new: &[NewMessage],
    now: Timestamp,
) -> Result<Vec<Message>, MessageError> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let Columns { mut written, ids, roles, parts, runs } = Columns::of(0, new, now)?;
    // Under the conversation's lock `last_position` is what the last holder committed; `max` is as it was before the wait, and
    // counts what the release before wrote.
    let mut positions = sqlx::query_scalar!(
        "WITH spoken_in AS (
             UPDATE conversation SET
                 updated_at = greatest(updated_at, $7),
                 last_position = $8 + greatest(last_position, (
                     SELECT coalesce(max(position), 0) FROM message WHERE tenant_id = $1 AND conversation_id = $2))
             WHERE tenant_id = $1 AND conversation_id = $2
             RETURNING conversation_id, last_position - $8 AS before
         )
         INSERT INTO message (tenant_id, conversation_id, position, message_id, role, parts, run_id, created_at)
         SELECT $1, s.conversation_id, s.before + n.place, n.message_id, n.role, n.parts, n.run_id, $7
         FROM spoken_in s,
              UNNEST($3::uuid[], $4::text[], $5::jsonb[], $6::uuid[])
                  WITH ORDINALITY AS n (message_id, role, parts, run_id, place)
         ORDER BY n.place
         RETURNING position",
        tx.tenant().uuid(),
        conversation.uuid(),
        &ids,
        &roles,
        &parts,
        &runs as &[Option<Uuid>],
        now.offset(),
        i32::try_from(new.len()).unwrap_or(i32::MAX),
    )
    .fetch_all(tx.conn())
    .await?;
    if positions.is_empty() {
        return Err(MessageError::NotFound);
    }
    // RETURNING promises no order.
    positions.sort_unstable();
    for (message, position) in written.iter_mut().zip(positions) {
        message.position = position.unsigned_abs();
    }
    Ok(written)
}

/// These messages as they are stored behind the position `last`.
pub fn behind(last: u32, new: &[NewMessage], now: Timestamp) -> Result<Vec<Message>, MessageError> {
    Ok(Columns::of(last, new, now)?.written)
}

/// New messages as they are told, and what is stored of them in columns.
#[derive(Default)]
pub(crate) struct Columns {
    pub(crate) written: Vec<Message>,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) roles: Vec<String>,
    pub(crate) parts: Vec<Value>,
    pub(crate) runs: Vec<Option<Uuid>>,
}

impl Columns {
    /// Behind the position `last`.
    pub(crate) fn of(last: u32, new: &[NewMessage], now: Timestamp) -> Result<Columns, MessageError> {
        let mut columns = Columns::default();
        for (position, &NewMessage { id, role, ref parts, run_id }) in (last + 1..).zip(new) {
            let (parts, json) = storable(parts)?;
            columns.ids.push(id.uuid());
            columns.roles.push(role.as_str().to_owned());
            columns.parts.push(json);
            columns.runs.push(run_id.map(RunId::uuid));
            let content = text_of(&parts);
            columns.written.push(Message { id, position, role, parts, content, run_id, created_at: now });
        }
        Ok(columns)
    }
}

/// An imported history as new messages, if it is one: see `check_history`.
pub fn imported(history: Vec<(Role, Vec<Part>)>, ids: &dyn Ids) -> Result<Vec<NewMessage>, MessageError> {
    check_history(&history)?;
    let new = |(role, parts)| NewMessage { id: MessageId::new(ids), role, parts, run_id: None };
    Ok(history.into_iter().map(new).collect())
}

/// Oldest first. A message's place in the list is its position, as a UUID.
pub async fn list(
    tx: &mut TenantTx,
    conversation: ConversationId,
    page: PageRequest,
) -> Result<Page<Message>, MessageError> {
    let after = page.after.map_or(0, |after| i32::try_from(after.as_u128()).unwrap_or(i32::MAX));
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT message_id, position, role, parts, run_id, created_at
           FROM (SELECT message_id, position, role, parts, run_id, created_at,
                        sum(pg_column_size(parts)) OVER (ORDER BY position) - pg_column_size(parts) AS bytes_before
                 FROM (SELECT message_id, position, role, parts, run_id, created_at
                       FROM message
                       WHERE tenant_id = $1 AND conversation_id = $2 AND position > $3
                       ORDER BY position
                       LIMIT $4) AS page) AS sized
           WHERE bytes_before < $5
           ORDER BY position"#,
        tx.tenant().uuid(),
        conversation.uuid(),
        after,
        page.rows(),
        READ_BYTES_MAX,
    )
    .fetch_all(tx.conn())
    .await?;
    let place = |message: &Message| Uuid::from_u128(message.position.into());
    let newest = sqlx::query_scalar!(
        r#"SELECT coalesce(max(position), 0) AS "newest!" FROM message WHERE tenant_id = $1 AND conversation_id = $2"#,
        tx.tenant().uuid(),
        conversation.uuid(),
    )
    .fetch_one(tx.conn())
    .await?;
    let mut page = Page::cut(read(rows)?, page, place);
    // Large messages end a page early: then the last one of the page is not the last one there is.
    page.next = page.data.last().filter(|last| last.position < newest.cast_unsigned()).map(place);
    Ok(page)
}

/// The last `limit` messages, fewer where they are large, oldest of them first.
pub async fn newest(tx: &mut TenantTx, conversation: ConversationId, limit: u32) -> Result<Vec<Message>, MessageError> {
    newest_after(tx, conversation, 0, limit).await
}

/// The same of those behind a position.
pub async fn newest_after(
    tx: &mut TenantTx,
    conversation: ConversationId,
    after: u32,
    limit: u32,
) -> Result<Vec<Message>, MessageError> {
    let mut rows = sqlx::query_as!(
        Row,
        r#"SELECT message_id, position, role, parts, run_id, created_at
           FROM (SELECT message_id, position, role, parts, run_id, created_at,
                        sum(pg_column_size(parts)) OVER (ORDER BY position DESC) - pg_column_size(parts) AS bytes_after
                 FROM (SELECT message_id, position, role, parts, run_id, created_at
                       FROM message
                       WHERE tenant_id = $1 AND conversation_id = $2 AND position > $5
                       ORDER BY position DESC
                       LIMIT $3) AS page) AS sized
           WHERE bytes_after < $4
           ORDER BY position DESC"#,
        tx.tenant().uuid(),
        conversation.uuid(),
        i64::from(limit),
        READ_BYTES_MAX,
        after.cast_signed(),
    )
    .fetch_all(tx.conn())
    .await?;
    rows.reverse();
    read(rows)
}

/// The last message that the model has written in a run.
pub async fn last_of_run(tx: &mut TenantTx, run: RunId) -> Result<Option<Message>, MessageError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT message_id, position, role, parts, run_id, created_at
         FROM message
         WHERE tenant_id = $1 AND run_id = $2 AND role = $3
         ORDER BY position DESC
         LIMIT 1",
        tx.tenant().uuid(),
        run.uuid(),
        Role::Assistant.as_str(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(read(row.into_iter().collect())?.pop())
}

/// What a client may say happened before: only what people and models say. A tool's call or result that no tool of ours
/// made is refused. Pointers begin at `/messages`.
pub fn check_history(history: &[(Role, Vec<Part>)]) -> Result<(), MessageError> {
    if history.len() > HISTORY_MESSAGES_MAX {
        let detail = format!("{} messages are more than {HISTORY_MESSAGES_MAX}; import the newest", history.len());
        return Err(MessageError::BadHistory(vec![FieldError::new("/messages", detail)]));
    }
    let mut wrong = Vec::new();
    for (at, (role, parts)) in history.iter().enumerate() {
        if *role == Role::Tool {
            wrong.push(FieldError::new(format!("/messages/{at}/role"), "use `user` or `assistant`"));
        }
        wrong.extend(check_parts(&format!("/messages/{at}/parts"), parts));
    }
    if wrong.is_empty() { Ok(()) } else { Err(MessageError::BadHistory(wrong)) }
}

/// What is wrong with the parts of one message that a client wrote, new or imported.
pub fn check_parts(pointer: &str, parts: &[Part]) -> Vec<FieldError> {
    let mut wrong = Vec::new();
    let mut bytes = 0;
    let mut says_something = false;
    for (at, part) in parts.iter().enumerate() {
        let mut refuse = |detail: &str| wrong.push(FieldError::new(format!("{pointer}/{at}"), detail));
        match part {
            Part::Text { text } => {
                bytes += text.len();
                says_something |= !text.is_empty();
            }
            Part::Image { media_type, data } => {
                says_something = true;
                if data.len() > MESSAGE_IMAGE_BYTES_MAX {
                    refuse("an image is at most 5 MiB; send a smaller one");
                }
                if !IMAGE_MEDIA_TYPES.contains(&media_type.as_str()) {
                    refuse("`media_type` is not one of image/png, image/jpeg, image/gif, image/webp");
                }
                if !is_base64(data) {
                    refuse("`data` is not base64 with padding (RFC 4648)");
                }
            }
            Part::Reasoning { .. } | Part::ToolCall { .. } | Part::ToolResult { .. } => {
                refuse("use `text` or `image` parts")
            }
        }
    }
    if bytes > MESSAGE_TEXT_BYTES_MAX {
        let detail = format!("{bytes} bytes of text are more than {MESSAGE_TEXT_BYTES_MAX}");
        wrong.push(FieldError::new(pointer, detail));
    }
    if wrong.is_empty() && !says_something {
        wrong.push(FieldError::new(pointer, "the message is empty; give it a text"));
    }
    wrong
}

/// Its form only: what the bytes are is for the model to find out.
fn is_base64(data: &str) -> bool {
    let digits = data.trim_end_matches('=');
    !digits.is_empty()
        && data.len().is_multiple_of(4)
        && data.len() - digits.len() <= 2
        && digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

/// What a model's provider wants back is not for anybody else.
fn shown<S: serde::Serializer>(parts: &[Part], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(parts.iter().filter(|part| !matches!(part, Part::Reasoning { .. })))
}

/// The parts as they can be stored, and their JSON.
fn storable(parts: &[Part]) -> Result<(Vec<Part>, Value), MessageError> {
    let unreadable = |error| MessageError::Unreadable(Some(error));
    let mut json = serde_json::to_value(parts).map_err(unreadable)?;
    let parts = match nul::replace(&mut json) {
        true => serde_json::from_value(json.clone()).map_err(unreadable)?,
        false => parts.to_vec(),
    };
    Ok((parts, json))
}

struct Row {
    message_id: Uuid,
    position: i32,
    role: String,
    parts: Value,
    run_id: Option<Uuid>,
    created_at: OffsetDateTime,
}

fn read(rows: Vec<Row>) -> Result<Vec<Message>, MessageError> {
    rows.into_iter()
        .map(|row| {
            let parts: Vec<Part> =
                serde_json::from_value(row.parts).map_err(|error| MessageError::Unreadable(Some(error)))?;
            Ok(Message {
                id: row.message_id.into(),
                position: row.position.unsigned_abs(),
                role: Role::parse(&row.role).ok_or(MessageError::Unreadable(None))?,
                content: text_of(&parts),
                parts,
                run_id: row.run_id.map(RunId::from),
                created_at: row.created_at.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
