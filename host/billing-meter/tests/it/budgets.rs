//! Budgets, and what is held of them, against a real Postgres.

mod forgotten;
mod race;

use billing_meter::{
    Budget, BudgetError, BudgetPatch, BudgetSpec, Spend, Spender, budgets,
    holds::{self, Crossed},
};
use domain::{AgentId, Amount, BudgetId, ConversationId, Ids, Problem, RunId, SystemIds, page::PageRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

fn amount(text: &str) -> Amount {
    Amount::rounded(text.parse().unwrap())
}

fn money(text: &str) -> Spend {
    Spend { money: amount(text), tokens: 0 }
}

fn lease() -> Timestamp {
    now().plus(Duration::from_secs(15))
}

async fn create(tenant: &Tenant, spec: Value) -> Result<Budget, BudgetError> {
    let mut tx = tenant.begin().await.unwrap();
    let spec: BudgetSpec = serde_json::from_value(spec).unwrap();
    let made = budgets::create(&mut tx, spec, "USD", &SystemIds, now()).await?;
    tx.commit().await.unwrap();
    Ok(made)
}

async fn budget(tenant: &Tenant, scope: &str, subject: &str, window: &str, amount: &str) -> BudgetId {
    let spec = json!({"scope": scope, "subject": subject, "window": window, "amount": amount});
    create(tenant, spec).await.unwrap().id
}

/// Spent, held and remaining.
async fn shown(tenant: &Tenant, id: BudgetId, at: Timestamp) -> (String, String, String) {
    let mut tx = tenant.begin().await.unwrap();
    let budget = budgets::get(&mut tx, id, None, at).await.unwrap();
    let text = |money: &domain::Money| money.amount.to_string();
    (text(&budget.spent), text(&budget.held), text(&budget.remaining))
}

async fn hold(tenant: &Tenant, owner: Uuid, spender: &Spender<'_>, spend: Spend, at: Timestamp) -> bool {
    let mut tx = tenant.begin().await.unwrap();
    let left = holds::left(&mut tx, owner, spender, at).await.unwrap();
    let until = at.plus(Duration::from_secs(15));
    let held = left.refuses(spend).is_none() && holds::hold(&mut tx, owner, &left, spend, until).await.unwrap();
    if held {
        tx.commit().await.unwrap();
    }
    held
}

async fn settle(tenant: &Tenant, owner: Uuid, spent: Spend) -> Vec<Crossed> {
    let mut tx = tenant.begin().await.unwrap();
    let crossed = holds::settle(&mut tx, owner, spent).await.unwrap();
    tx.commit().await.unwrap();
    crossed
}

fn triple(spent: &str, held: &str, remaining: &str) -> (String, String, String) {
    (spent.into(), held.into(), remaining.into())
}

#[tokio::test]
async fn a_strangers_budget_is_neither_seen_nor_spent() {
    let db = start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let id = budget(&ada, "tenant", "*", "total", "1").await;
    let mut tx = bob.begin().await.unwrap();
    assert!(matches!(budgets::get(&mut tx, id, None, now()).await, Err(BudgetError::NotFound)));
    assert!(matches!(budgets::delete(&mut tx, id).await, Err(BudgetError::NotFound)));
    let patch = || BudgetPatch::default();
    assert!(matches!(budgets::update(&mut tx, id, patch(), "USD", now()).await, Err(BudgetError::NotFound)));
    assert!(budgets::list(&mut tx, PageRequest::default(), now()).await.unwrap().data.is_empty());
    assert!(!prices::standing(&mut tx).await.unwrap().has_budgets);
    let owner = SystemIds.uuid();
    assert!(holds::left(&mut tx, owner, &Spender::default(), now()).await.unwrap().is_unlimited());
    drop(tx);
    // A stranger who knows the owner's id gives nothing back.
    assert!(hold(&ada, owner, &Spender::default(), money("1"), now()).await);
    assert!(settle(&bob, owner, money("1")).await.is_empty());
    assert_eq!(shown(&ada, id, now()).await, triple("0", "1", "0"));
}

#[tokio::test]
async fn a_budget_that_means_nothing_is_refused() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    for (spec, pointer) in [
        (json!({"scope": "tenant", "subject": "ten_1", "window": "day", "amount": "1"}), "/subject"),
        (json!({"scope": "agent", "window": "day", "amount": "1"}), "/subject"),
        (json!({"scope": "agent", "subject": "clerk", "window": "day", "amount": "1"}), "/subject"),
        (json!({"scope": "run", "subject": "agt_1", "window": "day", "amount": "1"}), "/subject"),
        (json!({"scope": "conversation", "subject": "", "window": "day", "amount": "1"}), "/subject"),
        (json!({"scope": "external_user", "subject": "a\nb", "window": "day", "amount": "1"}), "/subject"),
        (json!({"scope": "tenant", "window": "day", "amount": "-1"}), "/amount"),
        (json!({"scope": "tenant", "window": "day", "amount": "1000000000001"}), "/amount"),
        (json!({"scope": "tenant", "window": "day", "amount": {"amount": "1", "currency": "EUR"}}), "/amount/currency"),
        (
            json!({"scope": "tenant", "window": "day", "amount": "1",
                   "alert_at": (1..=11).map(|n| format!("0.{n:02}")).collect::<Vec<_>>()}),
            "/alert_at",
        ),
    ] {
        let error = create(&ada, spec.clone()).await.unwrap_err();
        assert_eq!((error.code(), error.fields()[0].pointer.as_str()), ("budget.invalid", pointer), "{spec}");
    }
    for wrong in [json!("0"), json!(1.5), json!("80%"), json!([0.5, null]), json!(-0.5), json!("0.1234567")] {
        let spec = json!({"scope": "tenant", "window": "day", "amount": "1", "alert_at": wrong});
        assert!(serde_json::from_value::<BudgetSpec>(spec).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_budget_is_shown_as_it_was_made() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let amount = json!({"amount": "2.50", "currency": "USD"});
    let spec = json!({"scope": "tenant", "window": "month", "amount": amount, "alert_at": [0.8, "0.50", 0.8, 1]});
    let made = create(&ada, spec).await.unwrap();
    let of = |amount: &str| json!({"amount": amount, "currency": "USD"});
    assert_eq!(
        serde_json::to_value(&made).unwrap(),
        json!({"id": made.id, "scope": "tenant", "subject": "*", "window": "month", "amount": of("2.5"),
               "alert_at": ["0.5", "0.8", "1"], "spent": of("0"), "held": of("0"), "remaining": of("2.5"),
               "resets_at": "2026-06-01T00:00:00Z", "created_at": "2026-05-01T12:00:00Z",
               "updated_at": "2026-05-01T12:00:00Z"})
    );
    // A patch changes what it names, and nothing else.
    let mut tx = ada.begin().await.unwrap();
    for (patch, amount, alerts) in [
        (json!({}), "2.5", json!(["0.5", "0.8", "1"])),
        (json!({"alert_at": "0.9"}), "2.5", json!(["0.9"])),
        (json!({"amount": "3"}), "3", json!(["0.9"])),
        (json!({"alert_at": null}), "3", json!([])),
    ] {
        let patch: BudgetPatch = serde_json::from_value(patch).unwrap();
        let budget = budgets::update(&mut tx, made.id, patch, "USD", now()).await.unwrap();
        let shown = serde_json::to_value(&budget).unwrap();
        assert_eq!((&shown["amount"], &shown["alert_at"]), (&of(amount), &alerts));
    }
    let other = budgets::list(&mut tx, PageRequest { limit: 1, after: None }, now()).await.unwrap();
    assert_eq!((other.data.len(), other.next), (1, None));
}

#[tokio::test]
async fn each_scope_bounds_its_subject_and_no_other() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let (agent, other_agent) = (AgentId::new(&SystemIds), AgentId::new(&SystemIds));
    let (conversation, run) = (ConversationId::new(&SystemIds), RunId::new(&SystemIds));
    let all = Spender {
        agent: Some(agent),
        external_user: Some("u1"),
        conversation: Some(conversation),
        run: Some(run),
        tokens_per_month: None,
    };
    for (scope, subject, stranger) in [
        ("agent", agent.to_string(), Spender { agent: Some(other_agent), ..all }),
        ("external_user", "u1".into(), Spender { external_user: Some("u2"), ..all }),
        ("external_user", "u1".into(), Spender { external_user: None, ..all }),
        ("conversation", conversation.to_string(), Spender { conversation: None, ..all }),
        ("run", run.to_string(), Spender { run: Some(RunId::new(&SystemIds)), ..all }),
    ] {
        let id = budget(&ada, scope, &subject, "total", "1").await;
        assert!(!hold(&ada, SystemIds.uuid(), &all, money("1.000000000001"), now()).await, "{scope}: a bit too much");
        assert!(hold(&ada, SystemIds.uuid(), &stranger, money("5"), now()).await, "{scope}: another is not bounded");
        assert!(hold(&ada, SystemIds.uuid(), &all, money("1"), now()).await, "{scope}");
        assert!(!hold(&ada, SystemIds.uuid(), &all, money("0.000000000001"), now()).await, "{scope}: nothing is left");
        let mut tx = ada.begin().await.unwrap();
        budgets::delete(&mut tx, id).await.unwrap();
        tx.commit().await.unwrap();
        assert!(hold(&ada, SystemIds.uuid(), &all, money("5"), now()).await, "{scope}: without the budget");
    }
}

#[tokio::test]
async fn with_a_star_each_has_the_amount_for_itself() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let id = budget(&ada, "external_user", "*", "day", "1").await;
    let user = |name| Spender { external_user: Some(name), ..Spender::default() };
    let (first, second) = (SystemIds.uuid(), SystemIds.uuid());
    assert!(hold(&ada, first, &user("u1"), money("1"), now()).await);
    assert!(!hold(&ada, SystemIds.uuid(), &user("u1"), money("0.1"), now()).await);
    assert!(hold(&ada, second, &user("u2"), money("0.25"), now()).await);
    assert!(hold(&ada, SystemIds.uuid(), &Spender::default(), money("9"), now()).await, "a call for no user");
    settle(&ada, first, money("0.75")).await;
    settle(&ada, second, money("0.125")).await;
    let mut tx = ada.begin().await.unwrap();
    for (asked, by, spent) in [(None, "u1", "0.75"), (Some("u2"), "u2", "0.125"), (Some("u3"), "u3", "0")] {
        let shown = budgets::get(&mut tx, id, asked, now()).await.unwrap();
        assert_eq!((shown.spent_by.as_deref(), shown.spent.amount.to_string()), (Some(by), spent.to_owned()));
    }
}

