//! A conversation: whose it is, with which agent, and its title.

use domain::{
    AgentId, ConversationId, FieldError, Kind, Problem, Timestamp,
    ids::Ids,
    json::merge_object,
    nul,
    page::{Page, PageRequest},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use sqlx::QueryBuilder;
use tenancy::{DbError, TenantTx};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::messages::{Columns, MessageError, NewMessage};

/// Longest title, in characters: a title is a line in a list.
const TITLE_CHARS_MAX: usize = 200;
/// Largest metadata, in bytes of JSON: it is sent with every row of a list.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Longest `external_user_id`, in bytes: it is part of an index entry.
pub const EXTERNAL_USER_ID_BYTES_MAX: usize = 256;

/// A conversation belongs to the `external_user_id` that it was created with. One created without belongs to the tenant
/// itself, and to no user.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Conversation {
    pub id: ConversationId,
    pub agent_id: AgentId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
    pub title: Option<String>,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub created_at: Timestamp,
    /// When it was last changed or spoken in.
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct NewConversation {
    pub agent_id: AgentId,
    pub external_user_id: Option<String>,
    pub title: Option<String>,
    pub metadata: Map<String, Value>,
}

/// Which conversations a list shows: all that fit every filter given.
#[derive(Debug, Clone, Default)]
pub struct ConversationFilter {
    pub agent: Option<AgentId>,
    /// Of these agents only.
    pub agents: Option<Vec<AgentId>>,
    pub external_user_id: Option<String>,
}

/// A merge patch (RFC 7396): what is absent stays, `null` removes.
#[derive(Debug, Clone, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationPatch {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub title: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Option<Map<String, Value>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    #[error("no conversation has this id; `GET /v1/conversations` lists those there are")]
    NotFound,
    #[error("no agent has this id; `GET /v1/agents` lists those there are")]
    AgentNotFound,
    #[error("a title has 1 to {TITLE_CHARS_MAX} characters; shorten it, or send null for none")]
    BadTitle,
    #[error("metadata is at most {METADATA_BYTES_MAX} bytes of JSON; keep the rest where this can point to it")]
    MetadataTooLarge,
    #[error("an `external_user_id` has 1 to {EXTERNAL_USER_ID_BYTES_MAX} bytes and no control characters")]
    BadExternalUserId,
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for ConversationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for ConversationError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound | Self::AgentNotFound => Kind::NotFound,
            Self::BadTitle | Self::MetadataTooLarge | Self::BadExternalUserId => Kind::Invalid,
            Self::Message(error) => error.kind(),
            Self::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "conversation.not_found",
            Self::AgentNotFound => "agent.not_found",
            Self::BadTitle => "conversation.bad_title",
            Self::MetadataTooLarge => "conversation.metadata_too_large",
            Self::BadExternalUserId => "conversation.bad_external_user_id",
            Self::Message(error) => error.code(),
            Self::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let pointer = match self {
            Self::BadTitle => "/title",
            Self::MetadataTooLarge => "/metadata",
            Self::BadExternalUserId => "/external_user_id",
            Self::Message(error) => return error.fields(),
            _ => return Vec::new(),
        };
        vec![FieldError::new(pointer, self.to_string())]
    }
}

