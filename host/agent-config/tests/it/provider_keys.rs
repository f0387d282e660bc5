use agent_config::provider_keys::{self, ProviderKeyError, ProviderKeySpec, ProviderKind};
use domain::{Clock, ExposeSecret, Problem, SystemClock, Timestamp, names::ProviderName};
use kit::TestDb;
use serde_json::json;
use tenancy::{Tenant, seal::MasterKey};

fn main() -> ProviderName {
    "main".parse().unwrap()
}

async fn put(tenant: &Tenant, key: &str, now: Timestamp) -> Result<bool, ProviderKeyError> {
    let spec = json!({"kind": "openai_compatible", "api_key": key, "base_url": "https://api.example/v1"});
    let spec: ProviderKeySpec = serde_json::from_value(spec).unwrap();
    let mut tx = tenant.begin().await.unwrap();
    let (_, new) = provider_keys::put(&mut tx, &kit::master_key(), &main(), spec, now).await?;
    tx.commit().await.unwrap();
    Ok(new)
}

#[tokio::test]
async fn a_key_opens_for_its_tenant_alone() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let now = SystemClock.now();
    assert!(put(&ada, "sk-canary", now).await.unwrap());

    let mut tx = bob.begin().await.unwrap();
    assert!(provider_keys::open(&mut tx, &kit::master_key(), "main").await.unwrap().is_none());
    assert!(provider_keys::list(&mut tx).await.unwrap().data.is_empty());
    assert_eq!(provider_keys::delete(&mut tx, &main()).await.unwrap_err().code(), "provider_key.not_found");
    drop(tx);

    let mut tx = ada.begin().await.unwrap();
    assert!(provider_keys::open(&mut tx, &MasterKey::new([1; 32]), "main").await.is_err(), "another master key");
    let opened = provider_keys::open(&mut tx, &kit::master_key(), "main").await.unwrap().unwrap();
    assert_eq!(opened.api_key.expose_secret(), "sk-canary");
    assert_eq!(
        (opened.kind, opened.base_url.as_deref()),
        (ProviderKind::OpenaiCompatible, Some("https://api.example/v1"))
    );
    assert!(!format!("{opened:?}").contains("canary"));
    let listed = provider_keys::list(&mut tx).await.unwrap().data;
    assert!(!serde_json::to_string(&listed).unwrap().contains("canary"));
    let row: String =
        sqlx::query_scalar("SELECT provider_key::text FROM provider_key").fetch_one(tx.conn()).await.unwrap();
    assert!(
        !row.contains("canary") && !row.contains(&"canary".bytes().map(|b| format!("{b:02x}")).collect::<String>())
    );
}

#[tokio::test]
async fn a_key_is_replaced_and_deleted() {
    let db = TestDb::start().await;
    let ada = db.tenant("ada").await;
    let now = SystemClock.now();
    assert!(put(&ada, "sk-1", now).await.unwrap());
    assert!(!put(&ada, "sk-2", now.plus(std::time::Duration::from_secs(1))).await.unwrap());
    let mut tx = ada.begin().await.unwrap();
    let listed = provider_keys::list(&mut tx).await.unwrap();
    assert_eq!((listed.data.len(), listed.data[0].created_at), (1, now));
    assert!(listed.data[0].updated_at > now);
    let opened = provider_keys::open(&mut tx, &kit::master_key(), "main").await.unwrap().unwrap();
    assert_eq!(opened.api_key.expose_secret(), "sk-2");
    provider_keys::delete(&mut tx, &main()).await.unwrap();
    assert!(provider_keys::open(&mut tx, &kit::master_key(), "main").await.unwrap().is_none());
}
