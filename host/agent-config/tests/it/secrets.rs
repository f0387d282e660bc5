use std::collections::BTreeSet;

use agent_config::{
    page::TextPageRequest,
    secrets::{self, NamingRight, SecretError, SecretSpec, VALUE_BYTES_MAX},
};
use domain::{ExposeSecret, Grants, Kind, Problem, SecretName};
use serde_json::{Value, json};
use tenancy::{
    Tenant,
    rotate::rotate,
    seal::{Kek, MasterKey},
};

use crate::house::{House, agent};

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

async fn put(house: &House, tenant: &Tenant, secret: &str, spec: Value) -> Result<bool, SecretError> {
    let spec: SecretSpec = serde_json::from_value(spec).unwrap();
    let mut tx = tenant.begin().await.unwrap();
    let (_, new) = secrets::put(&mut tx, &kit::master_key(), &name(secret), spec, house.now()).await?;
    tx.commit().await.unwrap();
    Ok(new)
}

async fn open(tenant: &Tenant, master: &MasterKey, names: &[&str]) -> Result<Vec<(String, bool)>, SecretError> {
    let names: Vec<SecretName> = names.iter().map(|text| name(text)).collect();
    let mut tx = tenant.begin().await.unwrap();
    let opened = secrets::open(&mut tx, master, &names.iter().collect::<BTreeSet<_>>()).await?;
    assert!(!format!("{opened:?}").contains("canary"));
    Ok(opened.into_values().map(|secret| (secret.value.expose_secret().to_owned(), secret.readable)).collect())
}

#[tokio::test]
async fn a_secret_opens_for_its_tenant_alone() {
    let house = House::build().await;
    let (ada, bob) = (house.db.tenant("ada").await, house.db.tenant("bob").await);
    assert!(put(&house, &ada, "token", json!({"value": "canary"})).await.unwrap());
    put(&house, &bob, "own", json!({"value": "bob's"})).await.unwrap();

    let error = open(&bob, &kit::master_key(), &["token", "own", "none"]).await.unwrap_err();
    assert!(matches!(&error, SecretError::Missing(names) if *names == [name("none"), name("token")]), "{error}");
    assert_eq!((error.code(), error.kind()), ("secret.not_found", Kind::Invalid));
    let mut tx = bob.begin().await.unwrap();
    assert_eq!(secrets::delete(&mut tx, &name("token")).await.unwrap_err().code(), "secret.not_found");
    let listed = secrets::list(&mut tx, TextPageRequest::default()).await.unwrap().data;
    assert_eq!(listed.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["own"]);
    // The row under another name, or in another tenant's place.
    sqlx::query("UPDATE secret SET name = 'moved'").execute(tx.conn()).await.unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(open(&bob, &kit::master_key(), &["moved"]).await, Err(SecretError::Seal(_))));
    assert!(open(&ada, &MasterKey::new([1; 32]), &["token"]).await.is_err(), "another master key");

    assert_eq!(open(&ada, &kit::master_key(), &["token"]).await.unwrap(), [("canary".into(), false)]);
    assert_eq!(open(&ada, &kit::master_key(), &[]).await.unwrap(), []);
    let mut tx = ada.begin().await.unwrap();
    let row: String = sqlx::query_scalar("SELECT secret::text FROM secret").fetch_one(tx.conn()).await.unwrap();
    assert!(!row.contains("canary") && !row.contains("63616e617279"), "neither as text nor as hex");
    let listed = secrets::list(&mut tx, TextPageRequest::default()).await.unwrap().data;
    let shown = serde_json::to_value(&listed).unwrap();
    assert_eq!(
        shown[0].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["created_at", "hosts", "name", "readable", "updated_at"]
    );
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_is_not_kept() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let hosts: Vec<String> = (0..33).map(|number| format!("h{number}.example")).collect();
    for (spec, code) in [
        (json!({"value": ""}), "secret.bad_value"),
        (json!({"value": "x".repeat(VALUE_BYTES_MAX + 1)}), "secret.bad_value"),
        (json!({"value": "x", "hosts": hosts}), "secret.too_many_hosts"),
    ] {
        assert_eq!(put(&house, &ada, "token", spec).await.unwrap_err().code(), code);
    }
    for spec in [json!({"value": "x", "hosts": ["https://a.example"]}), json!({}), json!({"value": "x", "host": "a"})] {
        assert!(serde_json::from_value::<SecretSpec>(spec).is_err());
    }
    let largest = "x".repeat(VALUE_BYTES_MAX);
    put(&house, &ada, "token", json!({"value": largest})).await.unwrap();
    assert_eq!(open(&ada, &kit::master_key(), &["token"]).await.unwrap()[0].0, largest);

    let mut tx = ada.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO secret SELECT tenant_id, 'n' || n, sealed, data_key_version, hosts, readable, created_at, updated_at
         FROM secret, generate_series(1, 999) n",
    )
    .execute(tx.conn())
    .await
    .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(put(&house, &ada, "more", json!({"value": "x"})).await.unwrap_err().code(), "secret.too_many");
    assert!(!put(&house, &ada, "token", json!({"value": "x"})).await.unwrap(), "a new value needs no room");
}

