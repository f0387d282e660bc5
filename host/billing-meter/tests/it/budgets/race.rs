//! Many spend of the same budgets at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rust_decimal::Decimal;
use tokio::task::JoinSet;

use super::*;

/// 64 tasks spend of three budgets at once, as fast as they can; some fall silent, some hold twice, some spend less.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_budget_is_never_overshot_by_a_cent() {
    const TASKS: u64 = 64;
    let db = start().await;
    let ada = db.tenant("ada").await;
    // The tenant's allows ten in all, each user's four, and the plan's tokens twelve.
    let total = budget(&ada, "tenant", "*", "total", "1").await;
    let each = budget(&ada, "external_user", "*", "month", "0.4").await;
    // Some have gone silent, and hold all there is.
    for user in ["u0", "u1", "u2", "u3", "u4"] {
        let spender = Spender { external_user: Some(user), tokens_per_month: Some(1_200), ..Spender::default() };
        let silent = Spend { money: amount("0.2"), tokens: 240 };
        assert!(
            hold(&ada, SystemIds.uuid(), &spender, silent, Timestamp::parse("2026-05-01T11:59:00Z").unwrap()).await
        );
    }
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (ada, done) = (ada.clone(), done.clone());
        tasks.spawn(async move {
            let user = format!("u{}", task % 5);
            let spender = Spender { external_user: Some(&user), tokens_per_month: Some(1_200), ..Spender::default() };
            let spend = |text: &str| Spend { money: amount(text), tokens: 100 };
            for round in 0..3 {
                let owner = SystemIds.uuid();
                if !hold(&ada, owner, &spender, spend("0.1"), now()).await {
                    continue;
                }
                if (task + round) % 7 == 0 {
                    // More in the middle of a step; when it is refused, the hold stays.
                    hold(&ada, owner, &spender, spend("0.15"), now()).await;
                }
                match (task + round) % 3 {
                    0 => {
                        let mut tx = ada.begin().await.unwrap();
                        holds::release(&mut tx, owner).await.unwrap();
                        tx.commit().await.unwrap();
                    }
                    _ => {
                        settle(&ada, owner, spend("0.1")).await;
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    let done = done.load(Ordering::SeqCst);
    let spent = Amount::rounded(Decimal::new(done as i64, 1));
    assert!((4..=10).contains(&done), "{done} were paid");
    let remaining = Amount::rounded(Decimal::ONE - spent.decimal());
    assert_eq!(shown(&ada, total, now()).await, triple(&spent.to_string(), "0", &remaining.to_string()));
    let mut tx = ada.begin().await.unwrap();
    let most = budgets::get(&mut tx, each, None, now()).await.unwrap();
    assert!(most.spent.amount <= amount("0.4") && most.held.amount == Amount::ZERO, "{most:?}");
    let plan = Spender { tokens_per_month: Some(1_200), ..Spender::default() };
    let left = holds::left(&mut tx, SystemIds.uuid(), &plan, now()).await.unwrap();
    assert_eq!(left.tokens(), Some(1_200 - 100 * done));
    let held = "SELECT count(*) FROM hold WHERE amount > 0 AND until > '2026-05-01T12:00:00Z'";
    let holds: i64 = sqlx::query_scalar(held).fetch_one(tx.conn()).await.unwrap();
    assert_eq!(holds, 0, "holds return to zero");
}
