//! What nobody needs any more: holds of the dead, windows that are over, thresholds of an amount that has changed.

use sqlx::PgConnection;
use tokio::task::JoinSet;

use super::*;

/// A run that goes on, of which nothing else is there.
async fn going_on(all: &mut PgConnection, tenant: &Tenant, run: Uuid) {
    // Its agent and its conversation are not looked for.
    sqlx::query("SET session_replication_role = replica").execute(&mut *all).await.unwrap();
    sqlx::query(
        "INSERT INTO belljar.run (tenant_id, run_id, agent_id, revision, conversation_id, status, currency, deadline,
                                  created_at)
         VALUES ($1, $2, $2, 1, $2, 'waiting_for_approval', 'USD', now(), now())",
    )
    .bind(tenant.id().uuid())
    .bind(run)
    .execute(all)
    .await
    .unwrap();
}

async fn owners(all: &mut PgConnection) -> Vec<Uuid> {
    sqlx::query_scalar("SELECT owner_id FROM belljar.hold ORDER BY 1").fetch_all(all).await.unwrap()
}

#[tokio::test]
async fn what_the_dead_hold_is_given_back_and_what_the_living_hold_is_theirs() {
    let db = start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let mut all = db.superuser().await;
    let none = Spender::default();
    let mut budgets = Vec::new();
    for tenant in [&ada, &bob] {
        budgets.push((tenant, budget(tenant, "tenant", "*", "total", "10").await));
    }
    // Since May, by the clock of the database.
    let [first, second, third, waits, owed, late] = [0; 6].map(|_| SystemIds.uuid());
    assert!(hold(&ada, first, &none, money("9.5"), now()).await);
    // By the way: the first one's counts no more, and its row stays.
    assert!(hold(&ada, second, &none, money("1"), lease()).await);
    assert!(hold(&bob, third, &none, money("4"), now()).await);
    assert!(hold(&ada, waits, &none, money("0.5"), now()).await);
    going_on(&mut all, &ada, waits).await;
    for (owner, until) in [(owed, "now() + interval '90 days'"), (late, "now() - interval '23 hours'")] {
        assert!(hold(&bob, owner, &none, money("0.25"), now()).await);
        let until = format!("UPDATE belljar.hold SET until = {until} WHERE owner_id = $1");
        sqlx::query(sqlx::AssertSqlSafe(until)).bind(owner).execute(&mut all).await.unwrap();
    }
    // So many at most.
    let mut tx = db.db.global().await.unwrap();
    let swept: i64 = sqlx::query_scalar("SELECT door_sweep_holds(1)").fetch_one(tx.conn()).await.unwrap();
    assert_eq!(swept, 1);
    tx.commit().await.unwrap();
    for _ in 0..2 {
        db.db.sweep_holds().await.unwrap();
        let mut left = vec![waits, owed, late];
        left.sort_unstable();
        assert_eq!(owners(&mut all).await, left);
        let windows: Vec<(Uuid, String)> =
            sqlx::query_as("SELECT budget_id, trim_scale(held)::text FROM belljar.budget_window ORDER BY 1")
                .fetch_all(&mut all)
                .await
                .unwrap();
        assert_eq!(windows, [(budgets[0].1.uuid(), "0.5".into()), (budgets[1].1.uuid(), "0.5".into())]);
    }
    // Who has something to settle still does.
    settle(&ada, waits, money("0.5")).await;
    assert_eq!(shown(&ada, budgets[0].1, now()).await, triple("0.5", "0", "9.5"));
}

/// Sweeps, and others who take what is expired at the same moment, give everything back once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_the_dead_hold_is_given_back_once() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let mut all = db.superuser().await;
    for window in ["total", "day"] {
        budget(&ada, "tenant", "*", window, "100").await;
    }
    for round in 0..5 {
        let at = now().plus(Duration::from_secs(60 * round));
        for _ in 0..10 {
            assert!(hold(&ada, SystemIds.uuid(), &Spender::default(), money("1"), at).await);
        }
        let mut tasks = JoinSet::new();
        for n in 0..12 {
            let (db, ada, late) = (db.db.clone(), ada.clone(), at.plus(Duration::from_secs(30)));
            tasks.spawn(async move {
                if n % 3 == 0 {
                    return db.sweep_holds().await.unwrap();
                }
                let owner = SystemIds.uuid();
                assert!(hold(&ada, owner, &Spender::default(), money("2"), late).await);
                if n % 3 == 1 {
                    settle(&ada, owner, money("0.5")).await;
                }
            });
        }
        tasks.join_all().await;
        let wrong: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM belljar.budget_window w WHERE held <> coalesce((
                 SELECT sum(h.amount) FROM belljar.hold h WHERE h.budget_id = w.budget_id AND h.starts_at = w.starts_at), 0)",
        )
        .fetch_one(&mut all)
        .await
        .unwrap();
        assert_eq!(wrong, 0, "round {round}");
    }
    db.db.sweep_holds().await.unwrap();
    assert!(owners(&mut all).await.is_empty());
    let held: i64 = sqlx::query_scalar("SELECT count(*) FROM belljar.budget_window WHERE held <> 0")
        .fetch_one(&mut all)
        .await
        .unwrap();
    assert_eq!(held, 0);
}

