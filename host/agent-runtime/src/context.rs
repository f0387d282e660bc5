//! What the model is sent: the system prompt and as much history as fits. Pure.

use std::collections::BTreeMap;

use agent_config::agents::Strategy;
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
    let mut needed = system_tokens;
    let mut start = None;
    for index in (0..roles.len()).rev() {
        needed += tokens(index);
        if needed > budget {
            break;
        }
        if begins(roles, index) {
            start = Some(index);
        }
    }
    match start {
        Some(start) => Ok(start),
        None if roles.is_empty() => Ok(0),
        None => Err(DoesNotFit { needed, budget }),
    }
}

fn begins(roles: &[Role], index: usize) -> bool {
    roles[index] == Role::User && (index == 0 || roles[index - 1] != Role::User)
}

/// What becomes of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It is sent from this message on.
    Send { from: usize },
    /// What lies before this message is summarised first.
    Summarize { before: usize },
}

/// As the agent's strategy has it. What is summarised makes so much room that the next summary is a while away: half of
/// what the window leaves for messages is free then, and half of the number of messages.
pub(crate) fn plan(
    strategy: Strategy,
    roles: &[Role],
    fixed_tokens: u64,
    budget: u64,
    mut tokens: impl FnMut(usize) -> u64,
) -> Result<Plan, DoesNotFit> {
    let from = window(roles, fixed_tokens, budget, &mut tokens)?;
    let many = WINDOW_MESSAGES_MAX as usize;
    if strategy == Strategy::Truncate || (from == 0 && roles.len() <= many) {
        return Ok(Plan::Send { from });
    }
    let last = (0..roles.len()).rev().find(|index| begins(roles, *index)).unwrap_or(0);
    let half = fixed_tokens + budget.saturating_sub(fixed_tokens) / 2;
    let fitting = window(roles, fixed_tokens, half, &mut tokens).unwrap_or(last);
    let few = roles.len().saturating_sub(many / 2);
    let few = (few..roles.len()).find(|index| begins(roles, *index)).unwrap_or(last);
    match fitting.max(few) {
        // One turn, of more messages than are looked at.
        0 => Ok(Plan::Send { from }),
        before => Ok(Plan::Summarize { before }),
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
    fn what_does_not_fit_is_summarised_in_whole_turns() {
        let turn = [User, Assistant, Tool, Assistant];
        let roles: Vec<Role> = turn.into_iter().cycle().take(16).collect();
        let summarize = |before| Ok(Plan::Summarize { before });
        for (budget, expected) in [
            // Each message is 10 tokens, and 5 are fixed.
            (165, Ok(Plan::Send { from: 0 })),
            (164, summarize(12)),
            (100, summarize(12)),
            (45, summarize(12)),
            (44, Err(DoesNotFit { needed: 45, budget: 44 })),
        ] {
            let plan = |strategy| plan(strategy, &roles, 5, budget, |_| 10);
            assert_eq!(plan(Strategy::Summarize), expected, "{budget}");
            let truncated = window(&roles, 5, budget, |_| 10).map(|from| Plan::Send { from });
            assert_eq!(plan(Strategy::Truncate), truncated, "{budget}");
        }
        // Many small messages: the window is full of them before it is full of tokens.
        let many: Vec<Role> = turn.into_iter().cycle().take(404).collect();
        assert_eq!(plan(Strategy::Summarize, &many, 5, 1_000_000, |_| 1), summarize(204));
        let one_turn: Vec<Role> = [User].into_iter().chain([Assistant, Tool].into_iter().cycle().take(600)).collect();
        assert_eq!(plan(Strategy::Summarize, &one_turn, 5, 1_000_000, |_| 1), Ok(Plan::Send { from: 0 }));
        assert_eq!(plan(Strategy::Summarize, &[], 5, 10, |_| 1), Ok(Plan::Send { from: 0 }));
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
