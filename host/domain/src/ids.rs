//! One id type per noun: a time-ordered UUID behind a prefix.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where new ids come from. Tests give their own.
pub trait Ids: Send + Sync {
    /// A UUID that sorts after those made before it by the same process.
    fn uuid(&self) -> Uuid;
}

/// UUIDv7 (RFC 9562): sortable by time, 74 random bits.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemIds;

impl Ids for SystemIds {
    #[expect(clippy::disallowed_methods, reason = "this is where ids are made")]
    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// A text that is not an id of the expected noun.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an id: `{prefix}` and 32 hexadecimal digits")]
pub struct BadId {
    pub prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(into = "String", try_from = "String")]
        #[schema(value_type = String)]
        pub struct $name(Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            pub fn new(ids: &dyn Ids) -> Self {
                Self(ids.uuid())
            }

            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                parse($prefix, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id!(TenantId, "ten_");
id!(ApiKeyId, "key_");
id!(AgentId, "agt_");
id!(ToolId, "tool_");
id!(ConversationId, "conv_");
id!(MessageId, "msg_");
id!(RunId, "run_");
id!(CallId, "call_");
id!(UsageEventId, "use_");
id!(BudgetId, "bud_");
id!(WebhookId, "whk_");
id!(
    /// Of something that webhooks are told of.
    NoticeId,
    "evt_"
);

/// Only the form that `Display` writes: 32 lower-case hex digits, so that one row has one name.
fn parse(prefix: &'static str, text: &str) -> Result<Uuid, BadId> {
    let bad = BadId { prefix };
    match text.strip_prefix(prefix) {
        Some(hex) if hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            Uuid::try_parse(hex).map_err(|_| bad)
        }
        _ => Err(bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_written_form() {
        let id = AgentId::new(&SystemIds);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            format!("tool_{}", id.uuid().simple()),
            format!("agt_{}", id.uuid()),
            id.to_string().to_uppercase(),
            "agt_".into(),
            id.uuid().simple().to_string(),
        ] {
            assert_eq!(wrong.parse::<AgentId>(), Err(BadId { prefix: "agt_" }), "{wrong}");
        }
    }

    #[test]
    fn later_ids_sort_later() {
        let made: Vec<_> = (0..1000).map(|_| RunId::new(&SystemIds)).collect();
        assert!(made.is_sorted());
    }
}
