use agent_config::{
    ToolError, VersionRef, VersionStatus, artifacts, key_value,
    tools::{self, LABEL_BYTES_MAX},
};
use bytes::Bytes;
use domain::{Problem, ToolName, page::PageRequest};
use futures::future::join_all;
use serde_json::json;
use tool_api::{ArtifactHash, ComponentSource, Manifest};
use uuid::Uuid;

use crate::house::{House, agent, artifacts};

fn calc() -> ToolName {
    "calc".parse().unwrap()
}

#[tokio::test]
async fn a_stranger_has_no_tool() {
    let house = House::build().await;
    let (ada, bob) = (house.db.tenant("ada").await, house.db.tenant("bob").await);
    let version = house.push(&ada, "calc", "one").await.unwrap();
    let hash = VersionRef::Hash(version.version);

    let mut tx = bob.begin().await.unwrap();
    let all = PageRequest::default();
    assert!(tools::list(&mut tx, all).await.unwrap().data.is_empty());
    assert!(artifacts::component_by_hash(&mut tx, version.version).await.unwrap().is_none());
    for refused in [
        tools::get(&mut tx, &calc()).await.map(drop),
        tools::versions(&mut tx, &calc(), all).await.map(drop),
        tools::version(&mut tx, &calc(), VersionRef::Latest).await.map(drop),
        tools::version(&mut tx, &calc(), hash).await.map(drop),
        tools::callable(&mut tx, &calc(), hash).await.map(drop),
        artifacts::component(&mut tx, &calc(), hash).await.map(drop),
        tools::delete_version(&mut tx, &calc(), version.version).await,
        tools::delete(&mut tx, &calc()).await,
        house.admission.finish(&bob, &calc(), version.version).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code(), "tool.not_found");
    }
    drop(tx);

    // The same bytes and the same name are bob's own tool.
    let own = house.push(&bob, "calc", "one").await.unwrap();
    assert_eq!((own.version, own.number), (version.version, 1));
    assert_ne!(own.tool_id, version.tool_id);
    let mut tx = bob.begin().await.unwrap();
    tools::delete(&mut tx, &calc()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((artifacts(&ada).await, artifacts(&bob).await), (1, 0));
}

#[tokio::test]
async fn the_same_bytes_are_the_same_version() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let accept = async |text: &'static str, label: Option<&str>| {
        house
            .admission
            .accept(&ada, &calc(), Bytes::from_static(text.as_bytes()), label.map(Into::into), None)
            .await
            .unwrap()
    };
    let first = accept("one", Some("1.0")).await;
    assert!(first.new);
    assert_eq!(first.version.status, VersionStatus::Compiling);
    assert!(!accept("one", None).await.new, "while it is compiling");
    let done = house.admission.finish(&ada, &calc(), first.version.version).await.unwrap();
    assert_eq!((done.status, done.number, done.label.as_deref()), (VersionStatus::Ready, 1, Some("1.0")));
    assert_eq!(done.functions[0].model_name, "calc__run");
    assert_eq!((done.contract.as_deref(), done.size_bytes), (Some("belljar:tool@1.0.0"), 3));
    assert_eq!(done.version, ArtifactHash::of(b"one"));

    let again = accept("one", Some("1.0.1")).await;
    assert!(!again.new);
    assert_eq!((again.version.status, again.version.label.as_deref()), (VersionStatus::Ready, Some("1.0.1")));
    house.admission.finish(&ada, &calc(), again.version.version).await.unwrap();
    assert_eq!(house.inspector.seen(), 1, "what is ready is not inspected again");

    let second = house.push(&ada, "calc", "two").await.unwrap();
    house.push(&ada, "calc", "bad three").await.unwrap();
    let mut tx = ada.begin().await.unwrap();
    let tool = tools::get(&mut tx, &calc()).await.unwrap();
    assert_eq!(tool.latest.as_ref(), Some(&second), "the newest that is ready");
    assert_eq!(tools::list(&mut tx, PageRequest::default()).await.unwrap().data, [tool]);
    let bytes = artifacts::component(&mut tx, &calc(), VersionRef::Latest).await.unwrap();
    assert_eq!(bytes, "two");

    let page = PageRequest { limit: 2, after: None };
    let page = tools::versions(&mut tx, &calc(), page).await.unwrap();
    assert_eq!(page.data.iter().map(|version| version.number).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(page.next, Some(Uuid::from_u128(2)));
    let rest = tools::versions(&mut tx, &calc(), PageRequest { limit: 2, after: page.next }).await.unwrap();
    assert_eq!((rest.data[0].number, rest.data.len(), rest.next), (1, 1, None));
}

