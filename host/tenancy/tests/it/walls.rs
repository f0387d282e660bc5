//! What a stranger's transaction can and cannot do.

use domain::{Clock, SecretString, SystemClock, SystemIds, TenantId};
use kit::TestDb;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tenancy::{
    ConnectError, Db, DbSettings, Tenant, seal,
    tenants::{self, NewTenant},
};

async fn count(tx: &mut tenancy::TenantTx, table: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(tx.conn()).await.unwrap()
}

/// Agents, as whoever has the connection sees them.
async fn count_all(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM agent").fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn a_stranger_sees_no_row_even_without_a_where() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    db.agent(&ada).await;
    let mut tx = bob.begin().await.unwrap();
    assert_eq!(count(&mut tx, "agent").await, 0);
    assert_eq!(count(&mut tx, "tenant").await, 1, "itself");
    drop(tx);
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(count(&mut tx, "agent").await, 1);
}

#[tokio::test]
async fn no_tenant_no_rows() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    db.agent(&ada).await;
    assert_eq!(count_all(db.db.global().await.unwrap().conn()).await, 0);
}

#[tokio::test]
async fn the_tenant_ends_with_its_transaction() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    db.agent(&ada).await;
    for _ in 0..20 {
        ada.begin().await.unwrap().commit().await.unwrap();
        let seen = count_all(db.db.global().await.unwrap().conn()).await;
        assert_eq!(seen, 0, "the same pooled connection, without a tenant");
    }
}

/// A database that is reached over one connection, so that everybody gets the same.
async fn one_connection(test: &TestDb) -> (Db, Tenant) {
    let db = Db::connect(&DbSettings { url: SecretString::from(test.url()), connections: 1 }).await.unwrap();
    let new = NewTenant { name: "ada".into(), plan: None, overrides: Default::default() };
    let ada = tenants::create(&db, new, &SystemIds, SystemClock.now()).await.unwrap().0;
    (db, ada)
}

#[tokio::test]
async fn a_transaction_that_nobody_waits_for_leaves_no_tenant_behind() {
    let test = TestDb::start().await;
    let (db, ada) = one_connection(&test).await;
    test.agent(&ada).await;
    let mut whole = 0;
    // Dropped after so many polls: before a statement is sent, while its answer is on the way, and when it is there; of
    // the begin, of a read, and of the commit.
    for polls in (0..).map(|number| number * number / 4) {
        let work = async {
            let mut tx = ada.begin().await.unwrap();
            assert_eq!(count(&mut tx, "agent").await, 1);
            tx.commit().await.unwrap();
        };
        let later = async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { biased; () = work => whole += 1, () = later => {} }
        let mut tx = db.global().await.unwrap();
        assert_eq!(count_all(tx.conn()).await, 0, "dropped after {polls} polls: still in the tenant's transaction");
        if whole == 5 {
            break;
        }
    }
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_nobodys_any_more() {
    let test = TestDb::start().await;
    let (_, ada) = one_connection(&test).await;
    test.agent(&ada).await;
    for _ in 0..3 {
        let mut tx = ada.begin().await.unwrap();
        sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(tx.conn()).await.unwrap_err();
        drop(tx);
        let mut tx = ada.begin().await.unwrap();
        assert_eq!(count(&mut tx, "agent").await, 1);
    }
}

#[tokio::test]
async fn a_row_cannot_be_written_into_another_tenant() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let mut tx = bob.begin().await.unwrap();
    let refused = sqlx::query("INSERT INTO tool (tenant_id, tool_id, name, created_at) VALUES ($1, $2, 'x', now())")
        .bind(ada.id().uuid())
        .bind(bob.id().uuid())
        .execute(tx.conn())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("row-level security"), "{refused}");
}

#[tokio::test]
async fn erasing_a_tenant_leaves_its_neighbour() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    db.agent(&ada).await;
    db.agent(&bob).await;
    let mut tx = ada.begin().await.unwrap();
    tenants::delete(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = bob.begin().await.unwrap();
    assert_eq!(count(&mut tx, "agent").await, 1);
    let mut all = db.superuser().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM belljar.agent").fetch_one(&mut all).await.unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn an_unsafe_role_is_refused() {
    let db = TestDb::start().await;
    let settings = DbSettings { url: SecretString::from(db.owner_url()), connections: 1 };
    assert!(matches!(Db::connect(&settings).await, Err(ConnectError::UnsafeRole(role)) if role == "belljar_owner"));
}

#[tokio::test]
async fn a_database_without_our_schema_is_refused() {
    let db = TestDb::start().await;
    let mut superuser = db.superuser().await;
    superuser.execute("UPDATE belljar._sqlx_migrations SET success = false WHERE version > 3").await.unwrap();
    let settings = DbSettings { url: SecretString::from(db.url()), connections: 1 };
    assert!(matches!(Db::connect(&settings).await, Err(ConnectError::SchemaBehind { found: 3, .. })));
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let db = TestDb::start().await;
    let again = tenancy::migrate(&db.owner_url()).await.unwrap();
    assert_eq!(again.from, again.to);
    assert_eq!(tenancy::pending(&db.owner_url()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_seal_does_not_open_for_another_tenant() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let master = kit::master_key();
    let mut tx = ada.begin().await.unwrap();
    let sealed = seal::seal(&mut tx, &master, "x", b"canary", SystemClock.now()).await.unwrap();
    assert_eq!(&seal::open(&mut tx, &master, "x", &sealed).await.unwrap()[..], b"canary");
    assert!(seal::open(&mut tx, &master, "y", &sealed).await.is_err(), "another name");
    tx.commit().await.unwrap();
    let mut tx = bob.begin().await.unwrap();
    seal::seal(&mut tx, &master, "x", b"bob's own", SystemClock.now()).await.unwrap();
    assert!(seal::open(&mut tx, &master, "x", &sealed).await.is_err(), "the row moved to another tenant");
}

#[tokio::test]
async fn only_the_operator_finds_a_tenant_by_its_id() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    assert_eq!(db.db.operator(ada.id()).await.unwrap().unwrap().id(), ada.id());
    assert!(db.db.operator(TenantId::new(&SystemIds)).await.unwrap().is_none());
    assert_eq!(db.db.tenants(Default::default()).await.unwrap().len(), 1);
}