#[tokio::test]
async fn all_budgets_pay_or_none() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let wide = budget(&ada, "tenant", "*", "total", "10").await;
    let narrow = budget(&ada, "external_user", "u1", "day", "1").await;
    let u1 = Spender { external_user: Some("u1"), ..Spender::default() };
    let owner = SystemIds.uuid();
    assert!(!hold(&ada, owner, &u1, money("2"), now()).await);
    assert_eq!(shown(&ada, wide, now()).await, triple("0", "0", "10"));
    assert!(hold(&ada, owner, &u1, money("0.5"), now()).await);
    // Another hold of the same one takes the place of the first.
    assert!(hold(&ada, owner, &u1, money("0.75"), now()).await);
    assert_eq!(shown(&ada, wide, now()).await, triple("0", "0.75", "9.25"));
    assert_eq!(shown(&ada, narrow, now()).await, triple("0", "0.75", "0.25"));
    // One that is refused leaves the first as it is.
    assert!(!hold(&ada, owner, &u1, money("1.25"), now()).await);
    assert_eq!(shown(&ada, narrow, now()).await, triple("0", "0.75", "0.25"));
    settle(&ada, owner, money("0.1")).await;
    assert_eq!(shown(&ada, wide, now()).await, triple("0.1", "0", "9.9"));
    assert_eq!(shown(&ada, narrow, now()).await, triple("0.1", "0", "0.9"));
    // Settled once: whoever settles again settles nothing.
    settle(&ada, owner, money("0.1")).await;
    assert_eq!(shown(&ada, wide, now()).await, triple("0.1", "0", "9.9"));
}

