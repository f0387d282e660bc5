//! What a path names. A text that cannot be a name gets the answer of a name that nothing has.

use agent_config::{AgentRef, ToolError, VersionRef};
use agent_runtime::approvals::ApprovalError;
use axum::extract::{FromRequestParts, RawPathParams};
use domain::{
    ApiKeyId, BudgetId, CallId, ConversationId, Kind, NoticeId, Problem, RunId, TenantId, ToolName, WebhookId,
    names::{ProviderName, SecretName},
};
use http::request::Parts;

use crate::{
    Gateway,
    problem::{Refusal, RequestError},
};

/// The names in a path: one, or two in the order in which they stand.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) T);

/// Nothing has this name. The words are those of the crate that owns the noun, so that a text that cannot be an id, an
/// id that nobody has and an id of another tenant cannot be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub(crate) struct NotFound {
    code: &'static str,
    words: &'static str,
}

impl Problem for NotFound {
    fn kind(&self) -> Kind {
        Kind::NotFound
    }

    fn code(&self) -> &'static str {
        self.code
    }
}

/// One name in a path.
pub(crate) trait Name: Sized {
    const NOT_FOUND: NotFound;

    fn read(text: &str) -> Option<Self>;
}

macro_rules! names {
    ($($name:ty, $code:literal, $words:literal;)*) => {
        $(impl Name for $name {
            const NOT_FOUND: NotFound = NotFound { code: $code, words: $words };

            fn read(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        })*
    };
}

names! {
    AgentRef, "agent.not_found", "no such agent; `GET /v1/agents` lists yours";
    Revision, "revision.not_found", "the agent has no such revision; `GET /v1/agents/{agent}/revisions` lists those it has";
    ToolName, "tool.not_found", "no such tool; `GET /v1/tools` lists yours";
    CallId, "tool_call.not_found", "no such tool call; `GET /v1/tool-calls` lists yours";
    ConversationId, "conversation.not_found", "no conversation has this id; `GET /v1/conversations` lists those there are";
    RunId, "run.not_found", "no such run; `GET /v1/runs` lists yours";
    BudgetId, "budget.not_found", "no such budget; `GET /v1/budgets` lists yours";
    ApiKeyId, "api_key.not_found", "no such API key";
    SecretName, "secret.not_found", "no such secret; `GET /v1/secrets` lists yours";
    ProviderName, "provider_key.not_found", "no such provider key; `GET /v1/provider-keys` lists yours";
    BookVersion, "price_book.not_found", "no price book has this version; an amount names the version that priced it";
    WebhookId, "webhook.not_found", "no such webhook; `GET /v1/webhooks` lists yours";
    NoticeId, "delivery.not_found", "the webhook has no such delivery; `GET /v1/webhooks/{id}/deliveries` lists those it has";
    TenantId, "tenant.not_found", "no such tenant";
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) u32);

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        })*
    };
}

numbers! {
    /// The number of an agent's revision.
    Revision;
    /// The version of a price book.
    BookVersion;
}

/// A namespace of the key-value store. Which texts may be one, the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamespacePath(pub(crate) String);

/// A key in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath {
    pub(crate) namespace: String,
    pub(crate) key: String,
}

/// The name of a plan: any text, since plans are few and compared.
impl Name for String {
    const NOT_FOUND: NotFound =
        NotFound { code: "plan.not_found", words: "no such plan; list them with GET /operator/v1/plans" };

