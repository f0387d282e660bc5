//! Versioned price books, and the price of what was used: a pure function of the two.

use std::{fmt, str::FromStr};

use domain::{
    Amount, FieldError, Kind, Problem, Timestamp,
    page::{Page, PageRequest},
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy::{DbError, GlobalTx, TenantTx};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::usage::{UsageKind, Used};

/// Digits of a price after its point: list prices have three, and quantity times price stays exact with nine.
const PRICE_SCALE_MAX: usize = 9;
/// Digits of a price before its point, so that no product overflows.
const PRICE_DIGITS_MAX: usize = 6;
/// Most models in one book: it is held with every agent that is spoken with.
pub(crate) const MODELS_MAX: usize = 1_000;
/// Longest provider or model in a book, in bytes: longer than any that a provider has.
const PATTERN_BYTES_MAX: usize = 200;

/// The book of a fresh installation.
const DEFAULT_BOOK: &str = include_str!("../price-books/default.json");

/// A price: a decimal number in a string, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(into = "String", try_from = "String")]
#[schema(value_type = String, pattern = "^[0-9]{1,6}(\\.[0-9]{1,9})?$", example = "0.15")]
pub struct Price(Decimal);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "not a price: write a string such as \"0.15\", at most {PRICE_DIGITS_MAX} digits, a point and {PRICE_SCALE_MAX} digits"
)]
pub struct BadPrice;

/// What an operator publishes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// ISO 4217.
    pub currency: String,
    pub models: Vec<ModelPrice>,
    /// For every model that no entry names: what the platform takes for passing tokens on.
    pub default_model: TokenPrices,
    pub tool: ToolPrices,
}

/// A published book. A version never changes.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct PriceBook {
    pub version: u32,
    pub currency: String,
    pub models: Vec<ModelPrice>,
    pub default_model: TokenPrices,
    pub tool: ToolPrices,
    pub created_at: Timestamp,
}

/// `provider` and `model` are exact, or a prefix and `*`. Of the entries that fit, the most specific one counts: first by
/// provider, then by model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelPrice {
    pub provider: String,
    pub model: String,
    pub input_per_million: Price,
    pub cached_input_per_million: Price,
    pub output_per_million: Price,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenPrices {
    /// Input that no cache held.
    pub input_per_million: Price,
    pub cached_input_per_million: Price,
    pub output_per_million: Price,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolPrices {
    pub fuel_per_billion: Price,
    /// A GiB (2^30 bytes) of peak memory, held for a second.
    pub memory_gib_second: Price,
}

/// What something costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priced {
    /// The book's price of `UsageKind::per` units.
    pub unit_price: Decimal,
    /// `quantity * unit_price / per`, rounded by the one rule of `Amount`.
    pub amount: Amount,
}

#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    #[error("the price book is not valid; `errors` says where")]
    Invalid(Vec<FieldError>),
    #[error("another price book was published at this moment; read it, then publish again")]
    Raced,
    #[error("there is no price book; run `belljar migrate`")]
    NotInstalled,
    #[error("price book {version} cannot be read")]
    Unreadable { version: u32, source: serde_json::Error },
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for PriceError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for PriceError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) => Kind::Invalid,
            Self::Raced => Kind::Conflict,
            Self::NotInstalled | Self::Unreadable { .. } => Kind::Internal,
            Self::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "price_book.invalid",
            Self::Raced => "price_book.conflict",
            Self::NotInstalled => "price_book.not_installed",
            Self::Unreadable { .. } => "price_book.unreadable",
            Self::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            Self::Invalid(fields) => fields.clone(),
            _ => Vec::new(),
        }
    }
}

impl PriceBook {
    /// What `used` costs. A model that no entry names has the price of `default_model`.
    pub fn price(&self, used: &Used, provider: Option<&str>, model: Option<&str>) -> Priced {
        let Price(unit_price) = self.unit_price(used.kind(), provider.unwrap_or_default(), model.unwrap_or_default());
        // Neither overflows: a quantity is at most `QUANTITY_MAX`, a price has at most six digits before its point.
        let exact = used.quantity() * unit_price / Decimal::from(used.kind().per());
        Priced { unit_price: unit_price.normalize(), amount: Amount::rounded(exact) }
    }

