//! What a call is given, what it is refused, and what it tells while it works.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use agent_config::secrets::{self, SecretSpec};
use agent_runtime::{Settings, StartRun};
use async_trait::async_trait;
use domain::{Clock, ExposeSecret, Problem, SystemClock};
use kit::{FakeExecutor, FakeInspector};
use serde_json::json;
use tenancy::{Tenant, tenants};
use tool_api::{
    ArtifactHash, CallError, CallHost, ComponentSource, Finished, HostCall, InspectError, Inspection, Progress,
    Recording, Replayed, Status, ToolCall, ToolExecutor, ToolInspector, Upload,
};

use crate::house::{House, direct, say};

async fn put_secret(tenant: &Tenant, name: &str, value: &str) {
    let mut tx = tenant.begin().await.unwrap();
    let spec = SecretSpec { value: value.to_owned().into(), hosts: Vec::new(), readable: true };
    secrets::put(&mut tx, &kit::master_key(), &name.parse().unwrap(), spec, SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_secret_is_opened_when_the_call_begins() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    for name in ["first", "second", "other"] {
        put_secret(&ada, name, &format!("the value of {name}")).await;
    }
    let agent = house.bind(&ada, "keyed", json!({"grants": {"secrets": ["first", "second"]}})).await;
    let ask = || StartRun { agent: agent.clone(), ..say("/desk__run {}") };
    house.talk(&ada, ask()).await;
    put_secret(&ada, "first", "another value").await;
    house.talk(&ada, ask()).await;
    let opened: Vec<Vec<(String, String)>> = executor
        .calls()
        .iter()
        .map(|call| {
            let secrets = call.secrets.iter();
            secrets.map(|(name, secret)| (name.to_string(), secret.value.expose_secret().to_owned())).collect()
        })
        .collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let second = pair("second", "the value of second");
    assert_eq!(
        opened,
        [vec![pair("first", "the value of first"), second.clone()], vec![pair("first", "another value"), second]],
        "only those that the grants name, as they are now"
    );

    let mut tx = ada.begin().await.unwrap();
    secrets::delete(&mut tx, &"second".parse().unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    let turn = house.talk(&ada, ask()).await;
    let call = &turn.tool_calls[0];
    assert_eq!((call.outcome.status, call.outcome.code.as_deref()), (Status::ToolError, Some("secret.not_found")));
    assert!(call.outcome.for_model().contains("second"), "{}", call.outcome.for_model());
    assert!(call.receipt.is_none(), "the guest did not start");
    let grants = serde_json::from_value(json!({"secrets": ["second"]})).unwrap();
    let refused =
        house.runtime.call_tool(&ada, agent_runtime::DirectCall { grants, ..direct(json!({})) }).await.unwrap_err();
    assert_eq!((refused.code(), refused.fields()[0].pointer.as_str()), ("secret.not_found", "/grants"));
    assert_eq!(executor.calls().len(), 2);
}

#[tokio::test]
async fn a_grant_for_an_end_user_needs_one() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    for (name, grants, code) in [
        ("of-config", json!({"config": {"who": "{external_user_id}"}}), "denied.config"),
        (
            "of-store",
            json!({"key_value": [{"namespace": "notes/{external_user_id}", "access": "read"}]}),
            "denied.key_value",
        ),
    ] {
        let agent = house.bind(&ada, name, json!({"grants": grants})).await;
        let turn = house.talk(&ada, StartRun { agent: agent.clone(), ..say("/desk__run {}") }).await;
        let call = &turn.tool_calls[0];
        assert_eq!((call.outcome.status, call.outcome.code.as_deref()), (Status::Denied, Some(code)));
        assert!(call.receipt.is_none());
        let grants = serde_json::from_value(grants).unwrap();
        let refused = agent_runtime::DirectCall { grants, ..direct(json!({})) };
        let refused = house.runtime.call_tool(&ada, refused).await.unwrap_err();
        assert_eq!(refused.code(), "tool_call.no_external_user");
        let user = Some("u/1".to_owned());
        house.talk(&ada, StartRun { agent, external_user_id: user, ..say("/desk__run {}") }).await;
    }
    let calls = executor.calls();
    assert_eq!(calls[0].grants.config["who"], "u/1");
    assert_eq!(calls[1].grants.key_value[0].namespace, "notes/u%2F1");
}

#[tokio::test]
async fn a_call_has_its_plans_share() {
    let executor = FakeExecutor::echo();
    let house = House::new(executor.clone()).await;
    let ada = house.tenant("ada").await;
    let mut tx = ada.begin().await.unwrap();
    let overrides = serde_json::from_value(json!({"weight": 7, "concurrent_tool_calls": 3})).unwrap();
    let change = tenants::TenantChange { overrides: Some(overrides), ..Default::default() };
    tenants::update(&mut tx, change).await.unwrap();
    tx.commit().await.unwrap();
    house.chat(&ada, "/desk__run {}").await;
    house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    let shares: Vec<_> = executor.calls().iter().map(|call| (call.share.weight, call.share.calls_max)).collect();
    assert_eq!(shares, [(7, 3), (7, 3)]);
}

/// Tells that it goes on, again and again; then lists what is in the store.
struct Talkative(FakeExecutor);

#[async_trait]
impl ToolExecutor for Talkative {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        for percent in 0..30 {
            host.progress(Progress { percent: Some(percent), text: format!("at {percent}\0{}", "x".repeat(5_000)) });
        }
        let keys = host.keys("notes", Some("b"), 2).await.unwrap();
        let mut finished = self.0.call(call, host).await?;
        finished.outcome.structured = Some(json!(keys));
        let (target, error) = (Some("notes/\0".to_owned()), Some("no\0".to_owned()));
        finished.receipt.host_calls = vec![HostCall {
            interface: "wasi:keyvalue".into(),
            function: "get".into(),
            target,
            bytes_in: 0,
            bytes_out: 0,
            duration_us: 0,
            grant: None,
            error,
        }];
        Ok(finished)
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.0.replay(call, recording).await
    }
}

