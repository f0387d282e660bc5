//! What no longer fits into the model's window is summarised: once, in a step that is billed and shown.

use agent_config::AgentRef;
use agent_runtime::{RunStatus, StartRun, StopReason, Turn, timeline};
use conversation_store::messages;
use domain::{Amount, ConversationId, page::PageRequest};
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::Tenant;

use crate::{
    house::{House, say},
    puppet::{Act, Puppet},
};

/// Some 300 tokens.
fn long(word: &str) -> String {
    format!("{word} ").repeat(300)
}

struct Stage {
    house: House,
    ada: Tenant,
    puppet: Puppet,
}

impl Stage {
    /// With the agent `clerk-2`, whose window is a thousand tokens.
    async fn set(more: Value) -> Stage {
        let puppet = Puppet::start().await;
        let house = House::with_model(FakeExecutor::echo(), Default::default(), &puppet).await;
        let ada = house.tenant("ada").await;
        let mut agent = json!({"name": "clerk-2", "system_prompt": "You help.", "model": "puppet/m",
            "tools": [{"tool": "desk", "version": "latest"}],
            "context": {"strategy": "summarize", "max_input_tokens": 1000}});
        domain::json::merge(&mut agent, more);
        house.agent(&ada, agent).await;
        Stage { house, ada, puppet }
    }

    async fn talk(&self, conversation: Option<ConversationId>, text: &str) -> Turn {
        let agent = AgentRef::Name("clerk-2".parse().unwrap());
        self.house.talk(&self.ada, StartRun { agent, conversation, ..say(text) }).await
    }

    /// Three turns, which fill the window.
    async fn filled(&self) -> ConversationId {
        let mut conversation = None;
        for word in ["tea", "milk", "sugar"] {
            self.puppet.then([Act::Say("noted")]);
            let turn = self.talk(conversation, &long(word)).await;
            assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
            conversation = Some(turn.conversation_id);
        }
        conversation.unwrap()
    }

    async fn stored(&self) -> i64 {
        let mut tx = self.ada.begin().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM summary").fetch_one(tx.conn()).await.unwrap()
    }
}

fn texts(request: &Value) -> Vec<(String, String)> {
    let text = |content: &Value| match content {
        Value::String(text) => text.clone(),
        parts => parts[0]["text"].as_str().unwrap_or_default().to_owned(),
    };
    let messages = request["messages"].as_array().unwrap().iter();
    messages.map(|message| (message["role"].as_str().unwrap().to_owned(), text(&message["content"]))).collect()
}

#[tokio::test]
async fn what_is_truncated_is_not_summarised() {
    let stage = Stage::set(json!({"context": {"strategy": "truncate"}})).await;
    let conversation = stage.filled().await;
    stage.puppet.then([Act::Say("done")]);
    let turn = stage.talk(Some(conversation), &long("salt")).await;
    assert_eq!((turn.run.status, turn.run.steps), (RunStatus::Completed, 1));
    assert_eq!((stage.puppet.asked().len(), stage.stored().await), (4, 0));
    assert!(!texts(&stage.puppet.asked()[3]).iter().any(|(_, text)| text.contains("tea ")));
}

#[tokio::test]
async fn a_turn_that_cannot_fit_is_a_clear_error() {
    let stage = Stage::set(json!({})).await;
    let conversation = stage.filled().await;
    let turn = stage.talk(Some(conversation), &long("salt").repeat(4)).await;
    let error = turn.run.error.unwrap();
    assert_eq!((error.code.as_str(), turn.run.steps), ("context.too_large", 0));
    assert!(error.detail.contains("max_input_tokens"), "{}", error.detail);
    assert_eq!(stage.puppet.asked().len(), 3, "no model was asked");
}