#[tokio::test]
async fn a_rejected_version_says_why_and_may_try_again() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let rejected = house.push(&ada, "calc", "bad bytes").await.unwrap();
    assert_eq!(rejected.status, VersionStatus::Rejected);
    assert_eq!(rejected.rejection.as_ref().unwrap().code, "component.not_wasm");
    let mut tx = ada.begin().await.unwrap();
    let hash = VersionRef::Hash(rejected.version);
    let error = tools::callable(&mut tx, &calc(), hash).await.unwrap_err();
    assert_eq!(error.code(), "tool_version.rejected");
    assert!(error.to_string().contains("component.not_wasm"), "{error}");
    assert!(tools::get(&mut tx, &calc()).await.unwrap().latest.is_none());
    let error = tools::callable(&mut tx, &calc(), VersionRef::Latest).await.unwrap_err();
    assert_eq!(error.code(), "tool_version.not_found");
    drop(tx);

    let again = house.admission.accept(&ada, &calc(), Bytes::from_static(b"bad bytes"), None, None).await.unwrap();
    assert!(!again.new);
    assert_eq!((again.version.status, again.version.rejection), (VersionStatus::Compiling, None));
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(tools::callable(&mut tx, &calc(), hash).await.unwrap_err().code(), "tool_version.not_ready");
    drop(tx);
    house.admission.finish(&ada, &calc(), rejected.version).await.unwrap();
    assert_eq!(house.inspector.seen(), 2);

    let nul = house.push(&ada, "calc", "nul").await.unwrap();
    assert_eq!(nul.rejection.unwrap().code, "toolbox.bad_function");
}

#[tokio::test]
async fn an_admission_that_stopped_is_taken_up_again() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let accepted = house.admission.accept(&ada, &calc(), Bytes::from_static(b"one"), None, None).await.unwrap();
    house.wait(59);
    assert!(!house.admission.recover_one(&house.db.db).await.unwrap(), "its process may live");
    house.wait(2);
    assert!(house.admission.recover_one(&house.db.db).await.unwrap());
    let mut tx = ada.begin().await.unwrap();
    let hash = VersionRef::Hash(accepted.version.version);
    assert_eq!(tools::version(&mut tx, &calc(), hash).await.unwrap().status, VersionStatus::Ready);
    assert!(!house.admission.recover_one(&house.db.db).await.unwrap(), "nothing is left");
}

#[tokio::test]
async fn uploads_do_not_wait_without_end() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let mut hashes = Vec::new();
    for number in 0..17 {
        let component = Bytes::from(format!("slow {number}"));
        hashes.push(house.admission.accept(&ada, &calc(), component, None, None).await.unwrap().version.version);
    }
    let tool = calc();
    let mut all: Vec<_> = hashes.iter().map(|hash| Box::pin(house.admission.finish(&ada, &tool, *hash))).collect();
    // The same once more.
    all.push(Box::pin(house.admission.finish(&ada, &tool, hashes[0])));
    let later = async {
        while house.inspector.seen() < 16 {
            tokio::task::yield_now().await;
        }
        let refused = house.admission.accept(&ada, &tool, Bytes::from_static(b"one more"), None, None).await.map(drop);
        house.inspector.open_gate();
        refused
    };
    let (results, refused) = tokio::join!(join_all(all), later);
    let ended: Vec<_> =
        results.into_iter().map(|result| result.map(|version| version.status).map_err(|error| error.code())).collect();
    let count = |what| ended.iter().filter(|end| **end == what).count();
    assert_eq!(count(Ok(VersionStatus::Ready)), 16, "{ended:?}");
    assert_eq!(count(Err("tool_version.too_many_waiting")), 1, "{ended:?}");
    assert_eq!(count(Ok(VersionStatus::Compiling)), 1, "told as it is: {ended:?}");
    assert_eq!(house.inspector.seen(), 16);
    let refused = refused.unwrap_err();
    assert_eq!((refused.code(), refused.retry_after_seconds()), ("tool_version.too_many_waiting", Some(5)));
}

#[tokio::test]
async fn a_host_that_fails_rejects_nothing() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let error = house.push(&ada, "calc", "once broken").await.unwrap_err();
    assert_eq!((error.code(), error.retry_after_seconds()), ("tool_version.not_inspected", Some(5)));
    let hash = ArtifactHash::of(b"once broken");
    let mut tx = ada.begin().await.unwrap();
    let version = tools::version(&mut tx, &calc(), VersionRef::Hash(hash)).await.unwrap();
    assert_eq!(version.status, VersionStatus::Compiling);
    drop(tx);
    house.wait(1);
    assert!(house.admission.recover_one(&house.db.db).await.unwrap());
    assert_eq!(house.admission.finish(&ada, &calc(), hash).await.unwrap().status, VersionStatus::Ready);
}

