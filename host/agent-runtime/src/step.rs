//! A model's reply becomes a plan. Pure.

use domain::Amount;
use serde_json::Value;

/// Tool calls that one reply may ask for: past it, something has gone wrong with the model.
pub(crate) const CALLS_PER_STEP_MAX: usize = 32;

/// A call as the model asked for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AskedCall {
    pub(crate) provider_id: String,
    pub(crate) name: String,
    pub(crate) arguments: Value,
}

/// What comes after a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The reply is the answer.
    Answer,
    /// Run the calls, then ask again.
    Call,
    /// The model wants calls, and the run has no step left to hear of their results.
    OutOfSteps,
    /// The model wants calls, and the run has spent what it may.
    OutOfMoney,
    /// More calls than any sensible reply has.
    TooManyCalls,
}

pub(crate) fn next(calls: usize, step: u32, max_steps: u32, spent: Amount, max_cost: Option<Amount>) -> Next {
    match calls {
        0 => Next::Answer,
        _ if step >= max_steps => Next::OutOfSteps,
        _ if max_cost.is_some_and(|max| spent >= max) => Next::OutOfMoney,
        n if n > CALLS_PER_STEP_MAX => Next::TooManyCalls,
        _ => Next::Call,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_has_one_consequence() {
        let amount = |text: &str| Amount::rounded(text.parse().unwrap());
        for (calls, step, max_cost, expected) in [
            (0, 1, None, Next::Answer),
            (0, 16, Some("0"), Next::Answer),
            (2, 1, None, Next::Call),
            (2, 15, Some("0.3"), Next::Call),
            (2, 16, None, Next::OutOfSteps),
            (2, 1, Some("0.2"), Next::OutOfMoney),
            (33, 1, None, Next::TooManyCalls),
        ] {
            let found = next(calls, step, 16, amount("0.2"), max_cost.map(amount));
            assert_eq!(found, expected, "{calls} calls at step {step} with {max_cost:?}");
        }
    }
}
