//! What a budget is written with: amounts and shares of them.

use domain::{Amount, Money};
use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A part of a budget, more than 0 and at most 1. In JSON a string or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, utoipa::ToSchema)]
#[schema(value_type = String, example = "0.8")]
pub struct Share(Decimal);

/// Thresholds. In JSON one share or a list of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(value_type = Vec<Share>, example = json!(["0.5", "0.8"]))]
pub struct Shares(pub(super) Vec<Share>);

/// What a caller may spend. In JSON `{"amount": "10", "currency": "USD"}`, or only the amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub amount: Amount,
    /// That of the price book when absent.
    pub currency: Option<String>,
}

impl Shares {
    pub(super) fn decimals(&self) -> Vec<Decimal> {
        self.0.iter().map(|share| share.0).collect()
    }
}

impl Share {
    fn read(value: &Value) -> Result<Share, String> {
        let share = match value {
            // A number as it is written: no float is computed with.
            Value::String(_) | Value::Number(_) => value.to_string().trim_matches('"').parse::<Decimal>().ok(),
            _ => None,
        };
        let fits = share.filter(|share| *share > Decimal::ZERO && *share <= Decimal::ONE && share.scale() <= 6);
        fits.map(|share| Share(share.normalize())).ok_or_else(|| {
            format!("{value} is no share of the amount: more than 0, at most 1, six digits after the point")
        })
    }

    pub(crate) fn of(value: Decimal) -> Share {
        Share(value.normalize())
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Shares {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = match Value::deserialize(deserializer)? {
            Value::Array(values) => values.iter().map(Share::read).collect(),
            one => Share::read(&one).map(|share| vec![share]),
        };
        let mut shares: Vec<Share> = read.map_err(serde::de::Error::custom)?;
        shares.sort_unstable();
        shares.dedup();
        Ok(Shares(shares))
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let read = match &value {
            Value::String(_) => serde_json::from_value(value).map(|amount| Limit { amount, currency: None }),
            _ => serde_json::from_value(value)
                .map(|Money { amount, currency }| Limit { amount, currency: Some(currency) }),
        };
        read.map_err(serde::de::Error::custom)
    }
}

/// What is absent, and what is `null`.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
