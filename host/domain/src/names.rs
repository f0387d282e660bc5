//! Names that people choose. Parsed once, at the door; inside they cannot be wrong.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that does not fit a name's pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not {what}: use {pattern}")]
pub struct BadName {
    pub given: String,
    pub what: &'static str,
    pub pattern: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $pattern:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(into = "String", try_from = "String")]
        #[schema(value_type = String, pattern = $pattern)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let fits: fn(&[u8]) -> bool = $fits;
                if fits(text.as_bytes()) {
                    return Ok(Self(text.into()));
                }
                Err(BadName { given: text.chars().take(80).collect(), what: $what, pattern: $pattern })
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name!(
    /// A tool's name.
    ToolName,
    "a tool name",
    "^[a-z][a-z0-9-]{0,29}$",
    |text| slug(text, 30)
);
name!(
    /// An agent's name.
    AgentName,
    "an agent name",
    "^[a-z][a-z0-9-]{0,62}$",
    |text| slug(text, 63)
);
name!(
    /// A function of a tool. Without `__`, so that `tool__function` splits in one way.
    FunctionName,
    "a function name",
    "^[a-zA-Z][a-zA-Z0-9_-]{0,31}$, without `__`",
    |text| {
        (1..=32).contains(&text.len())
            && text[0].is_ascii_alphabetic()
            && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
            && !text.windows(2).any(|pair| pair == b"__")
    }
);
name!(
    /// The name of a provider key.
    ProviderName,
    "a provider name",
    "^[a-z][a-z0-9-]{0,29}$",
    |text| slug(text, 30)
);

name!(
    /// The name of a secret.
    SecretName,
    "a secret name",
    "^[a-zA-Z][a-zA-Z0-9_-]{0,62}$",
    |text| {
        (1..=63).contains(&text.len())
            && text[0].is_ascii_alphabetic()
            && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    }
);

fn slug(text: &[u8], max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text[0].is_ascii_lowercase()
        && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// What a model sees: `tool__function`, at most 64 characters.
pub fn model_name(tool: &ToolName, function: &FunctionName) -> String {
    format!("{tool}__{function}")
}

/// The inverse of `model_name`.
pub fn split_model_name(name: &str) -> Option<(ToolName, FunctionName)> {
    let (tool, function) = name.split_once("__")?;
    Some((tool.parse().ok()?, function.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_patterns() {
        for (text, tool, function) in [
            ("calc", true, true),
            ("js-slugify", true, true),
            ("Calc", false, true),
            ("days_between", false, true),
            ("a__b", false, false),
            ("", false, false),
            ("1a", false, false),
            ("-a", false, false),
            ("tool/x", false, false),
            ("a23456789012345678901234567890", true, true),
            ("a234567890123456789012345678901", false, true),
            ("a23456789012345678901234567890123", false, false),
        ] {
            assert_eq!(text.parse::<ToolName>().is_ok(), tool, "tool {text}");
            assert_eq!(text.parse::<FunctionName>().is_ok(), function, "function {text}");
        }
    }

    #[test]
    fn a_model_name_splits_into_what_it_was_made_of() {
        let (tool, function) = ("calc".parse().unwrap(), "evaluate_-".parse().unwrap());
        assert_eq!(split_model_name(&model_name(&tool, &function)), Some((tool, function)));
        assert_eq!(split_model_name("calc"), None);
    }
}
