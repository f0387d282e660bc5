//! Invariant 4, in the database: one tenant's transactions leave connections to the others.

use std::time::Duration;

use kit::TestDb;
use tenancy::{Tenant, TenantTx};

/// Of the eight connections that the tests have.
const MOST: usize = 4;

async fn open(tenant: &Tenant, transactions: usize) -> Vec<TenantTx> {
    let mut open = Vec::new();
    for _ in 0..transactions {
        open.push(tenant.begin().await.unwrap());
    }
    open
}

#[tokio::test]
async fn a_tenant_opens_four_transactions_and_its_next_one_waits() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let mut held = open(&ada, MOST).await;
    let mut next = Box::pin(ada.begin());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut next).await.is_err(), "it waits behind its own");
    drop(open(&bob, MOST).await);
    held.pop().unwrap().commit().await.unwrap();
    drop(next.await.unwrap());

    // Who gave up waiting holds nothing.
    drop(held);
    let held = open(&ada, MOST).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), ada.begin()).await.is_err());
    drop(held);
    drop(open(&ada, MOST).await);
}