#[tokio::test]
async fn a_window_ends_and_a_hold_counts_where_it_was_taken() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let at = |text| Timestamp::parse(text).unwrap();
    let (day, month, total) = (
        budget(&ada, "tenant", "*", "day", "1").await,
        budget(&ada, "tenant", "*", "month", "2").await,
        budget(&ada, "tenant", "*", "total", "3").await,
    );
    let none = Spender::default();
    let (evening, morning, june) = (at("2026-05-30T23:59:59Z"), at("2026-05-31T00:00:01Z"), at("2026-06-01T00:00:00Z"));
    let owner = SystemIds.uuid();
    assert!(hold(&ada, owner, &none, money("1"), evening).await);
    assert!(!hold(&ada, SystemIds.uuid(), &none, money("0.5"), evening).await);
    // The hold was of yesterday's; today has its own.
    settle(&ada, owner, money("1")).await;
    assert_eq!(shown(&ada, day, evening).await, triple("1", "0", "0"));
    assert_eq!(shown(&ada, day, morning).await, triple("0", "0", "1"));
    assert_eq!(shown(&ada, month, morning).await, triple("1", "0", "1"));
    let owner = SystemIds.uuid();
    assert!(hold(&ada, owner, &none, money("1"), morning).await);
    settle(&ada, owner, money("1")).await;
    assert_eq!(shown(&ada, month, june).await, triple("0", "0", "2"));
    assert_eq!(shown(&ada, total, june).await, triple("2", "0", "1"));
    let owner = SystemIds.uuid();
    assert!(hold(&ada, owner, &none, money("1"), june).await);
    settle(&ada, owner, money("1")).await;
    assert!(!hold(&ada, SystemIds.uuid(), &none, money("0.1"), at("2027-01-01T00:00:00Z")).await);
    let mut tx = ada.begin().await.unwrap();
    let patch = serde_json::from_value(json!({"amount": "4"})).unwrap();
    budgets::update(&mut tx, total, patch, "USD", june).await.unwrap();
    tx.commit().await.unwrap();
    assert!(hold(&ada, SystemIds.uuid(), &none, money("0.1"), at("2026-07-02T00:00:00Z")).await);
    // What is over is not kept.
    let mut catalog = db.superuser().await;
    let count = "SELECT count(*) FROM belljar.budget_window";
    let windows: i64 = sqlx::query_scalar(count).fetch_one(&mut catalog).await.unwrap();
    assert_eq!(windows, 3);
}