pub async fn create(
    tx: &mut TenantTx,
    new: NewConversation,
    said: &[NewMessage],
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<Conversation, ConversationError> {
    let conversation = begun(new, ids, now)?;
    insert(tx, &conversation, said).await?;
    Ok(conversation)
}

/// A new conversation, not stored yet.
pub fn begun(new: NewConversation, ids: &dyn Ids, now: Timestamp) -> Result<Conversation, ConversationError> {
    let conversation = Conversation {
        id: ConversationId::new(ids),
        agent_id: new.agent_id,
        external_user_id: new.external_user_id,
        title: new.title.map(nul::replaced),
        metadata: storable(new.metadata),
        created_at: now,
        updated_at: now,
    };
    check(&conversation)?;
    Ok(conversation)
}

/// Stores it with what is said in it first.
pub async fn insert(
    tx: &mut TenantTx,
    conversation: &Conversation,
    said: &[NewMessage],
) -> Result<(), ConversationError> {
    let Columns { ids, roles, parts, runs, .. } = Columns::of(0, said, conversation.created_at)?;
    sqlx::query!(
        "WITH begun AS (
             INSERT INTO conversation (tenant_id, conversation_id, agent_id, external_user_id, title, metadata, created_at,
                                       updated_at, last_position)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)
             RETURNING conversation_id
         )
         INSERT INTO message (tenant_id, conversation_id, position, message_id, role, parts, run_id, created_at)
         SELECT $1, b.conversation_id, n.place, n.message_id, n.role, n.parts, n.run_id, $7
         FROM begun b,
              UNNEST($9::uuid[], $10::text[], $11::jsonb[], $12::uuid[])
                  WITH ORDINALITY AS n (message_id, role, parts, run_id, place)",
        tx.tenant().uuid(),
        conversation.id.uuid(),
        conversation.agent_id.uuid(),
        conversation.external_user_id,
        conversation.title,
        Value::Object(conversation.metadata.clone()),
        conversation.created_at.offset(),
        i32::try_from(said.len()).unwrap_or(i32::MAX),
        &ids,
        &roles,
        &parts,
        &runs as &[Option<Uuid>],
    )
    .execute(tx.conn())
    .await
    .map_err(|error| match DbError::violates(&error, "conversation_tenant_id_agent_id_fkey") {
        true => ConversationError::AgentNotFound,
        false => error.into(),
    })?;
    Ok(())
}

pub async fn get(tx: &mut TenantTx, id: ConversationId) -> Result<Option<Conversation>, ConversationError> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT conversation_id, agent_id, external_user_id, title, metadata, created_at, updated_at
           FROM conversation
           WHERE tenant_id = $1 AND conversation_id = $2"#,
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(Conversation::from))
}

/// The conversation, if this user may see it. Without a user the caller acts for the tenant, who sees all.
pub async fn find_for_user(
    tx: &mut TenantTx,
    id: ConversationId,
    external_user_id: Option<&str>,
) -> Result<Conversation, ConversationError> {
    get(tx, id)
        .await?
        .filter(|found| may_see(found.external_user_id.as_deref(), external_user_id))
        .ok_or(ConversationError::NotFound)
}

