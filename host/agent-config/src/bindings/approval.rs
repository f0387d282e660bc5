//! Which functions of a binding wait for a person's word before they are called.

use std::{collections::BTreeMap, fmt, time::Duration};

use domain::FunctionName;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// How long a call waits when the binding does not say.
pub const APPROVAL_SECONDS_DEFAULT: u32 = 24 * 60 * 60;
/// And at most. A run waits no longer than its own deadline allows.
pub const APPROVAL_SECONDS_MAX: u32 = 7 * 24 * 60 * 60;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    #[default]
    Never,
    Always,
}

/// `never`, `always`, or one of them for all functions and others by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApprovalRule {
    pub default: When,
    pub functions: BTreeMap<FunctionName, When>,
}

impl ApprovalRule {
    pub fn of(&self, function: &FunctionName) -> When {
        self.functions.get(function).copied().unwrap_or(self.default)
    }

    /// No function waits.
    pub fn is_never(&self) -> bool {
        *self == ApprovalRule::default()
    }
}

/// How long calls of a binding wait.
pub(crate) fn expires(seconds: Option<u32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(APPROVAL_SECONDS_DEFAULT).into())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    default: When,
    #[serde(default)]
    functions: BTreeMap<FunctionName, When>,
}

impl Serialize for ApprovalRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.functions.is_empty() {
            true => self.default.serialize(serializer),
            false => Fields { default: self.default, functions: self.functions.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ApprovalRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = ApprovalRule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"never\", \"always\" or {default, functions: {name: \"always\"}}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ApprovalRule, E> {
                let default = match text {
                    "never" => When::Never,
                    "always" => When::Always,
                    _ => return Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                };
                Ok(ApprovalRule { default, functions: BTreeMap::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ApprovalRule, A::Error> {
                let Fields { default, functions } = Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ApprovalRule { default, functions })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_rule_is_a_word_or_names_functions() {
        for (written, expected) in [
            (json!("never"), [When::Never, When::Never]),
            (json!("always"), [When::Always, When::Always]),
            (json!({"default": "never", "functions": {"pay": "always"}}), [When::Always, When::Never]),
            (json!({"default": "always", "functions": {"look": "never"}}), [When::Always, When::Never]),
            (json!({"functions": {"pay": "always"}}), [When::Always, When::Never]),
        ] {
            let rule: ApprovalRule = serde_json::from_value(written.clone()).unwrap();
            let found = ["pay", "look"].map(|name| rule.of(&name.parse().unwrap()));
            assert_eq!(found, expected, "{written}");
            assert_eq!(serde_json::from_value::<ApprovalRule>(json!(rule)).unwrap(), rule, "{written}");
        }
        for written in
            [json!("sometimes"), json!(true), json!({"default": "maybe"}), json!({"all": "always"}), Value::Null]
        {
            assert!(serde_json::from_value::<ApprovalRule>(written.clone()).is_err(), "{written}");
        }
    }
}