#[tokio::test]
async fn uploads_keep_to_the_plan() {
    let house = House::build().await;
    let small = house.tenant_with(json!({"upload_bytes": 10, "storage_bytes": 15})).await;
    let error = house.push(&small, "calc", "eleven byte").await.unwrap_err();
    assert!(matches!(error, ToolError::TooLarge { bytes: 11, max: 10 }), "{error}");
    house.push(&small, "calc", "ten bytes.").await.unwrap();
    let error = house.push(&small, "clock", "six by").await.unwrap_err();
    assert!(matches!(error, ToolError::StorageExceeded { bytes: 16, max: 15 }), "{error}");
    // What tools have stored counts, too.
    let (namespace, key) = ("n", "k");
    let mut tx = small.begin().await.unwrap();
    key_value::put(&mut tx, 15, namespace, key, Bytes::from_static(b"abc"), house.now()).await.unwrap();
    tx.commit().await.unwrap();
    let error = house.push(&small, "calc", "five!").await.unwrap_err();
    assert!(matches!(error, ToolError::StorageExceeded { bytes: 20, max: 15 }), "{error}");
    let mut tx = small.begin().await.unwrap();
    key_value::delete(&mut tx, namespace, key, house.now()).await.unwrap();
    tx.commit().await.unwrap();
    house.push(&small, "clock", "ten bytes.").await.unwrap();
    house.push(&small, "calc", "five!").await.unwrap();
    let mut tx = small.begin().await.unwrap();
    let names: Vec<_> = tools::list(&mut tx, PageRequest::default()).await.unwrap().data;
    assert_eq!(names.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["clock", "calc"]);
    drop(tx);

    for label in [String::new(), "x".repeat(LABEL_BYTES_MAX + 1), "a\0b".into()] {
        let refused = house.admission.accept(&small, &calc(), Bytes::new(), Some(label), None).await;
        assert_eq!(refused.unwrap_err().code(), "tool_version.bad_label");
    }
}

#[tokio::test]
async fn a_version_in_use_stays() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let first = house.push(&ada, "calc", "one").await.unwrap();
    let second = house.push(&ada, "calc", "two").await.unwrap();
    house.push(&ada, "copy", "two").await.unwrap();
    let tools = json!([{"tool": "calc", "version": first.version}]);
    house.create(&ada, agent(json!({"tools": tools}))).await.unwrap();

    let error = house.delete_version(&ada, &first).await.unwrap_err();
    assert_eq!(error.code(), "tool_version.in_use");
    assert!(error.to_string().contains("`clerk`"), "{error}");
    // An older revision keeps it, too.
    house.publish(&ada, "clerk", json!({"tools": []})).await.unwrap();
    assert_eq!(house.delete_version(&ada, &first).await.unwrap_err().code(), "tool_version.in_use");
    let mut tx = ada.begin().await.unwrap();
    let error = tools::delete(&mut tx, &calc()).await.unwrap_err();
    assert_eq!(error.code(), "tool.in_use");
    assert!(error.to_string().contains("`clerk`"), "{error}");
    drop(tx);

    house.delete_version(&ada, &second).await.unwrap();
    assert_eq!(house.delete_version(&ada, &second).await.unwrap_err().code(), "tool_version.not_found");
    assert_eq!(artifacts(&ada).await, 2, "`copy` has the same bytes");
    let mut tx = ada.begin().await.unwrap();
    tools::delete(&mut tx, &"copy".parse().unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(artifacts(&ada).await, 1);
}

#[tokio::test]
async fn uploads_at_once_count_in_order() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let name = calc();
    let accept =
        |text: &'static str| house.admission.accept(&ada, &name, Bytes::from_static(text.as_bytes()), None, None);
    let (a, b, c, d) = tokio::join!(accept("one"), accept("two"), accept("one"), accept("four"));
    let accepted = [a.unwrap(), b.unwrap(), c.unwrap(), d.unwrap()];
    assert_eq!(accepted.iter().filter(|accepted| accepted.new).count(), 3);
    let mut numbers: Vec<_> = accepted.iter().map(|accepted| accepted.version.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, [1, 2, 3]);
}

fn manifest(description: &str) -> Manifest {
    serde_json::from_value(json!({"functions": {"run": {"description": description}}})).unwrap()
}

