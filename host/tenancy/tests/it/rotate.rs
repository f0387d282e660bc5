//! Rotation of the key-encryption key, while the platform works.

use domain::{Clock, Problem, SystemClock};
use kit::TestDb;
use sqlx::Executor;
use tenancy::{
    Tenant,
    rotate::{Rotated, rotate},
    seal::{self, Kek, MasterKey, SealError, Sealed},
};
use tokio::sync::Notify;

fn kek(byte: u8) -> Kek {
    Kek::new([byte; 32])
}

fn keyring(current: Option<u8>, previous: &[u8]) -> MasterKey {
    kit::master_key().with_keks(current.map(kek), previous.iter().copied().map(kek).collect())
}

async fn seal(tenant: &Tenant, master: &MasterKey) -> Sealed {
    let mut tx = tenant.begin().await.unwrap();
    let sealed = seal::seal(&mut tx, master, "x", b"canary", SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
    sealed
}

async fn open(tenant: &Tenant, master: &MasterKey, sealed: &Sealed) -> Result<(), SealError> {
    let mut tx = tenant.begin().await.unwrap();
    seal::open(&mut tx, master, "x", sealed).await.map(|plain| assert_eq!(&plain[..], b"canary"))
}

#[tokio::test]
async fn a_key_that_is_not_here_is_named_by_its_id() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let sealed = seal(&ada, &keyring(Some(1), &[])).await;
    for without in [keyring(None, &[]), keyring(Some(2), &[3])] {
        let error = open(&ada, &without, &sealed).await.unwrap_err();
        assert!(matches!(&error, SealError::UnknownKek(id) if *id == kek(1).id()), "{error}");
        assert!(error.to_string().contains("previous_key_encryption_keys"), "{error}");
        assert_eq!(error.code(), "internal");
        let mut tx = ada.begin().await.unwrap();
        assert!(seal::seal(&mut tx, &without, "y", b"more", SystemClock.now()).await.is_err());
        drop(tx);
        assert!(matches!(rotate(&db.db, &without, |_| ()).await, Err(SealError::UnknownKek(_))));
    }
    open(&ada, &keyring(Some(2), &[1]), &sealed).await.unwrap();
    let other = MasterKey::new([9; 32]).with_keks(Some(kek(1)), Vec::new());
    open(&ada, &other, &sealed).await.unwrap();
}

#[tokio::test]
async fn after_a_rotation_only_the_new_key_opens() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    db.tenant("has no secret").await;
    // One under the derived key, one under a key that was given.
    let derived = seal(&ada, &keyring(None, &[])).await;
    let given = seal(&bob, &keyring(Some(1), &[])).await;

    let both = keyring(Some(2), &[1]);
    assert_eq!(rotate(&db.db, &both, |_| ()).await.unwrap(), Rotated { rewrapped: 2, already: 0 });
    assert_eq!(rotate(&db.db, &both, |_| ()).await.unwrap(), Rotated { rewrapped: 0, already: 2 });
    for (tenant, sealed) in [(&ada, &derived), (&bob, &given)] {
        assert!(open(tenant, &keyring(None, &[]), sealed).await.is_err());
        assert!(open(tenant, &keyring(Some(1), &[]), sealed).await.is_err());
        open(tenant, &keyring(Some(2), &[]), sealed).await.unwrap();
        let more = seal(tenant, &keyring(Some(2), &[])).await;
        open(tenant, &keyring(Some(2), &[]), &more).await.unwrap();
    }

    // And back to the derived one.
    assert_eq!(rotate(&db.db, &keyring(None, &[2]), |_| ()).await.unwrap().rewrapped, 2);
    open(&ada, &kit::master_key(), &derived).await.unwrap();
    open(&bob, &kit::master_key(), &given).await.unwrap();
}

#[tokio::test]
async fn a_rotation_that_was_stopped_goes_on() {
    let db = TestDb::start().await;
    let mut tenants = Vec::new();
    for name in ["ada", "bob", "eve", "sue"] {
        let tenant = db.tenant(name).await;
        let sealed = seal(&tenant, &keyring(Some(1), &[])).await;
        tenants.push((tenant, sealed));
    }
    let both = keyring(Some(2), &[1]);
    // Newest first: it has done two, and waits for the next one's row.
    let mut held = tenants[1].0.begin().await.unwrap();
    sqlx::query("SELECT FROM data_key FOR UPDATE").execute(held.conn()).await.unwrap();
    let second = Notify::new();
    tokio::select! {
        () = second.notified() => {}
        _ = rotate(&db.db, &both, |sums| if sums.rewrapped == 2 { second.notify_one() }) => panic!("not stopped"),
    }
    drop(held);
    for (tenant, sealed) in &tenants {
        open(tenant, &both, sealed).await.unwrap();
    }
    let rest = rotate(&db.db, &both, |_| ()).await.unwrap();
    assert_eq!((rest.already, rest.rewrapped), (2, 2));
    for (tenant, sealed) in &tenants {
        open(tenant, &keyring(Some(2), &[]), sealed).await.unwrap();
    }
}

#[tokio::test]
async fn secrets_are_sealed_and_opened_while_two_rotate() {
    let db = TestDb::start().await;
    let mut tenants = Vec::new();
    for number in 0..12 {
        tenants.push(db.tenant(&format!("t{number}")).await);
    }
    let (before, after) = (keyring(Some(1), &[2]), keyring(Some(2), &[1]));
    for tenant in tenants.iter().step_by(2) {
        seal(tenant, &before).await;
    }
    // Processes that were not started again yet, and one that was.
    let work = async {
        let mut sealed = Vec::new();
        for (round, tenant) in tenants.iter().cycle().take(72).enumerate() {
            let value = seal(tenant, if round % 3 == 0 { &after } else { &before }).await;
            open(tenant, &before, &value).await.unwrap();
            open(tenant, &after, &value).await.unwrap();
            sealed.push((tenant, value));
        }
        sealed
    };
    let (sealed, one, two) = tokio::join!(work, rotate(&db.db, &after, |_| ()), rotate(&db.db, &after, |_| ()));
    assert!(one.unwrap().rewrapped + two.unwrap().rewrapped >= 6);
    rotate(&db.db, &after, |_| ()).await.unwrap();
    for (tenant, value) in sealed {
        open(tenant, &keyring(Some(2), &[]), &value).await.unwrap();
        assert!(open(tenant, &keyring(Some(1), &[]), &value).await.is_err());
    }
}

#[tokio::test]
async fn a_data_key_changes_in_nothing_but_its_seal() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    seal(&ada, &kit::master_key()).await;
    for statement in
        ["UPDATE data_key SET version = 2", "UPDATE data_key SET created_at = now()", "DELETE FROM data_key"]
    {
        let mut tx = ada.begin().await.unwrap();
        let refused = tx.conn().execute(statement).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{refused}");
    }
}