/// The same, for what is about to be said in it: nothing else is said until the transaction ends.
pub async fn lock_for_user(
    tx: &mut TenantTx,
    id: ConversationId,
    external_user_id: Option<&str>,
) -> Result<Conversation, ConversationError> {
    sqlx::query!(
        "SELECT conversation_id FROM conversation WHERE tenant_id = $1 AND conversation_id = $2 FOR NO KEY UPDATE",
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    find_for_user(tx, id, external_user_id).await
}

/// Newest first.
pub async fn list(
    tx: &mut TenantTx,
    filter: &ConversationFilter,
    page: PageRequest,
) -> Result<Page<Conversation>, ConversationError> {
    let mut query = QueryBuilder::new(
        "SELECT conversation_id, agent_id, external_user_id, title, metadata, created_at, updated_at
         FROM conversation
         WHERE tenant_id = ",
    );
    query.push_bind(tx.tenant().uuid());
    if let Some(agent) = filter.agent {
        query.push(" AND agent_id = ").push_bind(agent.uuid());
    }
    if let Some(agents) = &filter.agents {
        let agents: Vec<Uuid> = agents.iter().map(|agent| agent.uuid()).collect();
        query.push(" AND agent_id = ANY(").push_bind(agents).push(")");
    }
    if let Some(user) = &filter.external_user_id {
        query.push(" AND external_user_id = ").push_bind(user.as_str());
    }
    if let Some(after) = page.after {
        query.push(" AND conversation_id < ").push_bind(after);
    }
    query.push(" ORDER BY conversation_id DESC LIMIT ").push_bind(page.rows());
    let rows: Vec<Row> = query.build_query_as().fetch_all(tx.conn()).await?;
    let found = rows.into_iter().map(Conversation::from).collect();
    Ok(Page::cut(found, page, |conversation: &Conversation| conversation.id.uuid()))
}

pub async fn update(
    tx: &mut TenantTx,
    id: ConversationId,
    patch: ConversationPatch,
    now: Timestamp,
) -> Result<Conversation, ConversationError> {
    // Locked, so that two patches of different keys of the metadata both survive.
    let mut conversation = lock(tx, id).await?;
    if let Some(title) = patch.title {
        conversation.title = title.map(nul::replaced);
    }
    match patch.metadata {
        None => {}
        Some(None) => conversation.metadata.clear(),
        Some(Some(changes)) => merge_object(&mut conversation.metadata, storable(changes)),
    }
    conversation.updated_at = conversation.updated_at.max(now);
    check(&conversation)?;
    sqlx::query!(
        "UPDATE conversation SET title = $3, metadata = $4, updated_at = $5
         WHERE tenant_id = $1 AND conversation_id = $2",
        tx.tenant().uuid(),
        id.uuid(),
        conversation.title,
        Value::Object(conversation.metadata.clone()),
        conversation.updated_at.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(conversation)
}

/// Erases the conversation, its messages and, by the schema, its runs. Who calls this has ended a run that is under way.
pub async fn delete(tx: &mut TenantTx, id: ConversationId) -> Result<(), ConversationError> {
    let deleted = sqlx::query!(
        "DELETE FROM conversation WHERE tenant_id = $1 AND conversation_id = $2",
        tx.tenant().uuid(),
        id.uuid(),
    )
    .execute(tx.conn())
    .await?
    .rows_affected();
    if deleted == 0 { Err(ConversationError::NotFound) } else { Ok(()) }
}

/// Holds the conversation until the transaction ends: nobody else appends to it, changes it or deletes it.
pub async fn lock(tx: &mut TenantTx, id: ConversationId) -> Result<Conversation, ConversationError> {
    sqlx::query_as!(
        Row,
        r#"SELECT conversation_id, agent_id, external_user_id, title, metadata, created_at, updated_at
           FROM conversation
           WHERE tenant_id = $1 AND conversation_id = $2
           FOR UPDATE"#,
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .map(Conversation::from)
    .ok_or(ConversationError::NotFound)
}

/// A user sees what is theirs; a conversation without a user is not theirs.
fn may_see(owner: Option<&str>, asking: Option<&str>) -> bool {
    asking.is_none() || asking == owner
}

fn check(conversation: &Conversation) -> Result<(), ConversationError> {
    if conversation.title.as_ref().is_some_and(|title| !(1..=TITLE_CHARS_MAX).contains(&title.chars().count())) {
        return Err(ConversationError::BadTitle);
    }
    let fits = |id: &String| (1..=EXTERNAL_USER_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
    if !conversation.external_user_id.as_ref().is_none_or(fits) {
        return Err(ConversationError::BadExternalUserId);
    }
    if Value::Object(conversation.metadata.clone()).to_string().len() > METADATA_BYTES_MAX {
        return Err(ConversationError::MetadataTooLarge);
    }
    Ok(())
}

fn storable(mut metadata: Map<String, Value>) -> Map<String, Value> {
    nul::replace_in(&mut metadata);
    metadata
}

/// Tells `null` from absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(sqlx::FromRow)]
struct Row {
    conversation_id: Uuid,
    agent_id: Uuid,
    external_user_id: Option<String>,
    title: Option<String>,
    metadata: Value,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl From<Row> for Conversation {
    fn from(row: Row) -> Self {
        Self {
            id: row.conversation_id.into(),
            agent_id: row.agent_id.into(),
            external_user_id: row.external_user_id,
            title: row.title,
            // Only objects are written.
            metadata: match row.metadata {
                Value::Object(metadata) => metadata,
                _ => Map::new(),
            },
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_user_sees_only_what_is_theirs() {
        for (owner, asking, sees) in [
            (Some("ada"), Some("bob"), false),
            (None, Some("bob"), false),
            (Some("ada"), Some("ada"), true),
            (Some("ada"), None, true),
            (None, None, true),
        ] {
            assert_eq!(may_see(owner, asking), sees, "{asking:?} asks for what is {owner:?}'s");
        }
    }

    #[test]
    fn a_patch_tells_null_from_absent_and_refuses_what_it_does_not_know() {
        let patch = |value| serde_json::from_value::<ConversationPatch>(value);
        assert!(patch(json!({"agent_id": "x"})).is_err());
        assert_eq!(patch(json!({})).unwrap().title, None);
        assert_eq!(patch(json!({"title": null})).unwrap().title, Some(None));
        assert_eq!(patch(json!({"title": "t"})).unwrap().title, Some(Some("t".into())));
        assert_eq!(patch(json!({"metadata": null})).unwrap().metadata, Some(None));
    }
}
