//! Exact amounts. The one rounding rule: an amount is rounded half to even, to 12 decimal places, when it is made.

use std::{fmt, iter::Sum, ops::Add};

use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Digits after the point that an amount keeps: one token of the cheapest model is about 1e-8, one unit of fuel 1e-13
/// and never billed alone.
const AMOUNT_SCALE: u32 = 12;

/// An exact amount of an unnamed currency. In JSON a string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, utoipa::ToSchema)]
#[schema(value_type = String, example = "0.0123")]
pub struct Amount(Decimal);

impl Amount {
    pub const ZERO: Amount = Amount(Decimal::ZERO);

    /// Rounds to `AMOUNT_SCALE`. This is the only place where money is rounded.
    pub fn rounded(value: Decimal) -> Self {
        Self(value.round_dp_with_strategy(AMOUNT_SCALE, RoundingStrategy::MidpointNearestEven).normalize())
    }

    pub fn decimal(self) -> Decimal {
        self.0
    }

    /// What is left of it after `other`; nothing when that is more.
    pub fn less(self, other: Amount) -> Amount {
        Amount((self.0 - other.0).max(Decimal::ZERO).normalize())
    }
}

impl Add for Amount {
    type Output = Amount;

    fn add(self, other: Amount) -> Amount {
        Amount((self.0 + other.0).normalize())
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(amounts: I) -> Amount {
        amounts.fold(Amount::ZERO, Add::add)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.normalize(), f)
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let wrong = |_| serde::de::Error::custom("not a decimal number in a string, such as \"0.25\"");
        Ok(Amount::rounded(text.parse().map_err(wrong)?))
    }
}

/// An amount with its currency: `{"amount": "0.0123", "currency": "USD"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(expecting = "an amount with its currency, {\"amount\": \"0.0123\", \"currency\": \"USD\"}")]
pub struct Money {
    #[schema(value_type = String, example = "0.0123")]
    pub amount: Amount,
    /// ISO 4217.
    #[schema(example = "USD")]
    pub currency: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_rounds_half_to_even_once() {
        for (exact, rounded) in [
            ("0.0000000000005", "0"),
            ("0.0000000000015", "0.000000000002"),
            ("0.0000000000025", "0.000000000002"),
            ("1.10", "1.1"),
        ] {
            assert_eq!(Amount::rounded(exact.parse().unwrap()).to_string(), rounded, "{exact}");
        }
    }
}