    /// Whether a model's price is known: an entry names it, or the tenant's own key pays for it and the platform takes only
    /// its fee.
    pub fn is_priced(&self, provider: &str, model: &str) -> bool {
        let named = |entry: &ModelPrice| fit(&entry.provider, provider).is_some() && fit(&entry.model, model).is_some();
        provider.starts_with(OWN_KEY) || self.models.iter().any(named)
    }

    fn unit_price(&self, kind: UsageKind, provider: &str, model: &str) -> Price {
        match kind {
            UsageKind::ModelInputTokens => self.tokens(provider, model).input_per_million,
            UsageKind::ModelCachedInputTokens => self.tokens(provider, model).cached_input_per_million,
            UsageKind::ModelOutputTokens => self.tokens(provider, model).output_per_million,
            UsageKind::ToolFuel => self.tool.fuel_per_billion,
            UsageKind::ToolMemoryByteSeconds => self.tool.memory_gib_second,
        }
    }

    fn tokens(&self, provider: &str, model: &str) -> TokenPrices {
        self.models
            .iter()
            .filter_map(|entry| Some(((fit(&entry.provider, provider)?, fit(&entry.model, model)?), entry)))
            .max_by_key(|(rank, _)| *rank)
            .map_or(self.default_model, |(_, entry)| TokenPrices {
                input_per_million: entry.input_per_million,
                cached_input_per_million: entry.cached_input_per_million,
                output_per_million: entry.output_per_million,
            })
    }
}

impl Prices {
    /// The book of a fresh installation.
    pub fn default_book() -> Result<Self, serde_json::Error> {
        serde_json::from_str(DEFAULT_BOOK)
    }