#[tokio::test]
async fn a_day_that_is_over_is_forgotten_whose_ever_it_was() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let mut all = db.superuser().await;
    budget(&ada, "external_user", "*", "day", "1").await;
    budget(&ada, "run", "*", "total", "1").await;
    let at = |text| Timestamp::parse(text).unwrap();
    let spend = async |user, at| {
        let owner = SystemIds.uuid();
        let spender = Spender { external_user: Some(user), run: Some(owner.into()), ..Spender::default() };
        assert!(hold(&ada, owner, &spender, money("0.5"), at).await);
        settle(&ada, owner, money("0.5")).await;
    };
    let yesterday = at("2026-05-01T23:00:00Z");
    spend("u1", yesterday).await;
    spend("u2", yesterday).await;
    let dead = SystemIds.uuid();
    let u3 = Spender { external_user: Some("u3"), ..Spender::default() };
    assert!(hold(&ada, dead, &u3, money("0.5"), yesterday).await);
    // A host whose clock is late may still ask.
    spend("u4", at("2026-05-02T00:59:00Z")).await;
    let mut days = async || -> Vec<String> {
        let days = "SELECT subject FROM belljar.budget_window WHERE subject LIKE 'u%' ORDER BY 1";
        sqlx::query_scalar(days).fetch_all(&mut all).await.unwrap()
    };
    assert_eq!(days().await, ["u1", "u2", "u3", "u4"]);
    spend("u5", at("2026-05-02T01:00:00Z")).await;
    assert_eq!(days().await, ["u3", "u4", "u5"], "something is held of the third's");
    settle(&ada, dead, money("0.5")).await;
    spend("u6", at("2026-05-02T01:00:00Z")).await;
    assert_eq!(days().await, ["u4", "u5", "u6"]);
    let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM belljar.budget_window WHERE subject LIKE 'run%'")
        .fetch_one(&mut all)
        .await
        .unwrap();
    assert_eq!(runs, 5, "a run's total is told as long as there is the run");
}

#[tokio::test]
async fn a_threshold_of_another_amount_is_told_again() {
    let db = start().await;
    let ada = db.tenant("ada").await;
    let spec = json!({"scope": "tenant", "window": "total", "amount": "10", "alert_at": [0.5, 0.8]});
    let id = create(&ada, spec).await.unwrap().id;
    let spend = async |text: &str| -> Vec<String> {
        let owner = SystemIds.uuid();
        assert!(hold(&ada, owner, &Spender::default(), money(text), now()).await);
        let crossed = settle(&ada, owner, money(text)).await;
        crossed.iter().map(|crossed| json!(crossed)["alert_at"].as_str().unwrap().to_owned()).collect()
    };
    let change = async |patch: Value| {
        let mut tx = ada.begin().await.unwrap();
        let patch: BudgetPatch = serde_json::from_value(patch).unwrap();
        budgets::update(&mut tx, id, patch, "USD", now()).await.unwrap();
        tx.commit().await.unwrap();
    };
    assert_eq!(spend("8").await, ["0.8"]);
    // Of twenty it is less than a half.
    change(json!({"amount": "20"})).await;
    assert_eq!(spend("1").await, [""; 0]);
    assert_eq!(spend("1").await, ["0.5"]);
    // A threshold that the change itself passes was said by whoever made it.
    change(json!({"amount": "12"})).await;
    assert_eq!(spend("1").await, [""; 0]);
    // Other thresholds of the same amount.
    change(json!({"alert_at": ["0.75", "1"]})).await;
    assert_eq!(spend("1").await, ["1"]);
    change(json!({"amount": "24"})).await;
    assert_eq!(spend("6").await, ["0.75"]);
}