    fn read(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

/// All the names of a path.
pub(crate) trait Names: Sized {
    fn read(texts: &[&str]) -> Result<Self, Refusal>;
}

impl<A: Name> Names for A {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [text] => name(text),
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

impl Names for (AgentRef, Revision) {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [agent, revision] => Ok((name(agent)?, name(revision)?)),
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

impl Names for (ToolName, VersionRef) {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [tool, version] => {
                let tool: ToolName = name(tool)?;
                match version.parse() {
                    Ok(version) => Ok((tool, version)),
                    Err(_) => Err(ToolError::VersionNotFound { tool, version: VersionRef::Latest }.into()),
                }
            }
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

impl Names for (RunId, CallId) {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [run, call] => Ok((name(run)?, <CallId as Name>::read(call).ok_or(ApprovalError::NotFound)?)),
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

impl Names for (WebhookId, NoticeId) {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [webhook, delivery] => Ok((name(webhook)?, name(delivery)?)),
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

impl Names for NamespacePath {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [namespace] => Ok(NamespacePath(without_nul(namespace)?)),
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

impl Names for EntryPath {
    fn read(texts: &[&str]) -> Result<Self, Refusal> {
        match texts {
            [namespace, key] => Ok(EntryPath { namespace: without_nul(namespace)?, key: without_nul(key)? }),
            _ => Err(RequestError::NoRoute.into()),
        }
    }
}

/// The database keeps no NUL.
fn without_nul(text: &str) -> Result<String, RequestError> {
    if text.contains('\0') { Err(RequestError::Nul) } else { Ok(text.to_owned()) }
}

/// A text as one segment of a path: all but unreserved characters percent-encoded (RFC 3986).
pub(crate) fn escaped(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut path, byte| {
        match byte {
            b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => path.push(char::from(byte)),
            byte => path.push_str(&format!("%{byte:02X}")),
        }
        path
    })
}

fn name<A: Name>(text: &str) -> Result<A, Refusal> {
    A::read(text).ok_or_else(|| A::NOT_FOUND.into())
}

impl<T: Names> FromRequestParts<Gateway> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refusal> {
        let params = RawPathParams::from_request_parts(parts, gateway).await.map_err(|_| RequestError::NoRoute)?;
        let texts: Vec<&str> = params.iter().map(|(_, text)| text).collect();
        T::read(&texts).map(Named)
    }
}

#[cfg(test)]
mod tests {
    use agent_config::{AgentError, provider_keys::ProviderKeyError, secrets::SecretError, webhooks::WebhookError};
    use conversation_store::conversations::ConversationError;
    use tenancy::{keys::KeyError, tenants::TenantError};

    use super::*;

    fn same(ours: NotFound, theirs: &dyn Problem) {
        assert_eq!((ours.code, ours.words), (theirs.code(), theirs.to_string().as_str()));
    }

    #[test]
    fn a_malformed_name_is_answered_like_an_unknown_one() {
        same(AgentRef::NOT_FOUND, &AgentError::NotFound);
        same(ToolName::NOT_FOUND, &ToolError::NotFound("t".parse().unwrap()));
        same(ConversationId::NOT_FOUND, &ConversationError::NotFound);
        same(BudgetId::NOT_FOUND, &billing_meter::BudgetError::NotFound);
        same(ApiKeyId::NOT_FOUND, &KeyError::NotFound);
        same(ProviderName::NOT_FOUND, &ProviderKeyError::NotFound);
        same(SecretName::NOT_FOUND, &SecretError::NotFound);
        same(WebhookId::NOT_FOUND, &WebhookError::NotFound);
        same(NoticeId::NOT_FOUND, &WebhookError::DeliveryNotFound);
        same(TenantId::NOT_FOUND, &TenantError::NotFound);
    }

    #[test]
    fn a_key_is_one_segment_whatever_it_holds() {
        assert_eq!(escaped("notes/ada b%ü~"), "notes%2Fada%20b%25%C3%BC~");
        let entry = EntryPath::read(&["notes/ada", "a/b"]).unwrap();
        assert_eq!((entry.namespace.as_str(), entry.key.as_str()), ("notes/ada", "a/b"));
        assert_eq!(EntryPath::read(&["a", "\0"]).unwrap_err().code(), "request.invalid");
    }

    #[test]
    fn names_are_read_in_order() {
        let (tool, version) = <(ToolName, VersionRef)>::read(&["calc", "latest"]).unwrap();
        assert_eq!((tool.as_str(), version), ("calc", VersionRef::Latest));
        assert_eq!(<(ToolName, VersionRef)>::read(&["calc", "newest"]).unwrap_err().code(), "tool_version.not_found");
        assert_eq!(<RunId as Names>::read(&["run_1"]).unwrap_err().code(), "run.not_found");
    }
}