    /// What the types do not already refuse.
    pub fn check(&self) -> Result<(), PriceError> {
        let mut wrong = Vec::new();
        if self.currency.len() != 3 || !self.currency.bytes().all(|b| b.is_ascii_uppercase()) {
            wrong.push(FieldError::new("/currency", "not an ISO 4217 code such as USD"));
        }
        if self.models.len() > MODELS_MAX {
            wrong.push(FieldError::new("/models", format!("more than {MODELS_MAX} entries; use prefixes")));
            return Err(PriceError::Invalid(wrong));
        }
        let mut seen = std::collections::HashSet::new();
        for (at, entry) in self.models.iter().enumerate() {
            for (name, pattern) in [("provider", &entry.provider), ("model", &entry.model)] {
                if !is_pattern(pattern) {
                    let detail = format!("use 1 to {PATTERN_BYTES_MAX} printable characters, and `*` only as the last");
                    wrong.push(FieldError::new(format!("/models/{at}/{name}"), detail));
                }
            }
            if !seen.insert((&entry.provider, &entry.model)) {
                wrong.push(FieldError::new(format!("/models/{at}"), "an earlier entry has this provider and model"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(PriceError::Invalid(wrong)) }
    }
}

/// The provider of a model that was reached with the tenant's own key, as usage events and price books name it. The
/// tenant has paid that provider: its entries must not match by the name that the tenant gave the key.
pub fn own_key(name: &str) -> String {
    format!("{OWN_KEY}{name}")
}

const OWN_KEY: &str = "own:";

/// Publishes the default book as version 1 when there is none; a later version is the operator's.
pub async fn install_default(tx: &mut GlobalTx, now: Timestamp) -> Result<(), PriceError> {
    let prices = Prices::default_book().map_err(|source| PriceError::Unreadable { version: 1, source })?;
    sqlx::query!(
        "INSERT INTO price_book (version, currency, body, created_at)
         VALUES (1, $1, $2, $3)
         ON CONFLICT (version) DO NOTHING",
        prices.currency,
        body(&prices, 1)?,
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What a tenant's spending goes by now.
#[derive(Debug, Clone)]
pub struct Standing {
    pub book: PriceBook,
    pub has_budgets: bool,
}

pub async fn standing(tx: &mut TenantTx) -> Result<Standing, PriceError> {
    let row = sqlx::query!(
        r#"SELECT version, body, created_at, EXISTS (SELECT FROM budget WHERE tenant_id = $1) AS "has_budgets!"
           FROM price_book ORDER BY version DESC LIMIT 1"#,
        tx.tenant().uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(PriceError::NotInstalled)?;
    let book = Row { version: row.version, body: row.body, created_at: row.created_at }.try_into()?;
    Ok(Standing { book, has_budgets: row.has_budgets })
}

/// The book that prices what is used now.
pub async fn current(tx: &mut TenantTx) -> Result<PriceBook, PriceError> {
    sqlx::query_as!(Row, "SELECT version, body, created_at FROM price_book ORDER BY version DESC LIMIT 1")
        .fetch_optional(tx.conn())
        .await?
        .ok_or(PriceError::NotInstalled)?
        .try_into()
}

pub async fn get(tx: &mut GlobalTx, version: u32) -> Result<Option<PriceBook>, PriceError> {
    let Ok(version) = i32::try_from(version) else { return Ok(None) };
    sqlx::query_as!(Row, "SELECT version, body, created_at FROM price_book WHERE version = $1", version,)
        .fetch_optional(tx.conn())
        .await?
        .map(PriceBook::try_from)
        .transpose()
}

/// Newest first. A book's place in the list is its version, as a UUID.
pub async fn list(tx: &mut GlobalTx, page: PageRequest) -> Result<Page<PriceBook>, PriceError> {
    let before = page.after.map_or(i32::MAX, |after| i32::try_from(after.as_u128()).unwrap_or(i32::MAX));
    let rows = sqlx::query_as!(
        Row,
        "SELECT version, body, created_at FROM price_book
         WHERE version < $1
         ORDER BY version DESC
         LIMIT $2",
        before,
        page.rows(),
    )
    .fetch_all(tx.conn())
    .await?;
    let books = rows.into_iter().map(PriceBook::try_from).collect::<Result<_, _>>()?;
    Ok(Page::cut(books, page, |book: &PriceBook| Uuid::from_u128(book.version.into())))
}

/// Publishes the next version. Runs that have begun keep the book that they began with.
pub async fn publish(tx: &mut GlobalTx, prices: Prices, now: Timestamp) -> Result<PriceBook, PriceError> {
    prices.check()?;
    let version = sqlx::query_scalar!(
        "INSERT INTO price_book (version, currency, body, created_at)
         SELECT coalesce(max(version), 0) + 1, $1, $2, $3 FROM price_book
         RETURNING version",
        prices.currency,
        body(&prices, 0)?,
        now.offset(),
    )
    .fetch_one(tx.conn())
    .await
    .map_err(|error| match DbError::violates(&error, "price_book_pkey") {
        true => PriceError::Raced,
        false => error.into(),
    })?;
    Ok(book(version.unsigned_abs(), prices, now))
}

/// How well a pattern fits, better is greater: an exact one before any prefix, a long prefix before a short one.
fn fit(pattern: &str, text: &str) -> Option<usize> {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix).then_some(prefix.len()),
        None => (pattern == text).then_some(usize::MAX),
    }
}

fn is_pattern(text: &str) -> bool {
    (1..=PATTERN_BYTES_MAX).contains(&text.len())
        && !text.chars().any(char::is_control)
        && !text.strip_suffix('*').unwrap_or(text).contains('*')
}

fn body(prices: &Prices, version: u32) -> Result<Value, PriceError> {
    serde_json::to_value(prices).map_err(|source| PriceError::Unreadable { version, source })
}

fn book(version: u32, prices: Prices, created_at: Timestamp) -> PriceBook {
    let Prices { currency, models, default_model, tool } = prices;
    PriceBook { version, currency, models, default_model, tool, created_at }
}

impl FromStr for Price {
    type Err = BadPrice;

    fn from_str(text: &str) -> Result<Self, BadPrice> {
        let digits = |text: &str, max| (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let fits = match text.split_once('.') {
            Some((whole, part)) => digits(whole, PRICE_DIGITS_MAX) && digits(part, PRICE_SCALE_MAX),
            None => digits(text, PRICE_DIGITS_MAX),
        };
        if fits { Decimal::from_str_exact(text).map(Self).map_err(|_| BadPrice) } else { Err(BadPrice) }
    }
}

impl TryFrom<String> for Price {
    type Error = BadPrice;

    fn try_from(text: String) -> Result<Self, BadPrice> {
        text.parse()
    }
}

impl From<Price> for String {
    fn from(price: Price) -> String {
        price.to_string()
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

struct Row {
    version: i32,
    body: Value,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for PriceBook {
    type Error = PriceError;

    fn try_from(row: Row) -> Result<Self, PriceError> {
        let version = row.version.unsigned_abs();
        let prices = serde_json::from_value(row.body).map_err(|source| PriceError::Unreadable { version, source })?;
        Ok(book(version, prices, row.created_at.into()))
    }
}

#[cfg(test)]
mod tests;
