//! What money buys. Pure.

use domain::{Amount, Limits};
use rust_decimal::{Decimal, prelude::ToPrimitive};

use super::{Exceeded, Spend};
use crate::{prices::PriceBook, usage::Used};

/// Output of one model call when a budget or a quota applies and the agent names no number: what every current model takes.
pub const OUTPUT_TOKENS_DEFAULT: u32 = 4_096;
/// Less than this is no answer: a call that could not say more is not made.
const OUTPUT_TOKENS_MIN: u64 = 16;
/// A call may end this long after its deadline, in microseconds: what it used until then is on its receipt.
const LATE_US: u64 = 1_000_000;

/// The prices of a token of whichever model answers: the highest of all that may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    input: Decimal,
    output: Decimal,
}

/// A model call that can be paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affordable {
    /// What the model may say at most.
    pub output_tokens: u64,
    /// What it costs at most: to be held.
    pub most: Spend,
}

/// A model whose price the book does not know: what it costs under a budget is not known either.
pub fn unpriced<'m>(book: &PriceBook, models: impl IntoIterator<Item = (&'m str, &'m str)>) -> Option<Exceeded> {
    let (provider, model) = models.into_iter().find(|(provider, model)| !book.is_priced(provider, model))?;
    Some(Exceeded::Unpriced { provider: provider.into(), model: model.into() })
}

impl Rates {
    /// `models`: provider and model as the price book names them.
    pub fn of<'m>(book: &PriceBook, models: impl IntoIterator<Item = (&'m str, &'m str)>) -> Rates {
        let mut rates = Rates { input: Decimal::ZERO, output: Decimal::ZERO };
        for (provider, model) in models {
            let price = |used: Used| {
                // Of one token, so that nothing is rounded.
                book.price(&used, Some(provider), Some(model)).unit_price / Decimal::from(used.kind().per())
            };
            let input = price(Used::ModelInput { tokens: 1 }).max(price(Used::ModelCachedInput { tokens: 1 }));
            rates.input = rates.input.max(input);
            rates.output = rates.output.max(price(Used::ModelOutput { tokens: 1 }));
        }
        rates
    }

    fn cost(self, input_tokens: u64, output_tokens: u64) -> Amount {
        Amount::rounded(Decimal::from(input_tokens) * self.input + Decimal::from(output_tokens) * self.output)
    }

    /// What a call with this input costs at the least, if it is worth making.
    pub fn least(self, input_tokens: u64, wanted_output: u64) -> Spend {
        self.most(input_tokens, wanted_output.min(OUTPUT_TOKENS_MIN))
    }

    fn most(self, input_tokens: u64, output_tokens: u64) -> Spend {
        Spend { money: self.cost(input_tokens, output_tokens), tokens: input_tokens.saturating_add(output_tokens) }
    }
}

/// The call that what is left pays for: with as much output as is wanted, or as there is money or tokens for.
pub fn affordable(
    rates: Rates,
    input_tokens: u64,
    wanted_output: u64,
    money: Option<Amount>,
    tokens: Option<u64>,
) -> Option<Affordable> {
    let by_money = match money {
        Some(left) => {
            let rest = left.decimal() - rates.cost(input_tokens, 0).decimal();
            match () {
                () if rest < Decimal::ZERO => return None,
                () if rates.output.is_zero() => u64::MAX,
                () => (rest / rates.output).floor().to_u64().unwrap_or(u64::MAX),
            }
        }
        None => u64::MAX,
    };
    let by_tokens = match tokens {
        Some(left) => left.checked_sub(input_tokens)?,
        None => u64::MAX,
    };
    let output_tokens = wanted_output.min(by_money).min(by_tokens);
    let enough = output_tokens >= wanted_output.min(OUTPUT_TOKENS_MIN);
    enough.then(|| Affordable { output_tokens, most: rates.most(input_tokens, output_tokens) })
}

/// What is billed of what a provider reports (input, cached input, output): no more than was held for it. A provider may
/// count otherwise than we do, and the tenant was promised that its budget holds.
pub fn within(
    book: &PriceBook,
    provider: &str,
    model: &str,
    (input, cached, output): (u64, u64, u64),
    held: Spend,
    bounded: (bool, bool),
) -> (u64, u64, u64) {
    let (money_bounded, tokens_bounded) = bounded;
    let fits = |input: u64, cached: u64, output: u64| {
        let used = Used::model(input, cached, output);
        let cost: Amount = used.iter().map(|used| book.price(used, Some(provider), Some(model)).amount).sum();
        (!money_bounded || cost <= held.money) && (!tokens_bounded || input.saturating_add(output) <= held.tokens)
    };
    if fits(input, cached, output) {
        return (input, cached, output);
    }
    let output = largest(output, |output| fits(input, cached, output));
    if fits(input, cached, output) {
        return (input, cached, output);
    }
    let input = largest(input, |input| fits(input, cached.min(input), 0));
    (input, cached.min(input), 0)
}

/// The largest number up to `most` that fits, where whatever is smaller fits too.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Limits of calls that together cost at most `money`, and what they cost at most. Fuel is what gives: each call gets the
/// same part of what is left after the memory of all. `None`: not even that is paid.
pub fn fuel_for(book: &PriceBook, limits: &[Limits], money: Option<Amount>) -> Option<(Vec<Limits>, Amount)> {
    let price = |used: Used| book.price(&used, None, None).amount;
    let memory = |limits: &Limits| {
        let us = limits.deadline_ms.saturating_mul(1_000).saturating_add(LATE_US);
        price(Used::ToolMemory { byte_us: u128::from(limits.memory_bytes) * u128::from(us) })
    };
    let cost = |limits: &[Limits]| -> Amount {
        limits.iter().map(|limits| price(Used::ToolFuel { fuel: limits.fuel }) + memory(limits)).sum()
    };
    let whole = cost(limits);
    let Some(money) = money.filter(|money| *money < whole) else { return Some((limits.to_vec(), whole)) };
    let memory: Amount = limits.iter().map(memory).sum();
    let each = (money.decimal() - memory.decimal()) / Decimal::from(limits.len().max(1));
    let fuel = largest(limits.iter().map(|limits| limits.fuel).max().unwrap_or(0), |fuel| {
        price(Used::ToolFuel { fuel }).decimal() <= each
    });
    let cut: Vec<Limits> = limits.iter().map(|limits| Limits { fuel: limits.fuel.min(fuel), ..*limits }).collect();
    let cost = cost(&cut);
    (fuel > 0 && cost <= money).then_some((cut, cost))
}

#[cfg(test)]
mod tests;
