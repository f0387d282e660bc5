//! From the body of a chat to a turn.

use std::collections::BTreeMap;

use agent_config::AgentRef;
use agent_runtime::StartRun;
use domain::{
    AgentId, ApiKeyId, ConversationId, FieldError, Kind, Problem,
    message::{Part, Role},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::said::{Content, SaidMessage, role};

/// What is said: `message`, or `messages` that end with one of `user`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatBody {
    #[serde(default)]
    message: Option<Content>,
    /// Without `conversation_id`, all but the last are the history of a new conversation; with it, new ones of `user`.
    #[serde(default)]
    messages: Option<Vec<SaidMessage>>,
    /// A new conversation when absent.
    #[serde(default)]
    conversation_id: Option<ConversationId>,
    #[serde(default)]
    pub(super) external_user_id: Option<String>,
    /// What the caller says about the turn: prompts may use it, tools receive it.
    #[serde(default)]
    context: BTreeMap<String, String>,
    /// The agent's active revision when absent.
    #[serde(default)]
    revision: Option<u32>,
    /// Events instead of one answer; the same as `Accept: text/event-stream`.
    #[serde(default)]
    pub(super) stream: Option<bool>,
    /// 202 with the run at once.
    #[serde(default)]
    pub(super) background: bool,
    /// Waits in line while the conversation is busy, instead of being refused with 409.
    #[serde(default)]
    queue: bool,
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ChatError {
    #[error("say something: send `message` or `messages`")]
    Silent,
    #[error("send `message` or `messages`, not both")]
    Both,
    #[error("`messages` are of `user` and `assistant`; what a system says belongs in the agent's `system_prompt`")]
    RoleNotAllowed { at: usize },
    #[error("the last of `messages` is the one that is answered: it must be of `user`")]
    LastNotUser { at: usize },
    #[error("the conversation knows its history; send only new messages of `user`")]
    HistoryResent { at: usize },
    #[error("a message cannot be taken as it is; see `errors`")]
    BadMessage(Vec<FieldError>),
    #[error("a run in the background has no stream; follow it with GET /v1/runs/{{id}}/events")]
    StreamInBackground,
}

impl Problem for ChatError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }

    fn code(&self) -> &'static str {
        match self {
            ChatError::Silent | ChatError::Both | ChatError::LastNotUser { .. } | ChatError::BadMessage(_) => {
                "chat.invalid"
            }
            ChatError::RoleNotAllowed { .. } => "chat.role_not_allowed",
            ChatError::HistoryResent { .. } => "chat.history_resent",
            ChatError::StreamInBackground => "chat.stream_in_background",
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        let at = |pointer: &str| vec![FieldError::new(pointer, self.to_string())];
        match self {
            ChatError::Silent => at("/message"),
            ChatError::Both => at("/messages"),
            ChatError::RoleNotAllowed { at: place } | ChatError::HistoryResent { at: place } => {
                at(&format!("/messages/{place}/role"))
            }
            ChatError::LastNotUser { at: place } => at(&format!("/messages/{place}/role")),
            ChatError::BadMessage(fields) => fields.clone(),
            ChatError::StreamInBackground => at("/stream"),
        }
    }
}

impl ChatBody {
    /// The turn that this body asks for, by this key, for this end user.
    pub(super) fn turn(
        self,
        agent: AgentRef,
        external_user_id: Option<String>,
        api_key: ApiKeyId,
        agents: Option<&[AgentId]>,
    ) -> Result<StartRun, ChatError> {
        let (history, messages) = said(self.message, self.messages, self.conversation_id.is_some())?;
        Ok(StartRun {
            agent,
            revision: self.revision,
            conversation: self.conversation_id,
            history,
            messages,
            external_user_id,
            context: self.context,
            metadata: self.metadata,
            queue: self.queue,
            api_key: Some(api_key),
            allowed_agents: agents.map(<[AgentId]>::to_vec),
            configuration: None,
            provider_key: None,
            once: None,
        })
    }
}

type Said = (Vec<(Role, Vec<Part>)>, Vec<Vec<Part>>);

