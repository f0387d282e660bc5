//! The totals against a second, plain sum of the same events.

use std::{collections::BTreeMap, time::Duration};

use billing_meter::{
    Cause, NewEvent, UsageEvent, Used,
    usage::{self, GroupBy, Quantities, UsageGroup, UsageKind},
};
use domain::{AgentId, ApiKeyId, Money, Problem, SystemIds, Timestamp};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use uuid::Uuid;

use crate::{all, now, record, start};

fn used() -> impl Strategy<Value = Used> {
    prop_oneof![
        (0..1_000_000_u64).prop_map(|tokens| Used::ModelInput { tokens }),
        (0..1_000_000_u64).prop_map(|tokens| Used::ModelCachedInput { tokens }),
        (0..1_000_000_u64).prop_map(|tokens| Used::ModelOutput { tokens }),
        (0..=100_000_000_000_u64).prop_map(|fuel| Used::ToolFuel { fuel }),
        (0..=32_000_000_000_000_000_u64).prop_map(|byte_us| Used::ToolMemory { byte_us: byte_us.into() }),
    ]
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    prop::option::of(prop::sample::select(texts).prop_map(String::from))
}

fn cause() -> impl Strategy<Value = Cause> {
    (
        prop::option::of(1..4_u128),
        prop::option::of(1..3_u128),
        one_of(&["openai", "demo", "own:mine"]),
        one_of(&["gpt-4o", "gpt-4o-mini", "demo"]),
        one_of(&["calc", "clock"]),
        one_of(&["u1", "u2", "u3"]),
    )
        .prop_map(|(agent, key, provider, model, tool, external_user_id)| Cause {
            agent_id: agent.map(|n| AgentId::from(Uuid::from_u128(n))),
            api_key_id: key.map(|n| ApiKeyId::from(Uuid::from_u128(n))),
            provider,
            model,
            tool,
            external_user_id,
            ..Default::default()
        })
}

/// The group of an event, by what the event itself shows.
fn group(event: &UsageEvent, group_by: &[GroupBy]) -> BTreeMap<String, Option<String>> {
    let value = |by| match by {
        GroupBy::Day => Some(event.occurred_at.to_string()[..10].to_owned()),
        GroupBy::Agent => event.agent_id.map(|id| id.to_string()),
        GroupBy::Kind => Some(event.kind.as_str().to_owned()),
        GroupBy::Tool => event.tool.clone(),
        GroupBy::Model => event.model.clone(),
        GroupBy::ExternalUserId => event.external_user_id.clone(),
        GroupBy::ApiKey => event.api_key_id.map(|id| id.to_string()),
    };
    group_by.iter().map(|by| (by.as_str().to_owned(), value(*by))).collect()
}

fn sum(group: BTreeMap<String, Option<String>>, events: &[&UsageEvent]) -> UsageGroup {
    let of = |kinds: &[UsageKind]| {
        events
            .iter()
            .filter(|event| kinds.contains(&event.kind))
            .map(|event| event.quantity)
            .sum::<rust_decimal::Decimal>()
    };
    let whole = |kinds: &[UsageKind]| u64::try_from(of(kinds)).unwrap();
    use UsageKind::*;
    UsageGroup {
        group,
        events: events.len() as u64,
        quantities: Quantities {
            input_tokens: whole(&[ModelInputTokens, ModelCachedInputTokens]),
            cached_input_tokens: whole(&[ModelCachedInputTokens]),
            output_tokens: whole(&[ModelOutputTokens]),
            fuel: whole(&[ToolFuel]),
            memory_byte_seconds: of(&[ToolMemoryByteSeconds]),
        },
        cost: Money { amount: events.iter().map(|event| event.amount.amount).sum(), currency: "USD".into() },
    }
}

#[tokio::test]
async fn the_totals_equal_the_sum_of_the_events() {
    let db = start().await;
    let tenant = db.tenant("ada").await;
    let begin = Timestamp::parse("2026-04-28T00:00:00Z").unwrap();
    let mut chance = TestRunner::deterministic();
    let batch = prop::collection::vec((used(), cause()), 1..40);
    for number in 0..30_u64 {
        let new: Vec<NewEvent> = batch
            .new_tree(&mut chance)
            .unwrap()
            .current()
            .into_iter()
            .enumerate()
            .map(|(at, (used, cause))| NewEvent { used, cause: Cause { dedup: format!("{number}:{at}"), ..cause } })
            .collect();
        // 30 times 7 hours and a bit: over nine days and the end of a month.
        record(&tenant, &new, begin.plus(Duration::from_micros(number * 7 * 3_600_000_123))).await;
    }

    let mut tx = tenant.begin().await.unwrap();
    let spans = [
        (begin, begin.plus(Duration::from_secs(30 * 86_400))),
        usage::range(None, None, now()).unwrap(),
        (begin.plus(Duration::from_secs(3_600)), begin.plus(Duration::from_secs(86_400))),
    ];
    for span in spans {
        let events = all(&mut tx, span, 100).await;
        assert!(!events.is_empty());
        for by in [
            "",
            "day",
            "agent",
            "kind",
            "tool",
            "model",
            "external_user_id",
            "api_key",
            "day,model,kind",
            "day,agent,kind,tool,model,external_user_id,api_key",
        ] {
            let by = usage::group_by(by).unwrap();
            let mut groups: BTreeMap<_, Vec<&UsageEvent>> = BTreeMap::new();
            for event in &events {
                groups.entry(group(event, &by)).or_default().push(event);
            }
            let expected: BTreeMap<_, _> =
                groups.into_iter().map(|(key, events)| (key.clone(), sum(key, &events))).collect();
            let report = usage::totals(&mut tx, span.0, span.1, &by).await.unwrap();
            assert_eq!(report.totals.len(), expected.len(), "{by:?}");
            for group in &report.totals {
                assert_eq!(group, &expected[&group.group], "{by:?}");
            }
            assert_eq!(report.total, sum(BTreeMap::new(), &events.iter().collect::<Vec<_>>()), "{by:?}");
            assert!(report.other_currencies.is_empty());
        }
    }
}

#[tokio::test]
async fn a_report_of_too_many_groups_says_so() {
    let db = start().await;
    let tenant = db.tenant("ada").await;
    let new: Vec<NewEvent> = (0..=usage::GROUPS_MAX)
        .map(|n| NewEvent {
            used: Used::ToolFuel { fuel: 1 },
            cause: Cause { dedup: n.to_string(), external_user_id: Some(n.to_string()), ..Default::default() },
        })
        .collect();
    record(&tenant, &new, now()).await;
    let (from, to) = usage::range(None, None, now()).unwrap();
    let mut tx = tenant.begin().await.unwrap();
    let error = usage::totals(&mut tx, from, to, &[GroupBy::ExternalUserId]).await.unwrap_err();
    assert_eq!((error.code(), error.fields()[0].pointer.as_str()), ("usage.too_many_groups", "/group_by"));
    let whole = usage::totals(&mut tx, from, to, &[]).await.unwrap();
    assert_eq!(whole.total.events, usage::GROUPS_MAX as u64 + 1);
    // The events are deduplicated by name only, never by what they are.
    assert_eq!(
        usage::record(&mut tx, &crate::book(&tenant).await, &new[..1], &SystemIds, now()).await.unwrap_err().code(),
        "usage.already_recorded"
    );
}