#[tokio::test]
async fn a_hold_expires_with_its_lease() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let id = budget(&ada, "tenant", "*", "total", "1").await;
    let none = Spender::default();
    let (silent, renewed) = (SystemIds.uuid(), SystemIds.uuid());
    assert!(hold(&ada, silent, &none, money("0.5"), now()).await);
    assert!(hold(&ada, renewed, &none, money("0.25"), now()).await);
    let later = lease();
    let mut tx = ada.begin().await.unwrap();
    holds::renew(&mut tx, renewed, later.plus(Duration::from_secs(15))).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(shown(&ada, id, later).await, triple("0", "0.25", "0.75"));
    // What is expired is another's, once.
    assert!(!hold(&ada, SystemIds.uuid(), &none, money("0.8"), later).await);
    assert!(hold(&ada, SystemIds.uuid(), &none, money("0.75"), later).await);
    assert_eq!(shown(&ada, id, later).await, triple("0", "1", "0"));
    let mut tx = ada.begin().await.unwrap();
    for (owner, lapsed) in [(silent, true), (renewed, false), (SystemIds.uuid(), false)] {
        assert_eq!(holds::lapsed(&mut tx, owner).await.unwrap(), lapsed);
    }
    drop(tx);
    // Whoever was only late still pays what it spent.
    settle(&ada, silent, money("0.125")).await;
    settle(&ada, renewed, money("0.125")).await;
    assert_eq!(shown(&ada, id, later).await, triple("0.25", "0.75", "0"));
}

#[tokio::test]
async fn who_waits_holds_what_it_has_used() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let id = budget(&ada, "tenant", "*", "total", "1").await;
    let run = SystemIds.uuid();
    assert!(hold(&ada, run, &Spender::default(), money("0.75"), now()).await);
    let days = now().plus(Duration::from_secs(72 * 3600));
    for (used, held) in [("0.25", "0.25"), ("0.5", "0.25")] {
        let mut tx = ada.begin().await.unwrap();
        holds::keep(&mut tx, run, money(used), days).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(shown(&ada, id, lease().plus(Duration::from_secs(3600))).await.1, held);
    }
    settle(&ada, run, money("0.25")).await;
    assert_eq!(shown(&ada, id, now()).await, triple("0.25", "0", "0.75"));
}

#[tokio::test]
async fn a_run_that_is_taken_over_holds_once() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let id = budget(&ada, "tenant", "*", "total", "1").await;
    let run = SystemIds.uuid();
    assert!(hold(&ada, run, &Spender::default(), money("0.75"), now()).await);
    // The next process asks for the whole budget: its own hold is not in its way, expired or not.
    for later in [now(), lease().plus(Duration::from_secs(60))] {
        assert!(hold(&ada, run, &Spender::default(), money("1"), later).await);
        assert_eq!(shown(&ada, id, later).await, triple("0", "1", "0"));
    }
    let mut tx = ada.begin().await.unwrap();
    holds::release(&mut tx, run).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(shown(&ada, id, now()).await, triple("0", "0", "1"));
}

