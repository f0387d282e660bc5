use proptest::prelude::*;

use super::*;
use crate::prices::Prices;

fn book() -> PriceBook {
    let Prices { currency, models, default_model, tool } = Prices::default_book().unwrap();
    PriceBook { version: 1, currency, models, default_model, tool, created_at: domain::Timestamp::from_unix_us(0) }
}

fn amount(text: &str) -> Amount {
    Amount::rounded(text.parse().unwrap())
}

/// Input 0.10 and output 0.40 a million.
fn demo() -> Rates {
    Rates::of(&book(), [("demo", "demo")])
}

#[test]
fn a_model_without_a_price_is_not_affordable() {
    for (provider, model, priced) in [
        ("openai", "gpt-4o", true),
        ("openai", "gpt-2", false),
        ("nowhere", "gpt-4o", false),
        ("own:nowhere", "gpt-2", true),
        ("demo", "anything", true),
    ] {
        let found = unpriced(&book(), [("demo", "demo"), (provider, model)]);
        assert_eq!(found.is_none(), priced, "{provider}/{model}");
    }
}

#[test]
fn the_dearest_of_the_models_is_held() {
    let rates = Rates::of(&book(), [("openai", "gpt-4.1-mini"), ("openai", "o4-mini"), ("openai", "gpt-5")]);
    assert_eq!(rates.cost(1_000_000, 0), amount("1.25"));
    assert_eq!(rates.cost(0, 1_000_000), amount("10"));
    assert_eq!(rates.cost(0, 0), Amount::ZERO);
}

#[test]
fn what_is_left_bounds_what_a_model_may_say() {
    for (input, wanted, money, tokens, expected) in [
        (1000, 4096, None, None, Some(4096)),
        (1000, 4096, Some("1"), None, Some(4096)),
        // 0.0001 for the input, then 100 tokens of output.
        (1000, 4096, Some("0.0001401"), None, Some(100)),
        (1000, 4096, Some("0.00014"), None, Some(100)),
        (1000, 4096, Some("0.000139999999"), None, Some(99)),
        (1000, 4096, Some("0.0001064"), None, Some(16)),
        (1000, 4096, Some("0.000106399999"), None, None),
        (1000, 4096, Some("0.00005"), None, None),
        (1000, 4096, Some("0"), None, None),
        // Who wants less than an answer needs gets it.
        (1000, 4, Some("0.0001017"), None, Some(4)),
        (1000, 4096, None, Some(1100), Some(100)),
        (1000, 4096, None, Some(1015), None),
        (1000, 4096, None, Some(999), None),
        (1000, 4096, Some("0.00014"), Some(1050), Some(50)),
    ] {
        let found = affordable(demo(), input, wanted, money.map(amount), tokens);
        assert_eq!(found.map(|found| found.output_tokens), expected, "{input} {wanted} {money:?} {tokens:?}");
        if let Some(found) = found {
            assert!(money.is_none_or(|money| found.most.money <= amount(money)), "{input} {wanted} {money:?}");
            assert!(tokens.is_none_or(|tokens| found.most.tokens <= tokens));
        }
    }
}

#[test]
fn a_free_model_is_affordable_when_nothing_is_left() {
    let free = Rates { input: Decimal::ZERO, output: Decimal::ZERO };
    assert_eq!(affordable(free, 1000, 50, Some(Amount::ZERO), None).unwrap().output_tokens, 50);
}

#[test]
fn fuel_is_what_money_buys() {
    let limits = Limits { fuel: 1_000_000_000, memory_bytes: 1 << 30, deadline_ms: 9_000, ..Limits::DEFAULT };
    // A call: 0.00005 for a billion of fuel, and 0.00005 for a GiB over ten seconds.
    for (calls, money, fuel) in [
        (1, None, Some(1_000_000_000)),
        (1, Some("0.0001"), Some(1_000_000_000)),
        (1, Some("0.000075"), Some(500_000_010)),
        (1, Some("0.00005"), Some(10)),
        (1, Some("0.000049"), None),
        (1, Some("0.00001"), None),
        (2, Some("0.00015"), Some(500_000_010)),
        (4, Some("0.0004"), Some(1_000_000_000)),
    ] {
        let found = fuel_for(&book(), &vec![limits; calls], money.map(amount));
        let cut = found.as_ref().map(|(limits, _)| limits[0].fuel);
        assert_eq!(cut, fuel, "{calls} calls for {money:?}");
        if let (Some((_, cost)), Some(money)) = (found, money) {
            assert!(cost <= amount(money), "{calls} calls for {money} may cost {cost}");
        }
    }
    assert_eq!(fuel_for(&book(), &[], Some(Amount::ZERO)), Some((Vec::new(), Amount::ZERO)));
}

proptest! {
    /// Whatever a provider reports, with caches or without: what was held pays for it.
    #[test]
    fn what_is_billed_was_held(
        input in 0u64..200_000, cached in 0u64..200_000, output in 0u64..100_000,
        counted in 0u64..100_000, wanted in 0u64..50_000, nanos in 0u64..100_000_000u64, dear in any::<bool>(),
    ) {
        let model = if dear { "gpt-4o" } else { "gpt-4.1-nano" };
        let money = Amount::rounded(Decimal::new(nanos as i64, 9));
        let rates = Rates::of(&book(), [("openai", model)]);
        let Some(held) = affordable(rates, counted, wanted, Some(money), None) else { return Ok(()) };
        prop_assert!(held.most.money <= money);
        let reported = (input, cached, output);
        let (i, c, o) = within(&book(), "openai", model, reported, held.most, (true, true));
        let used = Used::model(i, c, o);
        let cost: Amount = used.iter().map(|used| book().price(used, Some("openai"), Some(model)).amount).sum();
        prop_assert!(cost <= held.most.money, "{} > {}", cost, held.most.money);
        prop_assert!(i + o <= held.most.tokens);
        if input <= counted && output <= held.output_tokens {
            prop_assert_eq!((i, c, o), reported);
        }
        prop_assert_eq!(within(&book(), "openai", model, reported, held.most, (false, false)), reported);
    }
}
