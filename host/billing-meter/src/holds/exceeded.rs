//! Why something is not paid for.

use domain::{BudgetId, Kind, Money, Problem, Timestamp};
use rust_decimal::Decimal;

use crate::budgets::Window;

/// A budget that lacks what was asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    pub exceeded: Exceeded,
    /// It would be enough if nobody held of it: worth waiting a little.
    pub held_by_others: bool,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Exceeded {
    #[error("the budget `{budget}` of {} {} {} has not enough left; {}",
            amount.amount, amount.currency, each(*window), mend(*resets_at, "raise it with PATCH /v1/budgets/{id}"))]
    Budget { budget: BudgetId, amount: Money, window: Window, resets_at: Option<Timestamp> },
    #[error("the plan's {tokens} tokens a month are used up; {}", mend(*resets_at, "ask the operator for a larger plan"))]
    Tokens { tokens: Decimal, resets_at: Option<Timestamp> },
    #[error("the budget `{budget}` is in {currency}, and prices are in {prices}; change its amount")]
    Currency { budget: BudgetId, currency: String, prices: String },
    #[error(
        "`{provider}/{model}` has no price, and a budget applies; ask the operator to add it to the price book, or choose \
         another model"
    )]
    Unpriced { provider: String, model: String },
}

fn each(window: Window) -> &'static str {
    match window {
        Window::Day => "a day",
        Window::Month => "a month",
        Window::Total => "in all",
    }
}

fn mend(resets_at: Option<Timestamp>, raise: &str) -> String {
    match resets_at {
        Some(at) => format!("{raise}, or wait until {at}"),
        None => raise.into(),
    }
}

impl Problem for Exceeded {
    fn kind(&self) -> Kind {
        match self {
            Exceeded::Budget { .. } | Exceeded::Tokens { .. } => Kind::PaymentRequired,
            Exceeded::Currency { .. } | Exceeded::Unpriced { .. } => Kind::Conflict,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Exceeded::Budget { .. } => "budget.exceeded",
            Exceeded::Tokens { .. } => "quota.tokens",
            Exceeded::Currency { .. } => "budget.currency",
            Exceeded::Unpriced { .. } => "budget.unpriced_model",
        }
    }
}
