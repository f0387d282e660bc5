//! A recorded call can be looked at and run again; one that was not recorded cannot.

use std::sync::Arc;

use agent_config::tools::VersionRef;
use agent_runtime::{DirectCall, StartRun, recordings, tool_calls};
use async_trait::async_trait;
use domain::{Amount, CallId, Ids, Problem, SystemIds, message::Part};
use kit::FakeExecutor;
use serde_json::json;
use tool_api::{
    CallError, CallHost, Finished, Outcome, RecordedCall, Recording, Replayed, Status, ToolCall, ToolExecutor,
};

use crate::house::{House, direct, say};

/// The second build answers something else; arguments `{"long": true}` overflow the recording.
#[derive(Clone)]
struct Builds(FakeExecutor);

impl Builds {
    fn new() -> Builds {
        let second = tool_api::ArtifactHash::of(b"the second build");
        Builds(FakeExecutor::new(move |call| Outcome {
            status: Status::Ok,
            code: None,
            content: vec![Part::text(if call.artifact == second { "two" } else { "one" })],
            structured: None,
            trap: None,
        }))
    }
}

#[async_trait]
impl ToolExecutor for Builds {
    async fn call(&self, call: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        let long = call.arguments["long"] == true;
        let mut finished = self.0.call(call, host).await?;
        if let Some(recording) = &mut finished.recording {
            *recording =
                Recording { started_unix_ms: 7, random_seed: "\0".into(), truncated: long, ..recording.clone() };
        }
        Ok(finished)
    }

    async fn replay(&self, call: ToolCall, recording: Arc<Recording>) -> Result<Replayed, CallError> {
        assert_eq!(recording.started_unix_ms, 7);
        let mut replayed = self.0.replay(call, recording).await?;
        replayed.missing = vec!["GET https://api.example.com/".into()];
        Ok(replayed)
    }
}

#[tokio::test]
async fn what_was_not_recorded_cannot_be_replayed() {
    let house = House::new(Builds::new()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    let plain = house.runtime.call_tool(&ada, direct(json!({}))).await.unwrap();
    let kept = DirectCall { record: true, ..direct(json!({})) };
    let kept = house.runtime.call_tool(&ada, kept).await.unwrap();
    assert_eq!((plain.recorded, kept.recorded), (false, true));
    let nobody = CallId::from(SystemIds.uuid());
    for (tenant, call) in [(&ada, plain.id), (&ada, nobody), (&bob, kept.id)] {
        let mut tx = tenant.begin().await.unwrap();
        assert_eq!(recordings::get(&mut tx, call).await.unwrap_err().code(), "recording.not_found");
        drop(tx);
        let refused = house.runtime.replay(tenant, call, VersionRef::Latest, None, None).await.unwrap_err();
        assert_eq!(refused.code(), "recording.not_found");
    }
    let long = DirectCall { record: true, ..direct(json!({"long": true})) };
    let long = house.runtime.call_tool(&ada, long).await.unwrap();
    let refused = house.runtime.replay(&ada, long.id, VersionRef::Latest, None, None).await.unwrap_err();
    assert_eq!(refused.code(), "recording.truncated");
}

#[tokio::test]
async fn a_recorded_call_is_run_again_by_another_build() {
    let builds = Builds::new();
    let house = House::new(builds.clone()).await;
    let ada = house.tenant("ada").await;
    let grants = json!({"config": {"who": "{external_user_id}"}});
    let agent = house.bind(&ada, "recorded", json!({"record": true, "grants": grants})).await;
    let user = Some("u1".to_owned());
    let context = [("plan".to_owned(), "gold".to_owned())].into();
    let ask = StartRun { agent, external_user_id: user, context, ..say("/desk__run {\"n\": 1}") };
    let turn = house.talk(&ada, ask).await;
    let call = &turn.tool_calls[0];
    assert!(call.recorded);
    let first = call.version.unwrap();
    let owed = house.owed(&ada).await;

    let same = house.runtime.replay(&ada, call.id, VersionRef::Latest, None, None).await.unwrap();
    assert!(same.output.same && same.host_calls.same, "{same:?}");
    assert_eq!((same.version, same.fuel.recorded, same.fuel.replayed), (first, 1000, 1000));
    assert_eq!(same.missing, ["GET https://api.example.com/"]);

    let second = house.push(&ada, "the second build").await;
    let other = house.runtime.replay(&ada, call.id, VersionRef::Hash(second), None, None).await.unwrap();
    let differences = &other.output.differences;
    assert_eq!((differences.len(), differences[0].at.as_str()), (1, "/content/0/text"));
    assert_eq!(
        (differences[0].recorded.clone(), differences[0].replayed.clone()),
        (Some(json!("one")), Some(json!("two")))
    );

    // It was given what the call was given, it is on the bill, and it is no tool call.
    let calls = builds.0.calls();
    assert_eq!(calls.len(), 3);
    for again in &calls[1..] {
        assert_eq!(again.grants, calls[0].grants);
        assert_eq!(again.limits, calls[0].limits);
        assert_eq!(again.arguments, json!({"n": 1}));
        assert_eq!((again.id, &again.context.entries["plan"][..]), (call.id, "gold"));
        assert_eq!(again.context.external_user_id.as_deref(), Some("u1"));
        assert_eq!((again.share, again.record), (calls[0].share, false));
    }
    let price = call.receipt.as_ref().unwrap().price.amount;
    assert!(price > Amount::ZERO);
    assert_eq!(house.owed(&ada).await, owed + price + price);
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(tool_calls::list(&mut tx, &Default::default(), Default::default()).await.unwrap().data.len(), 1);

    let recorded = recordings::get(&mut tx, call.id).await.unwrap();
    assert_eq!(recorded.given.recording.random_seed, "\u{fffd}", "Postgres keeps it");
    let offline: RecordedCall = serde_json::from_value(json!(recorded)).unwrap();
    assert_eq!(offline, recorded);
}