#[tokio::test]
async fn a_threshold_is_told_once_a_window() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let spec = json!({"scope": "tenant", "window": "day", "amount": "10", "alert_at": [0.5, 0.8, 1]});
    let id = create(&ada, spec).await.unwrap().id;
    let spend = async |text: &str, at: Timestamp| -> Vec<String> {
        let owner = SystemIds.uuid();
        assert!(hold(&ada, owner, &Spender::default(), money(text), at).await);
        let crossed = settle(&ada, owner, money(text)).await;
        assert!(crossed.iter().all(|crossed| crossed.budget_id == id));
        crossed.iter().map(|crossed| json!(crossed)["alert_at"].as_str().unwrap().to_owned()).collect()
    };
    let tomorrow = now().plus(Duration::from_secs(24 * 3600));
    for (text, at, told) in [
        ("4.99", now(), vec![]),
        ("0.01", now(), vec!["0.5"]),
        ("1", now(), vec![]),
        // Two at once: the higher says it all.
        ("4", now(), vec!["1"]),
        ("5.5", tomorrow, vec!["0.5"]),
    ] {
        assert_eq!(spend(text, at).await, told, "{text}");
    }
    let owner = SystemIds.uuid();
    assert!(hold(&ada, owner, &Spender::default(), money("3"), tomorrow).await);
    let crossed = settle(&ada, owner, money("2.5")).await;
    let of = |amount: &str| json!({"amount": amount, "currency": "USD"});
    assert_eq!(
        json!(crossed),
        json!([{"budget_id": id, "scope": "tenant", "subject": "*", "window": "day", "alert_at": "0.8",
                "amount": of("10"), "spent": of("8")}])
    );
}

#[tokio::test]
async fn the_plans_tokens_are_held_like_money() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let spender = Spender { tokens_per_month: Some(1_000), ..Spender::default() };
    let tokens = |tokens| Spend { money: amount("1"), tokens };
    let (first, second) = (SystemIds.uuid(), SystemIds.uuid());
    assert!(hold(&ada, first, &spender, tokens(600), now()).await);
    assert!(!hold(&ada, second, &spender, tokens(401), now()).await);
    settle(&ada, first, tokens(500)).await;
    assert!(hold(&ada, second, &spender, tokens(500), now()).await);
    let mut tx = ada.begin().await.unwrap();
    let left = holds::left(&mut tx, first, &spender, now()).await.unwrap();
    assert_eq!((left.tokens(), left.money(), left.is_money()), (Some(0), None, false));
    let refused = left.refuses(tokens(1)).unwrap();
    assert_eq!((refused.exceeded.code(), refused.held_by_others), ("quota.tokens", true));
    // A plan that allows more, or everything, does not forget what was used.
    let larger = Spender { tokens_per_month: Some(2_000), ..Spender::default() };
    assert_eq!(holds::left(&mut tx, first, &larger, now()).await.unwrap().tokens(), Some(1_000));
    assert!(holds::left(&mut tx, first, &Spender::default(), now()).await.unwrap().is_unlimited());
    let next_month = Timestamp::parse("2026-06-01T00:00:00Z").unwrap();
    assert_eq!(holds::left(&mut tx, first, &spender, next_month).await.unwrap().tokens(), Some(1_000));
}

#[tokio::test]
async fn a_refusal_says_whether_waiting_helps() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let (total, day) = (budget(&ada, "tenant", "*", "total", "1").await, budget(&ada, "tenant", "*", "day", "2").await);
    let none = Spender::default();
    let owner = SystemIds.uuid();
    assert!(hold(&ada, owner, &none, money("0.75"), now()).await);
    let refused = async |text| {
        let mut tx = ada.begin().await.unwrap();
        holds::left(&mut tx, SystemIds.uuid(), &none, now()).await.unwrap().refuses(money(text))
    };
    assert_eq!(refused("0.25").await, None);
    assert!(refused("0.5").await.unwrap().held_by_others);
    let never = refused("1.5").await.unwrap();
    assert!(!never.held_by_others && never.exceeded.to_string().contains(&total.to_string()), "{never:?}");
    settle(&ada, owner, money("0.75")).await;
    assert!(!refused("0.5").await.unwrap().held_by_others);
    // Another budget changes nothing about it.
    assert_eq!(shown(&ada, day, now()).await, triple("0.75", "0", "1.25"));
    let mut tx = ada.begin().await.unwrap();
    let book = PriceBook { currency: "EUR".into(), ..prices::current(&mut tx).await.unwrap() };
    let left = holds::left(&mut tx, owner, &none, now()).await.unwrap();
    assert_eq!(left.foreign(&book).unwrap().code(), "budget.currency");
}
