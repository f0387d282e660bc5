//! What a call outside of a run is held for and billed, and what is forgotten with a conversation.

use std::sync::Arc;

use agent_runtime::ToolCallRow;
use billing_meter::{budgets, prices};
use domain::{Amount, Clock, SystemClock};
use kit::FakeExecutor;
use serde_json::json;
use tenancy::Tenant;

use crate::{
    budgets::{budget, shown},
    entries::Held,
    house::{House, direct},
};

/// A book by which everything that a tool uses costs a million times as much.
async fn raise_the_prices(house: &House) {
    let mut prices = json!(prices::Prices::default_book().unwrap());
    prices["tool"] = json!({"fuel_per_billion": "999999", "memory_gib_second": "999999"});
    let mut tx = house.db.db.global().await.unwrap();
    prices::publish(&mut tx, serde_json::from_value(prices).unwrap(), SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
}

fn price(call: &ToolCallRow) -> (Amount, u64) {
    let receipt = &json!(call)["receipt"];
    let amount = serde_json::from_value(receipt["price"]["amount"].clone()).unwrap();
    (amount, receipt["price_book"].as_u64().unwrap())
}

/// However late it ends: it is billed by the prices that it was held for.
#[tokio::test]
async fn a_price_that_is_raised_during_a_call_is_the_next_calls() {
    let held = Held { fake: FakeExecutor::echo(), began: Arc::default(), go: Arc::default() };
    let house = House::new(held.clone()).await;
    let ada = house.tenant("ada").await;
    let id = budget(&ada, "tenant", "0.00001").await;
    let meanwhile = async {
        held.began.notified().await;
        raise_the_prices(&house).await;
        held.go.notify_one();
    };
    let (call, ()) = tokio::join!(house.runtime.call_tool(&ada, direct(json!({}))), meanwhile);
    let (paid, book) = price(&call.unwrap());
    assert_eq!(book, 1);
    assert_eq!(house.owed(&ada).await, paid);
    let left = shown(&ada, id).await;
    assert_eq!((left.spent.amount, left.held.amount), (paid, Amount::ZERO));
    assert!(paid > Amount::ZERO && paid < left.amount.amount, "{left:?}");
    let refused = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap_err();
    assert!(refused.to_string().contains(&id.to_string()), "{refused}");
}

async fn spent_by(tenant: &Tenant, id: domain::BudgetId, subject: &str) -> Amount {
    let mut tx = tenant.begin().await.unwrap();
    budgets::get(&mut tx, id, Some(subject), SystemClock.now()).await.unwrap().spent.amount
}

#[tokio::test]
async fn an_erased_conversation_is_no_budgets_subject_any_more() {
    let house = House::new(FakeExecutor::echo()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    let budgets = [budget(&ada, "conversation", "1").await, budget(&ada, "run", "1").await];
    let (gone, kept) = (house.chat(&ada, "hello").await.run, house.chat(&ada, "hello").await.run);
    let subjects = |run: &agent_runtime::Run| [run.conversation_id.to_string(), run.id.to_string()];
    budget(&bob, "conversation", "1").await;
    house.chat(&bob, "hello").await;
    house.runtime.delete_conversation(&ada, gone.conversation_id).await.unwrap();
    for (id, (gone, kept)) in budgets.into_iter().zip(subjects(&gone).into_iter().zip(subjects(&kept))) {
        assert_eq!(spent_by(&ada, id, &gone).await, Amount::ZERO);
        assert!(spent_by(&ada, id, &kept).await > Amount::ZERO, "what can be asked for is told");
    }
    let mut all = house.db.superuser().await;
    let windows: i64 = sqlx::query_scalar("SELECT count(*) FROM belljar.budget_window WHERE budget_id <> $1")
        .bind(uuid::Uuid::nil())
        .fetch_one(&mut all)
        .await
        .unwrap();
    assert_eq!(windows, 3, "two of ada's and one of bob's");
}
