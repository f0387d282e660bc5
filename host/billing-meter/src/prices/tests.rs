use domain::SystemIds;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::usage::{Cause, NewEvent, QUANTITY_MAX, price_call};

fn default_book() -> PriceBook {
    book(1, Prices::default_book().unwrap(), Timestamp::from_unix_us(0))
}

fn fields(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut value = serde_json::from_str(DEFAULT_BOOK).unwrap();
    change(&mut value);
    match serde_json::from_value::<Prices>(value).unwrap().check() {
        Ok(()) => Vec::new(),
        Err(error) => {
            assert_eq!((error.kind(), error.code()), (Kind::Invalid, "price_book.invalid"));
            error.fields().into_iter().map(|field| field.pointer).collect()
        }
    }
}

#[test]
fn a_price_is_a_decimal_in_a_string() {
    for wrong in [
        json!(0.15),
        json!(1),
        json!("-1"),
        json!("-0"),
        json!("1e3"),
        json!(""),
        json!("."),
        json!("1."),
        json!(".5"),
        json!("1_0"),
        json!(" 1"),
        json!("1234567"),
        json!("0.0000000001"),
        json!("NaN"),
        json!(null),
    ] {
        assert!(serde_json::from_value::<Price>(wrong.clone()).is_err(), "{wrong}");
    }
    for right in ["0", "0.15", "10.00", "999999.999999999", "0.000000001"] {
        let price: Price = serde_json::from_value(json!(right)).unwrap();
        assert_eq!(serde_json::to_value(price).unwrap(), right);
    }
}

#[test]
fn a_book_that_is_not_valid_says_where() {
    for body in [json!({}), json!({"currency": "USD", "models": [], "tool": {}, "surprise": 1})] {
        assert!(serde_json::from_value::<Prices>(body).is_err());
    }
    let entry = |provider: &str, model: &str| {
        json!({"provider": provider, "model": model, "input_per_million": "1", "cached_input_per_million": "1",
               "output_per_million": "1"})
    };
    assert_eq!(fields(|_| ()), Vec::<String>::new());
    assert_eq!(fields(|book| book["currency"] = json!("usd")), ["/currency"]);
    assert_eq!(
        fields(|book| book["models"] = json!([entry("", "x"), entry("a", "x*y")])),
        ["/models/0/provider", "/models/1/model"]
    );
    assert_eq!(fields(|book| book["models"] = json!([entry("a", "x"), entry("a", "x")])), ["/models/1"]);
    assert_eq!(fields(|book| book["models"] = json!(vec![entry("a", "x"); MODELS_MAX + 1])), ["/models"]);
}

#[test]
fn the_most_specific_entry_counts() {
    let entry = |provider: &str, model: &str, price: &str| ModelPrice {
        provider: provider.into(),
        model: model.into(),
        input_per_million: price.parse().unwrap(),
        cached_input_per_million: "0".parse().unwrap(),
        output_per_million: "0".parse().unwrap(),
    };
    let mut book = default_book();
    book.models = vec![
        entry("*", "*", "1"),
        entry("*", "gpt-4o", "2"),
        entry("openai", "*", "3"),
        entry("openai", "gpt-4*", "4"),
        entry("openai", "gpt-4o*", "5"),
        entry("openai", "gpt-4o", "6"),
        entry("open*", "gpt-4o", "7"),
    ];
    for (provider, model, price) in [
        ("openai", "gpt-4o", "6"),
        ("openai", "gpt-4o-mini", "5"),
        ("openai", "gpt-4.1", "4"),
        ("openai", "o3", "3"),
        ("openrouter", "gpt-4o", "7"),
        ("openrouter", "o3", "1"),
        ("mistral", "gpt-4o", "2"),
        ("", "", "1"),
    ] {
        assert_eq!(book.tokens(provider, model).input_per_million.to_string(), price, "{provider}/{model}");
    }
}

#[test]
fn the_default_book_has_known_prices() {
    let book = default_book();
    let million = 1_000_000;
    for (provider, model, input, cached, output) in [
        ("openai", "gpt-4o", "2.5", "1.25", "10"),
        ("openai", "gpt-4o-2024-08-06", "2.5", "1.25", "10"),
        ("openai", "gpt-4o-2024-05-13", "5", "5", "15"),
        ("openai", "gpt-4o-mini", "0.15", "0.075", "0.6"),
        ("openai", "gpt-4o-mini-2024-07-18", "0.15", "0.075", "0.6"),
        ("openai", "gpt-4.1", "2", "0.5", "8"),
        ("openai", "gpt-4.1-mini-2025-04-14", "0.4", "0.1", "1.6"),
        ("demo", "demo", "0.1", "0.05", "0.4"),
        ("somebody", "a-model", "0.1", "0.1", "0.1"),
        // The tenant pays OpenAI; we take the fee, whatever the tenant called its key.
        (own_key("openai").as_str(), "gpt-4o", "0.1", "0.1", "0.1"),
    ] {
        let cost = |used| book.price(&used, Some(provider), Some(model)).amount.to_string();
        assert_eq!(
            (
                cost(Used::ModelInput { tokens: million }).as_str(),
                cost(Used::ModelCachedInput { tokens: million }).as_str(),
                cost(Used::ModelOutput { tokens: million }).as_str(),
            ),
            (input, cached, output),
            "{provider}/{model}"
        );
    }
}

