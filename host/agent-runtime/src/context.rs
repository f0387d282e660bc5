//! What the model is sent: the system prompt and as much history as fits. Pure.

use std::collections::BTreeMap;

use domain::message::Role;

/// Tokens of input when the agent names no number: what every current model takes with room to spare.
pub(crate) const INPUT_TOKENS_DEFAULT: u32 = 32_000;
/// Messages looked at, newest first: a window, not the whole conversation.
pub(crate) const WINDOW_MESSAGES_MAX: u32 = 400;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the system prompt and the last turn are {needed} tokens or more, over the agent's {budget} \
     (`context.max_input_tokens`); send less or raise it"
)]
pub(crate) struct DoesNotFit {
    pub(crate) needed: u64,
    pub(crate) budget: u64,
}

/// Bytes of a system prompt once it is filled: it is copied for every model call.
pub(crate) const SYSTEM_BYTES_MAX: usize = 512 * 1024;

/// Where the window begins: whole turns, newest first, while they fit. A turn is a user's messages and all that follows
/// until the next user's message, so that a call is never parted from its result. The last turn is never dropped. `tokens`
/// counts one message; what lies before the window is not counted.
pub(crate) fn window(
    roles: &[Role],
    system_tokens: u64,
    budget: u64,
    mut tokens: impl FnMut(usize) -> u64,
) -> Result<usize, DoesNotFit> {
    let begins = |index: usize| roles[index] == Role::User && (index == 0 || roles[index - 1] != Role::User);
    let mut needed = system_tokens;
    let mut start = None;
    for index in (0..roles.len()).rev() {
        needed += tokens(index);
        if needed > budget {
            break;
        }
        if begins(index) {
            start = Some(index);
        }
    }
    match start {
        Some(start) => Ok(start),
        None if roles.is_empty() => Ok(0),
        None => Err(DoesNotFit { needed, budget }),
    }
}

/// `{{key}}` becomes the turn's value of `key`; a key without a value stays as it is written. `None` when the text grows
/// past `SYSTEM_BYTES_MAX`.
pub(crate) fn fill(prompt: &str, context: &BTreeMap<String, String>) -> Option<String> {
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
        if filled.len() > SYSTEM_BYTES_MAX {
            return None;
        }
    }
    filled.push_str(rest);
    (filled.len() <= SYSTEM_BYTES_MAX).then_some(filled)
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
            let roles = history.map(|(role, _)| role);
            assert_eq!(window(&roles, 5, budget, |index| history[index].1), expected, "{budget}");
        }
        assert_eq!(window(&[], 1, 1, |_| 0), Ok(0));
        let mut counted = 0;
        assert_eq!(
            window(&history.map(|(role, _)| role), 5, 20, |_| {
                counted += 1;
                10
            }),
            Ok(7)
        );
        assert_eq!(counted, 2, "what lies before the window is not counted");
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
            assert_eq!(fill(prompt, &context).as_deref(), Some(filled), "{prompt}");
        }
        let long = [("a".to_owned(), "x".repeat(16 * 1024))].into();
        assert_eq!(fill(&"{{a}}".repeat(50_000), &long), None, "a prompt does not grow without bound");
    }
}