#[tokio::test]
async fn a_version_keeps_the_manifest_it_came_with() {
    let house = House::build().await;
    let (ada, bob) = (house.db.tenant("ada").await, house.db.tenant("bob").await);
    for (bad, pointer) in
        [(manifest("a\0b"), "/manifest/functions/run/description"), (manifest(&"x".repeat(1 << 20)), "/manifest")]
    {
        let error = house.push_with(&ada, "typed", "one", Some(bad)).await.unwrap_err();
        assert_eq!((error.code(), error.fields()[0].pointer.as_str()), ("tool_version.bad_manifest", pointer));
    }

    let first = house.push_with(&ada, "typed", "one", Some(manifest("adds"))).await.unwrap();
    let upload = house.inspector.last();
    assert_eq!((upload.tenant, upload.artifact), (ada.id(), first.version));
    assert_eq!((upload.manifest, upload.first), (Some(manifest("adds")), true));
    let error = house.push_with(&ada, "typed", "one", Some(manifest("adds more"))).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("tool_version.manifest_differs", domain::Kind::Conflict));
    house.push_with(&ada, "typed", "one", Some(manifest("adds"))).await.unwrap();
    house.push(&ada, "typed", "one").await.unwrap();
    house.push(&ada, "plain", "two").await.unwrap();
    let error = house.push_with(&ada, "plain", "two", Some(manifest("adds"))).await.unwrap_err();
    assert_eq!(error.code(), "tool_version.manifest_differs");

    // Another tool of the tenant has these bytes already; another tenant has not.
    house.push_with(&ada, "copy", "one", Some(manifest("is a copy"))).await.unwrap();
    assert_eq!((house.inspector.last().manifest, house.inspector.last().first), (Some(manifest("is a copy")), false));
    house.push(&bob, "typed", "one").await.unwrap();
    assert_eq!((house.inspector.last().manifest, house.inspector.last().first), (None, true));

    // What was rejected begins again with what it is given now.
    house.push_with(&ada, "typed", "bad", Some(manifest("is wrong"))).await.unwrap();
    house.push_with(&ada, "typed", "bad", Some(manifest("is less wrong"))).await.unwrap();
    assert_eq!(house.inspector.last().manifest, Some(manifest("is less wrong")));
    house.push(&ada, "typed", "bad").await.unwrap();
    assert_eq!(house.inspector.last().manifest, Some(manifest("is less wrong")));
}

#[tokio::test]
async fn a_host_without_the_code_is_given_what_it_needs() {
    let house = House::build().await;
    let (ada, bob) = (house.db.tenant("ada").await, house.db.tenant("bob").await);
    let version = house.push_with(&ada, "typed", "one", Some(manifest("adds"))).await.unwrap().version;
    let rejected = house.push(&ada, "typed", "bad").await.unwrap().version;
    assert!(artifacts::to_inspect(&bob, version).await.unwrap().is_none());
    assert!(artifacts::to_inspect(&ada, rejected).await.unwrap().is_none());
    let (upload, source) = artifacts::to_inspect(&ada, version).await.unwrap().unwrap();
    assert_eq!((upload.tenant, upload.artifact), (ada.id(), version));
    assert_eq!((upload.manifest, upload.first), (Some(manifest("adds")), false));
    assert_eq!(source.component().await.unwrap().unwrap(), "one");
    let mut tx = ada.begin().await.unwrap();
    tools::delete(&mut tx, &"typed".parse().unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    assert!(source.component().await.unwrap().is_none());
}

#[tokio::test]
async fn what_a_tool_asks_for_is_read_at_the_door() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let wrong = house.push(&ada, "fetch", r#"requires={"http": [{"host": "https://a.example"}]}"#).await.unwrap();
    let rejection = wrong.rejection.unwrap();
    assert_eq!(rejection.code, "toolbox.bad_requires");
    assert!(rejection.detail.contains("`requires/http/0/host`"), "{rejection}");
    let asks =
        r#"requires={"http": [{"host": "A.example", "reason": "weather"}], "scratch_bytes": 5, "secrets": null}"#;
    let ready = house.push(&ada, "fetch", asks).await.unwrap();
    assert_eq!(ready.requires["http"][0]["host"], "a.example");
    assert_eq!(ready.requires["scratch_bytes"], json!({"bytes": 5}));
    assert_eq!(ready.requires.as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn an_upload_that_is_deleted_meanwhile_is_gone() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let accepted = house.admission.accept(&ada, &calc(), Bytes::from_static(b"one"), None, None).await.unwrap();
    let version = accepted.version;
    house.delete_version(&ada, &version).await.unwrap();
    let error = house.admission.finish(&ada, &calc(), version.version).await.unwrap_err();
    assert_eq!((error.code(), house.inspector.seen()), ("tool_version.not_found", 0));
}