#[tokio::test]
async fn a_secret_is_replaced_listed_and_deleted() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let before = house.now();
    for secret in ["c", "a", "b"] {
        assert!(put(&house, &ada, secret, json!({"value": "canary 1"})).await.unwrap());
    }
    house.wait(1);
    let again = json!({"value": "canary 2", "hosts": ["*.Example.com", "a.example:8443"], "readable": true});
    assert!(!put(&house, &ada, "b", again).await.unwrap());
    let both = open(&ada, &kit::master_key(), &["b", "a"]).await.unwrap();
    assert_eq!(both, [("canary 1".into(), false), ("canary 2".into(), true)]);

    let mut tx = ada.begin().await.unwrap();
    let page = secrets::list(&mut tx, TextPageRequest { limit: 2, after: None }).await.unwrap();
    assert_eq!((page.data[0].name.as_str(), page.next.as_deref()), ("a", Some("b")));
    let b = &page.data[1];
    assert_eq!((b.created_at, b.updated_at, b.readable), (before, house.now(), true));
    assert_eq!(serde_json::to_value(&b.hosts).unwrap(), json!(["*.example.com", "a.example:8443"]));
    let page = secrets::list(&mut tx, TextPageRequest { limit: 2, after: page.next }).await.unwrap();
    assert_eq!((page.data[0].name.as_str(), page.data.len(), page.next), ("c", 1, None));

    secrets::delete(&mut tx, &name("b")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(open(&ada, &kit::master_key(), &["a", "b"]).await.unwrap_err().code(), "secret.not_found");
}

#[tokio::test]
async fn secrets_open_after_their_key_was_rotated() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    put(&house, &ada, "token", json!({"value": "canary"})).await.unwrap();
    let new = || kit::master_key().with_keks(Some(Kek::new([1; 32])), Vec::new());
    rotate(&house.db.db, &new(), |_| ()).await.unwrap();
    assert!(matches!(open(&ada, &kit::master_key(), &["token"]).await, Err(SecretError::Seal(_))));
    assert_eq!(open(&ada, &new(), &["token"]).await.unwrap()[0].0, "canary");
}

#[tokio::test]
async fn a_binding_names_only_secrets_that_it_may() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    house.push(&ada, "calc", "one").await.unwrap();
    let asks = r#"requires={"http": [{"host": "api.example.com", "headers": [{"name": "Authorization", "secret": "weather"}]}]}"#;
    house.push(&ada, "weather", asks).await.unwrap();
    put(&house, &ada, "told", json!({"value": "x", "readable": true})).await.unwrap();
    put(&house, &ada, "kept", json!({"value": "x", "hosts": ["api.example.com"]})).await.unwrap();

    let header = |host: &str| json!({"http": [{"host": host, "headers": [{"name": "x-key", "secret": "kept"}]}]});
    let with = |name: &str, tool: &str, grants: Value| {
        let tools =
            json!([{"tool": "calc", "version": "latest"}, {"tool": tool, "version": "latest", "grants": grants}]);
        let tools = if tool == "calc" { json!([tools[1]]) } else { tools };
        agent(json!({"name": name, "tools": tools}))
    };
    for (tool, grants, code, kind, pointer) in [
        ("calc", json!({"secrets": ["none"]}), "secret.not_found", Kind::Invalid, "/tools/0/grants"),
        ("weather", json!("as_requested"), "secret.not_found", Kind::Invalid, "/tools/1/grants"),
        (
            "calc",
            json!({"secrets": ["told", "kept"]}),
            "secret.not_readable",
            Kind::Invalid,
            "/tools/0/grants/secrets/1",
        ),
        ("calc", header("evil.example"), "secret.host_outside", Kind::Forbidden, "/tools/0/grants/http/0/host"),
    ] {
        let error = house.create(&ada, with("no", tool, grants.clone())).await.unwrap_err();
        assert_eq!((error.code(), error.kind(), error.fields()[0].pointer.as_str()), (code, kind, pointer), "{grants}");
        if kind == Kind::Invalid {
            let all = house.create_as(&ada, with("no", tool, grants), NamingRight::Anywhere).await;
            assert_eq!(all.unwrap_err().code(), code, "no scope brings a secret into being");
        }
    }
    let error = house.create(&ada, with("no", "weather", json!("as_requested"))).await.unwrap_err();
    assert!(error.to_string().contains("`weather`") && error.to_string().contains("PUT /v1/secrets"), "{error}");

    house.create(&ada, with("near", "calc", header("api.example.com"))).await.unwrap();
    house.create_as(&ada, with("far", "calc", header("evil.example")), NamingRight::Anywhere).await.unwrap();
    // What somebody could write may stay while somebody else changes other things; not more.
    house.publish(&ada, "far", json!({"description": "far"})).await.unwrap();
    let tools = json!([{"tool": "calc", "version": "latest", "grants": header("*.evil.example")}]);
    assert_eq!(house.publish(&ada, "far", json!({"tools": tools})).await.unwrap_err().code(), "secret.host_outside");
    assert_eq!(house.publish(&ada, "near", json!({"tools": tools})).await.unwrap_err().code(), "secret.host_outside");

    put(&house, &ada, "weather", json!({"value": "x", "hosts": ["api.example.com"]})).await.unwrap();
    let made = house.create(&ada, with("as-requested", "weather", json!("as_requested"))).await.unwrap();
    assert_eq!(made.spec.tools[1].grants.http[0].headers[0].secret, name("weather"));
    let made = house.create(&ada, with("less", "weather", json!({}))).await.unwrap();
    assert_eq!(made.spec.tools[1].missing[0].grant, "http api.example.com");

    let mut tx = ada.begin().await.unwrap();
    let grants: Grants = serde_json::from_value(header("evil.example")).unwrap();
    let refused = secrets::check(&mut tx, &grants, NamingRight::WithinHosts).await.unwrap_err();
    assert_eq!((refused.code(), refused.fields()[0].pointer.as_str()), ("secret.host_outside", "/grants/http/0/host"));
    secrets::check(&mut tx, &grants, NamingRight::Anywhere).await.unwrap();
}