/// History, and new messages of the user.
fn said(message: Option<Content>, messages: Option<Vec<SaidMessage>>, continues: bool) -> Result<Said, ChatError> {
    let messages = match (message, messages) {
        (Some(_), Some(_)) => return Err(ChatError::Both),
        (Some(message), None) => {
            let parts = message.parts("/message").map_err(ChatError::BadMessage)?;
            return Ok((Vec::new(), vec![parts]));
        }
        (None, messages) => messages.unwrap_or_default(),
    };
    let mut told = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        let role = role(&message.role).ok_or(ChatError::RoleNotAllowed { at })?;
        if continues && role != Role::User {
            return Err(ChatError::HistoryResent { at });
        }
        let parts = message.content.parts(&format!("/messages/{at}/content")).map_err(ChatError::BadMessage)?;
        told.push((role, parts));
    }
    match told.pop() {
        None => Err(ChatError::Silent),
        Some((role, _)) if role != Role::User => Err(ChatError::LastNotUser { at: told.len() }),
        Some((_, last)) if continues => {
            Ok((Vec::new(), told.into_iter().map(|(_, parts)| parts).chain([last]).collect()))
        }
        Some((_, last)) => Ok((told, vec![last])),
    }
}

#[cfg(test)]
mod tests {
    use domain::message::text_of;
    use serde_json::json;

    use super::*;

    /// How many messages of history, and what the user says; or the code and place of what is wrong.
    fn check(body: Value) -> Result<(usize, Vec<String>), (&'static str, String)> {
        let body: ChatBody = crate::json::from_value(body).map_err(|error| {
            let place = error.fields().first().map(|field| field.pointer.clone());
            (error.code(), place.unwrap_or_default())
        })?;
        match said(body.message, body.messages, body.conversation_id.is_some()) {
            Ok((history, new)) => Ok((history.len(), new.iter().map(|parts| text_of(parts)).collect())),
            Err(error) => Err((error.code(), error.fields()[0].pointer.clone())),
        }
    }

    fn fails(code: &'static str, place: &str) -> Result<(usize, Vec<String>), (&'static str, String)> {
        Err((code, place.to_owned()))
    }

    #[test]
    fn a_body_becomes_history_and_new_messages() {
        const CONVERSATION: &str = "conv_0192f0c1d2e37f008000000000000001";
        let says = |history, new: &[&str]| Ok((history, new.iter().map(|text| (*text).to_owned()).collect()));
        let user = |text: &str| json!({"role": "user", "content": text});
        let model = json!({"role": "assistant", "content": "hello"});
        let image = json!({"type": "image", "media_type": "image/png", "data": "aGk="});
        for (body, expected) in [
            (json!({"message": "hi"}), says(0, &["hi"])),
            (json!({"message": [{"type": "text", "text": "hi"}, image]}), says(0, &["hi"])),
            (json!({"messages": [user("hi")]}), says(0, &["hi"])),
            (json!({"messages": [user("hi"), model, user("sum")]}), says(2, &["sum"])),
            (json!({"conversation_id": CONVERSATION, "messages": [user("a"), user("b")]}), says(0, &["a", "b"])),
            (json!({}), fails("chat.invalid", "/message")),
            (json!({"messages": []}), fails("chat.invalid", "/message")),
            (json!({"message": ""}), fails("chat.invalid", "/message")),
            (json!({"message": "a", "messages": [user("b")]}), fails("chat.invalid", "/messages")),
            (json!({"messages": [user("hi"), model]}), fails("chat.invalid", "/messages/1/role")),
            (
                json!({"messages": [{"role": "system", "content": "x"}, user("hi")]}),
                fails("chat.role_not_allowed", "/messages/0/role"),
            ),
            (
                json!({"messages": [{"role": "developer", "content": "x"}, user("hi")]}),
                fails("chat.role_not_allowed", "/messages/0/role"),
            ),
            (
                json!({"messages": [{"role": "tool", "content": "x"}, user("hi")]}),
                fails("chat.role_not_allowed", "/messages/0/role"),
            ),
            (
                json!({"conversation_id": CONVERSATION, "messages": [user("a"), model, user("b")]}),
                fails("chat.history_resent", "/messages/1/role"),
            ),
            (json!({"message": 7}), fails("request.invalid", "/message")),
            (json!({"message": [{"type": "audio", "data": ""}]}), fails("request.invalid", "/message/0/type")),
            (json!({"message": "a", "colour": 1}), fails("request.invalid", "/colour")),
            (json!({"message": "a", "conversation_id": "conv_1"}), fails("request.invalid", "/conversation_id")),
            (
                json!({"message": [{"type": "image", "media_type": "image/svg+xml", "data": "aGk="}]}),
                fails("chat.invalid", "/message/0"),
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image", "media_type": "image/png", "data": "!"}]}]}),
                fails("chat.invalid", "/messages/0/content/0"),
            ),
        ] {
            assert_eq!(check(body.clone()), expected, "{body}");
        }
    }
}
