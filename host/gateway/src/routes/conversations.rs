//! Conversations and their messages.

use agent_config::AgentRef;
use axum::{extract::State, response::Response};
use conversation_store::{
    conversations::{self, Conversation, ConversationError, ConversationFilter, ConversationPatch, NewConversation},
    messages::{self, Message},
};
use domain::{
    ConversationId, FieldError,
    message::{Part, Role},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tenancy::{TenantTx, keys::Scope};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Gateway,
    answer::{Answer, DONE, Done, Made},
    caller::Caller,
    idempotency::Once,
    json::{Json, LargeJson},
    page::{List, Listing, PageParams},
    path::Named,
    problem::{Refusal, RequestError},
    routes::agents,
    said::{SaidMessage, role},
};

/// A new conversation, with what was said elsewhere before.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConversationBody {
    /// An id or a name.
    agent: String,
    #[serde(default)]
    external_user_id: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    #[serde(default)]
    messages: Vec<SaidMessage>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ConversationQuery {
    /// An id or a name.
    agent: Option<String>,
    external_user_id: Option<String>,
}

/// Begins a conversation, with a history if one is given. Scope `conversations:write`.
#[utoipa::path(
    post, path = "/v1/conversations", request_body = ConversationBody, responses((status = 201, body = Conversation))
)]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    LargeJson(body): LargeJson<ConversationBody>,
) -> Result<Response, Refusal> {
    caller.require(Scope::ConversationsWrite)?;
    let external_user_id = caller.speaks_for(body.external_user_id)?;
    let (agent, history) = (body.agent.parse::<AgentRef>()?, history(body.messages)?);
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    let agent_id = agents::seen(&mut tx, &caller, &agent).await?.id;
    let new = NewConversation { agent_id, external_user_id, title: body.title, metadata: body.metadata };
    let now = gateway.clock.now();
    let history = messages::imported(history, &*gateway.ids)?;
    let conversation = conversations::create(&mut tx, new, &history, &*gateway.ids, now).await?;
    once.commit(tx, Made::created(format!("/v1/conversations/{}", conversation.id), conversation)).await
}

/// Conversations, newest first. Scope `conversations:read`.
#[utoipa::path(
    get, path = "/v1/conversations", params(PageParams, ConversationQuery),
    responses((status = 200, body = List<Conversation>))
)]
pub(crate) async fn list(caller: Caller, listing: Listing<ConversationQuery>) -> Answer<List<Conversation>> {
    caller.require(Scope::ConversationsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let agent = agents::filtered(&mut tx, listing.filter.agent.as_deref()).await?;
    let external_user_id = caller.speaks_for(listing.filter.external_user_id.clone())?;
    let filter = ConversationFilter { agent, agents: caller.agents().map(<[_]>::to_vec), external_user_id };
    let page = conversations::list(&mut tx, &filter, listing.page).await?;
    Ok(listing.answer(page))
}

/// A conversation, without its messages. Scope `conversations:read`.
#[utoipa::path(get, path = "/v1/conversations/{id}", responses((status = 200, body = Conversation)))]
pub(crate) async fn show(caller: Caller, Named(id): Named<ConversationId>) -> Answer<Conversation> {
    caller.require(Scope::ConversationsRead)?;
    let mut tx = caller.tenant().begin().await?;
    let conversation = seen(&mut tx, &caller, id).await?;
    Ok(Json(conversation))
}

/// Changes title and metadata, by a merge patch. Scope `conversations:write`.
#[utoipa::path(
    patch, path = "/v1/conversations/{id}", request_body = ConversationPatch,
    responses((status = 200, body = Conversation))
)]
pub(crate) async fn change(
    State(gateway): State<Gateway>,
    caller: Caller,
    Named(id): Named<ConversationId>,
    Json(patch): Json<ConversationPatch>,
) -> Answer<Conversation> {
    caller.require(Scope::ConversationsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    let conversation = conversations::update(&mut tx, id, patch, gateway.clock.now()).await?;
    tx.commit().await?;
    Ok(Json(conversation))
}

/// Cancels a run that is going on, then erases the conversation for good. Scope `conversations:write`.
#[utoipa::path(delete, path = "/v1/conversations/{id}", responses((status = 204)))]
pub(crate) async fn delete(State(gateway): State<Gateway>, caller: Caller, Named(id): Named<ConversationId>) -> Done {
    caller.require(Scope::ConversationsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    drop(tx);
    gateway.runtime.delete_conversation(caller.tenant(), id).await?;
    DONE
}

/// The messages of a conversation, oldest first. Scope `conversations:read`.
#[utoipa::path(
    get, path = "/v1/conversations/{id}/messages", params(PageParams), responses((status = 200, body = List<Message>))
)]
pub(crate) async fn messages(
    caller: Caller,
    Named(id): Named<ConversationId>,
    listing: Listing,
) -> Answer<List<Message>> {
    caller.require(Scope::ConversationsRead)?;
    let mut tx = caller.tenant().begin().await?;
    seen(&mut tx, &caller, id).await?;
    let page = messages::list(&mut tx, id, listing.page).await?;
    Ok(listing.answer(page))
}

/// A conversation that the key may know of.
async fn seen(tx: &mut TenantTx, caller: &Caller, id: ConversationId) -> Result<Conversation, ConversationError> {
    let found = conversations::find_for_user(tx, id, caller.bound_user()).await?;
    let visible = caller.sees(Some(found.agent_id), found.external_user_id.as_deref());
    if visible { Ok(found) } else { Err(ConversationError::NotFound) }
}

fn history(messages: Vec<SaidMessage>) -> Result<Vec<(Role, Vec<Part>)>, RequestError> {
    let mut wrong = Vec::new();
    let mut history = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        match (role(&message.role), message.content.parts(&format!("/messages/{at}/content"))) {
            (Some(role), Ok(parts)) => history.push((role, parts)),
            (None, _) => wrong.push(FieldError::new(format!("/messages/{at}/role"), "use `user` or `assistant`")),
            (_, Err(fields)) => wrong.extend(fields),
        }
    }
    if wrong.is_empty() { Ok(history) } else { Err(RequestError::Invalid(wrong)) }
}