#[tokio::test]
async fn the_oldest_turns_are_summarised_once() {
    let stage = Stage::set(json!({})).await;
    let conversation = stage.filled().await;
    let before = stage.house.owed(&stage.ada).await;
    stage.puppet.then([Act::Say("ada likes "), Act::Say("tea with milk")]).then([Act::Say("done")]);
    let turn = stage.talk(Some(conversation), &long("salt")).await;
    assert_eq!((turn.run.status, turn.run.steps), (RunStatus::Completed, 2), "{:?}", turn.run.error);
    assert_eq!(turn.message.unwrap().content, "done");

    // The model was asked for it, by a request without functions; then it was sent in place of what it summarises.
    let asked = stage.puppet.asked();
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[3].get("tools"), None);
    let material = texts(&asked[3]);
    assert_eq!(material.len(), 2);
    assert!(material[0].1.contains("You condense") && material[1].1.contains("User: tea tea"));
    assert!(!material[1].1.contains("salt"), "what stays is not summarised");
    let sent = texts(&asked[4]);
    assert!(sent.iter().any(|(role, text)| role == "user" && text.contains("ada likes tea with milk")), "{sent:?}");
    assert!(!sent.iter().any(|(_, text)| text.contains("tea tea")) && sent.last().unwrap().1.starts_with("salt"));

    // It is billed and shown, and nobody hears it as an answer.
    assert_eq!(turn.run.usage.input_tokens, 20);
    assert_eq!(stage.house.owed(&stage.ada).await, before + turn.run.cost.amount);
    let mut tx = stage.ada.begin().await.unwrap();
    let steps = timeline::detail(&mut tx, turn.run.id).await.unwrap().timeline;
    let summarized: Vec<_> = steps.iter().map(|step| step.trace.as_ref().unwrap().summarized_messages).collect();
    assert_eq!(summarized, [Some(4), None]);
    assert!(steps[0].cost.amount > Amount::ZERO);
    assert_eq!((steps[0].usage.output_tokens, steps[0].trace.as_ref().unwrap().sent.functions), (5, 0));
    let said = messages::list(&mut tx, conversation, PageRequest { limit: 100, after: None }).await.unwrap().data;
    assert!(said.iter().all(|message| !message.content.contains("ada likes")), "it is no message");
    assert_eq!(said.len(), 8);
    drop(tx);
    let events = stage.house.events(&stage.ada, turn.run.id, "0").await;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["run.started", "step.completed", "message.delta", "step.completed", "run.completed"]);
    assert_eq!(
        (&events[1].data["summarized_messages"], &events[3].data["summarized_messages"]),
        (&json!(4), &Value::Null)
    );

    // The next turn, in another process, uses it as it is.
    stage.puppet.then([Act::Say("again")]);
    let second = stage.house.second();
    let agent = AgentRef::Name("clerk-2".parse().unwrap());
    let start = StartRun { agent, conversation: Some(conversation), ..say("short") };
    let started = second.start(&stage.ada, start).await.unwrap();
    let next = second.wait(&stage.ada, started.run, std::time::Duration::from_secs(30)).await.unwrap();
    assert_eq!((next.run.steps, stage.stored().await), (1, 1), "{:?}", next.run.error);
    let asked = stage.puppet.asked();
    assert_eq!(asked.len(), 6);
    assert!(texts(&asked[5]).iter().any(|(_, text)| text.contains("ada likes tea with milk")));

    // And the next summary begins with it.
    stage.puppet.then([Act::Say("ada likes everything")]).then([Act::Say("so be it")]);
    let turn = stage.talk(Some(conversation), &long("pepper").repeat(2)).await;
    assert_eq!((turn.run.steps, stage.stored().await), (2, 2), "{:?}", turn.run.error);
    let asked = stage.puppet.asked();
    let material = &texts(&asked[6])[1].1;
    assert!(material.starts_with("[Summary so far]\nada likes tea with milk"), "{material}");
    assert!(material.contains("sugar sugar") && !material.contains("tea tea"));

    stage.house.runtime.delete_conversation(&stage.ada, conversation).await.unwrap();
    assert_eq!(stage.stored().await, 0, "what was said is erased, in short too");
}

#[tokio::test]
async fn a_summary_takes_none_of_the_agents_steps() {
    let stage = Stage::set(json!({"limits": {"max_steps": 2}})).await;
    let conversation = stage.filled().await;
    stage.puppet.then([Act::Say("in short")]).then([Act::Call("desk__run", json!({}))]).then([Act::Say("done")]);
    let turn = stage.talk(Some(conversation), &long("salt")).await;
    assert_eq!(
        (turn.run.status, turn.run.stop_reason, turn.run.steps),
        (RunStatus::Completed, Some(StopReason::Done), 3)
    );
    assert_eq!(turn.tool_calls.len(), 1);
}

#[tokio::test]
async fn without_a_summary_the_run_fails_and_nothing_is_kept() {
    let stage = Stage::set(json!({})).await;
    let conversation = stage.filled().await;
    stage.puppet.then([Act::Say(" ")]);
    let turn = stage.talk(Some(conversation), &long("salt")).await;
    assert_eq!(turn.run.error.unwrap().code, "context.not_summarized");
    assert_eq!((turn.run.steps, turn.run.usage.output_tokens), (1, 5), "what was said is billed");
    stage.puppet.then([Act::Refuse(401)]);
    let turn = stage.talk(Some(conversation), "short").await;
    assert!(turn.run.error.unwrap().code.starts_with("provider."));
    assert_eq!((turn.run.steps, stage.stored().await), (0, 0));

    // The conversation is as it was: the next turn goes on.
    stage.puppet.then([Act::Say("in short")]).then([Act::Say("done")]);
    let turn = stage.talk(Some(conversation), "short").await;
    assert_eq!((turn.run.status, stage.stored().await), (RunStatus::Completed, 1), "{:?}", turn.run.error);
}