#[test]
fn a_price_is_exact_and_rounded_once() {
    let book = default_book();
    for (used, amount) in [
        (Used::ModelInput { tokens: 0 }, "0"),
        (Used::ModelInput { tokens: 1 }, "0.00000015"),
        (Used::ModelCachedInput { tokens: 3 }, "0.000000225"),
        (Used::ModelOutput { tokens: 1_234_567 }, "0.7407402"),
        (Used::ToolFuel { fuel: 1_000_000_000 }, "0.00005"),
        // 5e-14 a unit: ten and thirty lie in the middle, and go to the even neighbour.
        (Used::ToolFuel { fuel: 10 }, "0"),
        (Used::ToolFuel { fuel: 11 }, "0.000000000001"),
        (Used::ToolFuel { fuel: 30 }, "0.000000000002"),
        (Used::ToolFuel { fuel: 10_000 }, "0.0000000005"),
        (Used::ToolMemory { byte_us: (1 << 30) * 1_000_000 }, "0.000005"),
        (Used::ToolMemory { byte_us: (1 << 30) * 1_500_000 }, "0.0000075"),
        (Used::ToolMemory { byte_us: 1 }, "0"),
    ] {
        assert_eq!(book.price(&used, Some("openai"), Some("gpt-4o-mini")).amount.to_string(), amount, "{used:?}");
    }
}

#[test]
fn an_absurd_claim_is_clamped() {
    let mut book = default_book();
    let highest: Price = "999999.999999999".parse().unwrap();
    book.default_model.input_per_million = highest;
    book.tool.memory_gib_second = highest;
    let tokens = book.price(&Used::ModelInput { tokens: u64::MAX }, None, None).amount;
    assert_eq!(tokens, book.price(&Used::ModelInput { tokens: QUANTITY_MAX }, None, None).amount);
    assert_eq!(tokens.to_string(), "999999999999.999");
    assert_eq!(Used::ToolMemory { byte_us: u128::MAX }.quantity(), Decimal::from(QUANTITY_MAX));
    book.price(&Used::ToolMemory { byte_us: u128::MAX }, None, None);
}

#[test]
fn each_token_is_billed_once() {
    assert_eq!(
        Used::model(10, 4, 2),
        [Used::ModelInput { tokens: 6 }, Used::ModelCachedInput { tokens: 4 }, Used::ModelOutput { tokens: 2 }]
    );
    assert_eq!(Used::model(10, 0, 0), [Used::ModelInput { tokens: 10 }]);
    assert_eq!(Used::model(3, 9, 0), [Used::ModelCachedInput { tokens: 3 }]);
    assert_eq!(Used::model(0, 0, 0), []);
}

/// The same, in whole numbers of 1e-12.
fn reference(quantity_micro: u128, price_nano: u128, per: u128) -> u128 {
    let (dividend, divisor) = (quantity_micro * price_nano, per * 1_000);
    let (whole, rest) = (dividend / divisor, dividend % divisor);
    match (rest * 2).cmp(&divisor) {
        std::cmp::Ordering::Less => whole,
        std::cmp::Ordering::Greater => whole + 1,
        std::cmp::Ordering::Equal => whole + whole % 2,
    }
}

fn price_of(nano: u64) -> Price {
    Price(Decimal::from_i128_with_scale(nano.into(), 9))
}

proptest! {
    #[test]
    fn a_price_equals_that_of_whole_numbers(
        tokens in 0..100_000_000_u64,
        fuel in 0..=100_000_000_000_u64,
        byte_us in 0..=32_212_254_720_000_000_u64,
        price in 0..100_000_000_000_u64,
    ) {
        let mut book = default_book();
        book.models.clear();
        book.default_model.output_per_million = price_of(price);
        book.tool = ToolPrices { fuel_per_billion: price_of(price), memory_gib_second: price_of(price) };
        for (used, micro) in [
            (Used::ModelOutput { tokens }, u128::from(tokens) * 1_000_000),
            (Used::ToolFuel { fuel }, u128::from(fuel) * 1_000_000),
            (Used::ToolMemory { byte_us: byte_us.into() }, u128::from(byte_us)),
        ] {
            let amount = book.price(&used, None, None).amount.decimal();
            let expected = reference(micro, price.into(), used.kind().per().into());
            prop_assert_eq!(amount * Decimal::from(1_000_000_000_000_u64), Decimal::from(expected), "{:?}", used);
        }
    }

    #[test]
    fn a_call_costs_what_its_events_cost(
        fuel in 0..=100_000_000_000_u64, peak in 0..=268_435_456_u64, us in 0..=120_000_000_u64,
    ) {
        let book = default_book();
        let events: Amount = Used::tool_call(fuel, peak, us)
            .into_iter()
            .map(|used| crate::usage::priced(&NewEvent { used, cause: Cause::default() }, &book, &SystemIds, Timestamp::from_unix_us(0)))
            .map(|event| event.amount.amount)
            .sum();
        prop_assert_eq!(price_call(&book, fuel, peak, us), events);
    }
}
