//! Invariant 1 for runs and calls.

use std::time::Duration;

use agent_runtime::{RunError, StartError, StartRun, runs, tool_calls};
use domain::Problem;
use kit::FakeExecutor;

use crate::house::{House, say};

#[tokio::test]
async fn a_strangers_run_does_not_exist() {
    let house = House::new(FakeExecutor::echo()).await;
    let (ada, bob) = (house.tenant("ada").await, house.tenant("bob").await);
    let turn = house.chat(&ada, "/desk__run {\"n\": 1}").await;
    let (run, call) = (turn.run.id, turn.tool_calls[0].id);

    let mut tx = bob.begin().await.unwrap();
    assert!(runs::get(&mut tx, run).await.unwrap().is_none());
    assert!(tool_calls::get(&mut tx, call).await.unwrap().is_none());
    assert!(runs::list(&mut tx, &Default::default(), Default::default()).await.unwrap().data.is_empty());
    assert!(tool_calls::list(&mut tx, &Default::default(), Default::default()).await.unwrap().data.is_empty());
    drop(tx);
    let runtime = &house.runtime;
    assert!(matches!(runtime.wait(&bob, run, Duration::from_secs(1)).await, Err(RunError::NotFound)));
    assert!(matches!(runtime.cancel(&bob, run).await, Err(RunError::NotFound)));
    assert!(matches!(runtime.follow(&bob, run, Default::default()).await.err(), Some(RunError::NotFound)));
    let conversation = Some(turn.conversation_id);
    let refused = runtime.start(&bob, StartRun { conversation, ..say("hello") }).await.unwrap_err();
    assert_eq!(refused.code(), "conversation.not_found");
    assert!(runtime.delete_conversation(&bob, turn.conversation_id).await.is_err());
}

#[tokio::test]
async fn another_end_user_does_not_find_the_conversation() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let mine = |user: &str| StartRun { external_user_id: Some(user.to_owned()), ..say("hello") };
    let started = house.runtime.start(&ada, mine("u1")).await.unwrap();
    house.runtime.wait(&ada, started.run, Duration::from_secs(30)).await.unwrap();
    let again = |user: &str| StartRun { conversation: Some(started.conversation), ..mine(user) };
    assert_eq!(house.runtime.start(&ada, again("u2")).await.unwrap_err().code(), "conversation.not_found");
    house.runtime.start(&ada, again("u1")).await.unwrap();
}

#[tokio::test]
async fn a_key_for_other_agents_does_not_find_this_one() {
    let house = House::new(FakeExecutor::echo()).await;
    let ada = house.tenant("ada").await;
    let turn = StartRun { allowed_agents: Some(Vec::new()), ..say("hello") };
    let refused = house.runtime.start(&ada, turn).await;
    assert!(matches!(&refused, Err(StartError::Agent(_))), "{refused:?}");
    assert_eq!(refused.unwrap_err().code(), "agent.not_found");
}
