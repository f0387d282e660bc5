//! API keys at the door.

use domain::{Clock, ExposeSecret, Problem, SystemClock, SystemIds, page::PageRequest};
use kit::TestDb;
use tenancy::{
    keys::{self, KeyHasher, KeyKind, NewKey, Scope},
    tenants,
};

fn new_key(name: &str) -> NewKey {
    NewKey { name: name.into(), scopes: vec![Scope::Chat], agents: None, external_user_id: None, expires_at: None }
}

#[tokio::test]
async fn a_key_opens_its_own_tenant_and_no_text_of_it_is_stored() {
    let db = TestDb::start().await;
    let hasher = KeyHasher::new(&kit::master_key());
    let ada = db.tenant("ada").await;
    let mut tx = ada.begin().await.unwrap();
    let now = SystemClock.now();
    let (key, text) = keys::mint(&mut tx, &hasher, KeyKind::Live, new_key("backend"), &SystemIds, now).await.unwrap();
    tx.commit().await.unwrap();

    let other = KeyHasher::new(&tenancy::seal::MasterKey::new([9; 32]));
    assert!(db.db.resolve_api_key(&other, text.expose_secret()).await.unwrap().is_none(), "another pepper");
    assert!(db.db.resolve_api_key(&hasher, "bj_live_nonsense").await.unwrap().is_none());
    let holder = db.db.resolve_api_key(&hasher, text.expose_secret()).await.unwrap().unwrap();
    assert_eq!((holder.tenant.id(), holder.key_id, holder.scopes), (ada.id(), key.id, vec![Scope::Chat]));

    let mut tx = ada.begin().await.unwrap();
    keys::revoke(&mut tx, key.id, now).await.unwrap();
    tx.commit().await.unwrap();
    let holder = db.db.resolve_api_key(&hasher, text.expose_secret()).await.unwrap().unwrap();
    assert_eq!(holder.revoked_at, Some(now));

    let mut all = db.superuser().await;
    let stored: String =
        sqlx::query_scalar("SELECT string_agg(k::text, '') FROM belljar.api_key k").fetch_one(&mut all).await.unwrap();
    assert!(!stored.contains(&text.expose_secret()[12..]), "only the hint and the hash");
}

#[tokio::test]
async fn a_stranger_can_neither_list_nor_revoke_a_key() {
    let db = TestDb::start().await;
    let hasher = KeyHasher::new(&kit::master_key());
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let now = SystemClock.now();
    let mut tx = ada.begin().await.unwrap();
    let (key, _) = keys::mint(&mut tx, &hasher, KeyKind::Live, new_key("backend"), &SystemIds, now).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = bob.begin().await.unwrap();
    assert!(matches!(keys::revoke(&mut tx, key.id, now).await, Err(keys::KeyError::NotFound)));
    assert_eq!(keys::list(&mut tx, PageRequest::default()).await.unwrap().data, []);
}

#[tokio::test]
async fn what_a_key_and_a_tenant_list_is_bounded() {
    let db = TestDb::start().await;
    let hasher = KeyHasher::new(&kit::master_key());
    let ada = db.tenant("ada").await;
    let mut tx = ada.begin().await.unwrap();
    let now = SystemClock.now();
    let twice = NewKey { scopes: vec![Scope::Chat, Scope::RunsRead, Scope::Chat], ..new_key("twice") };
    let (key, _) = keys::mint(&mut tx, &hasher, KeyKind::Live, twice, &SystemIds, now).await.unwrap();
    assert_eq!(key.scopes, [Scope::Chat, Scope::RunsRead]);
    for (agents, fits) in [(100, true), (101, false)] {
        let agents = Some((0..agents).map(|_| domain::AgentId::new(&SystemIds)).collect());
        let new = NewKey { agents, ..new_key("bound") };
        let minted = keys::mint(&mut tx, &hasher, KeyKind::Live, new, &SystemIds, now).await;
        assert_eq!(minted.err().map(|error| error.code()), (!fits).then_some("api_key.too_many_agents"));
    }
    for (bytes, fits) in [(200, true), (201, false)] {
        let settings = tenants::Settings { default_model: Some("m".repeat(bytes)), ..Default::default() };
        let change = tenants::TenantChange { settings: Some(settings), ..Default::default() };
        let changed = tenants::update(&mut tx, change).await;
        assert_eq!(changed.err().map(|error| error.code()), (!fits).then_some("tenant.bad_default_model"));
    }
}
