//! What the model is sent: the system prompt and as much history as fits. Pure.

use std::collections::BTreeMap;

use domain::message::Role;

/// Tokens of input when the agent names no number: what every current model takes with room to spare.
pub(crate) const INPUT_TOKENS_DEFAULT: u32 = 32_000;
/// Messages looked at, newest first: a window, not the whole conversation.
pub(crate) const WINDOW_MESSAGES_MAX: u32 = 400;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the system prompt and the last turn are about {needed} tokens, more than the agent's {budget} \
     (`context.max_input_tokens`); send less or raise it"
)]
pub(crate) struct DoesNotFit {
    pub(crate) needed: u64,
    pub(crate) budget: u64,
}

/// Where the window begins: whole turns, newest first, while they fit. A turn is a user's messages and all that follows
/// until the next user's message, so that a call is never parted from its result. The last turn is never dropped.
pub(crate) fn window(roles_and_tokens: &[(Role, u64)], system_tokens: u64, budget: u64) -> Result<usize, DoesNotFit> {
    let begins = |index: usize| {
        roles_and_tokens[index].0 == Role::User && (index == 0 || roles_and_tokens[index - 1].0 != Role::User)
    };
    let starts: Vec<usize> = (0..roles_and_tokens.len()).filter(|index| begins(*index)).collect();
    let Some(last) = starts.last().copied() else { return Ok(0) };
    let tokens_from =
        |start: usize| system_tokens + roles_and_tokens[start..].iter().map(|(_, tokens)| tokens).sum::<u64>();
    if tokens_from(last) > budget {
        return Err(DoesNotFit { needed: tokens_from(last), budget });
    }
    Ok(starts.into_iter().find(|start| tokens_from(*start) <= budget).unwrap_or(last))
}

/// `{{key}}` becomes the turn's value of `key`; a key without a value stays as it is written.
pub(crate) fn fill(prompt: &str, context: &BTreeMap<String, String>) -> String {
    let mut filled = String::with_capacity(prompt.len());
    let mut rest = prompt;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        match after.split_once("}}") {
            Some((key, tail)) if context.contains_key(key.trim()) => {
                filled.push_str(&context[key.trim()]);
                rest = tail;
            }
            _ => {
                filled.push_str("{{");
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use Role::{Assistant, Tool, User};

    use super::*;

    #[test]
    fn a_window_holds_whole_turns() {
        let history = [
            (User, 10),
            (Assistant, 10),
            (Tool, 50),
            (Assistant, 10),
            (User, 10),
            (User, 10),
            (Assistant, 10),
            (User, 10),
        ];
        for (budget, expected) in [
            (1000, Ok(0)),
            (125, Ok(0)),
            (124, Ok(4)),
            (45, Ok(4)),
            (44, Ok(7)),
            (15, Ok(7)),
            (14, Err(DoesNotFit { needed: 15, budget: 14 })),
        ] {
            assert_eq!(window(&history, 5, budget), expected, "{budget}");
        }
        assert_eq!(window(&[], 5, 1), Ok(0));
    }

    #[test]
    fn a_prompt_is_filled_from_the_turns_context() {
        let context = [("name".to_owned(), "Ada {{plan}}".to_owned())].into();
        for (prompt, filled) in [
            ("Hello {{name}}.", "Hello Ada {{plan}}."),
            ("{{ name }}{{name}}", "Ada {{plan}}Ada {{plan}}"),
            ("{{other}} {{", "{{other}} {{"),
            ("", ""),
        ] {
            assert_eq!(fill(prompt, &context), filled, "{prompt}");
        }
    }
}