#[tokio::test]
async fn progress_reaches_the_followers_and_has_a_bound() {
    let house = House::new(Talkative(FakeExecutor::echo())).await;
    let ada = house.tenant("ada").await;
    for key in ["a", "b", "c", "d", "e"] {
        House::put_entry(&ada, "notes", key, "x").await;
    }
    House::put_entry(&ada, "other", "c1", "x").await;
    let started = house.start(&ada, "/desk__run {}").await;
    let live = house.events(&ada, started.run, "0").await;
    let progress: Vec<_> = live.iter().filter(|event| event.kind == "tool_call.progress").collect();
    assert_eq!(progress.len(), 20);
    let turn = house.runtime.turn(&ada, started.run).await.unwrap();
    assert_eq!(progress[0].data["id"], json!(turn.tool_calls[0].id));
    assert_eq!((&progress[19].data["percent"], progress[0].data["text"].as_str().unwrap().len()), (&json!(19), 1024));
    assert!(progress[0].data["text"].as_str().unwrap().starts_with("at 0\u{fffd}x"));
    assert_eq!(turn.tool_calls[0].outcome.structured, Some(json!(["c", "d"])));
    let told = &turn.tool_calls[0].receipt.as_ref().unwrap().receipt.host_calls[0];
    assert_eq!((told.target.as_deref(), told.error.as_deref()), (Some("notes/\u{fffd}"), Some("no\u{fffd}")));
    let numbers: Vec<u32> = live.iter().filter(|event| event.offset.is_none()).map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>(), "no number is missing");
    // From the database now, in the middle of the call.
    let after = progress[4].id().to_string();
    let later = house.events(&ada, started.run, &after).await;
    let later = later.iter().filter(|event| event.kind == "tool_call.progress");
    assert_eq!(
        later.map(|event| event.seq).collect::<Vec<_>>(),
        progress[5..].iter().map(|e| e.seq).collect::<Vec<_>>()
    );
}

/// A host that has lost its code.
#[derive(Clone)]
struct Cold {
    fake: FakeExecutor,
    warm: Arc<AtomicBool>,
}

#[async_trait]
impl ToolExecutor for Cold {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        match self.warm.load(Ordering::SeqCst) {
            true => self.fake.call(call, host).await,
            false => Err(CallError::NotCompiled(call.artifact)),
        }
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        self.fake.replay(call, recording).await
    }
}

#[async_trait]
impl ToolInspector for Cold {
    async fn inspect(&self, upload: Upload, component: &dyn ComponentSource) -> Result<Inspection, InspectError> {
        assert!(!upload.first, "the tenant has these bytes");
        let bytes = component.component().await.unwrap().unwrap();
        assert_eq!((&bytes[..], upload.artifact), (&b"a component"[..], ArtifactHash::of(&bytes)));
        self.warm.store(true, Ordering::SeqCst);
        FakeInspector.inspect(upload, component).await
    }
}

#[tokio::test]
async fn code_that_is_not_on_the_host_is_brought_there() {
    let cold = Cold { fake: FakeExecutor::echo(), warm: Arc::default() };
    let house = House::of(Arc::new(cold.clone()), Arc::new(cold.clone()), Settings::default()).await;
    let ada = house.tenant("ada").await;
    let turn = house.chat(&ada, "/desk__run {}").await;
    assert_eq!(turn.tool_calls[0].outcome.status, Status::Ok, "{:?}", turn.tool_calls[0].outcome);
    cold.warm.store(false, Ordering::SeqCst);
    house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    assert_eq!(cold.fake.calls().len(), 2);
}
