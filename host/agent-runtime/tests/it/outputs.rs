//! Answers that must fit the agent's `output_schema`, and what a developer is told of the steps.

use std::{sync::Arc, time::Duration};

use agent_runtime::{AgentRuntime, RunStatus, Settings, StartRun, StopReason, Turn, timeline};
use domain::RunId;
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::Tenant;
use tokio::sync::Notify;

use crate::{
    house::{House, say},
    puppet::{Act, Puppet},
};

const WAIT: Duration = Duration::from_secs(30);

/// An agent whose answers are `{"total": integer}`.
async fn clerk(house: &House, tenant: &Tenant, more: Value) -> StartRun {
    let schema = json!({"type": "object", "required": ["total"], "properties": {"total": {"type": "integer"}}});
    let mut agent = json!({"name": "adder", "system_prompt": "Add.", "model": "puppet/m", "output_schema": schema,
        "tools": [{"tool": "desk", "version": "latest"}]});
    domain::json::merge(&mut agent, more);
    house.agent(tenant, agent).await;
    StartRun { agent: agent_config::agents::AgentRef::Name("adder".parse().unwrap()), ..say("what is 1 and 1?") }
}

struct Stage {
    house: House,
    ada: Tenant,
    puppet: Puppet,
}

impl Stage {
    async fn set(settings: Settings) -> Stage {
        let puppet = Puppet::start().await;
        let house = House::with_model(FakeExecutor::echo(), settings, &puppet).await;
        let ada = house.tenant("ada").await;
        Stage { house, ada, puppet }
    }

    async fn ask(&self, more: Value) -> Turn {
        let start = clerk(&self.house, &self.ada, more).await;
        self.house.talk(&self.ada, start).await
    }
}

/// The last message of a request.
fn last_said(request: &Value) -> (String, String) {
    let last = request["messages"].as_array().unwrap().last().unwrap();
    let text = match &last["content"] {
        Value::String(text) => text.clone(),
        parts => parts[0]["text"].as_str().unwrap().to_owned(),
    };
    (last["role"].as_str().unwrap().to_owned(), text)
}

#[tokio::test]
async fn an_answer_that_never_fits_is_a_typed_failure() {
    let Stage { house, ada, puppet } = Stage::set(Settings::default()).await;
    let stage = Stage { house, ada, puppet };
    stage.puppet.then([Act::Say("two")]).then([Act::Say("{\"total\": \"two\"}")]);
    let turn = stage.ask(json!({})).await;
    let error = turn.run.error.unwrap();
    assert_eq!((turn.run.status, turn.run.stop_reason), (RunStatus::Failed, Some(StopReason::Error)));
    assert_eq!((error.code.as_str(), turn.run.steps), ("output.invalid", 2), "{error:?}");
    assert!(error.detail.contains("/total"), "{error:?}");
    assert_eq!((turn.output, turn.message.unwrap().content.as_str()), (None, "{\"total\": \"two\"}"));
    assert_eq!(stage.house.owed(&stage.ada).await, turn.run.cost.amount, "both answers are paid");
}

#[tokio::test]
async fn a_run_without_a_step_left_is_not_asked_again() {
    let stage = Stage::set(Settings::default()).await;
    stage.puppet.then([Act::Say("two")]);
    let turn = stage.ask(json!({"limits": {"max_steps": 1}})).await;
    assert_eq!((turn.run.error.unwrap().code.as_str(), turn.run.steps), ("output.invalid", 1));
}

#[tokio::test]
async fn an_answer_that_fits_is_told_as_json() {
    let stage = Stage::set(Settings::default()).await;
    stage.puppet.then([Act::Call("desk__run", json!({"n": 2}))]);
    stage.puppet.then([Act::Say("```json\n{\"of\": \"\\u0000\", "), Act::Say("\"total\": 2}\n```")]);
    let turn = stage.ask(json!({})).await;
    assert_eq!((turn.run.status, turn.run.steps), (RunStatus::Completed, 2), "{:?}", turn.run.error);
    assert_eq!(turn.output, Some(json!({"of": "\u{fffd}", "total": 2})), "a row holds no NUL");
    let again = stage.house.runtime.turn(&stage.ada, turn.run.id).await.unwrap();
    assert_eq!(again.output, turn.output);
    let events = stage.house.events(&stage.ada, turn.run.id, "0").await;
    assert_eq!(events.last().unwrap().data["output"], json!({"of": "\u{fffd}", "total": 2}));
    let system = stage.puppet.asked()[0]["messages"][0]["content"].to_string();
    assert!(system.contains("Add.") && system.contains("JSON Schema") && system.contains("integer"), "{system}");
}

#[tokio::test]
async fn a_model_is_asked_again_once_and_that_is_a_step() {
    let stage = Stage::set(Settings::default()).await;
    stage.puppet.then([Act::Say("It is 2.")]).then([Act::Say("{\"total\": 2}")]);
    let turn = stage.ask(json!({})).await;
    assert_eq!((turn.run.status, turn.run.steps), (RunStatus::Completed, 2), "{:?}", turn.run.error);
    assert_eq!(turn.output, Some(json!({"total": 2})));
    let (role, told) = last_said(&stage.puppet.asked()[1]);
    assert!(role == "user" && told.contains("not JSON"), "{role}: {told}");
    let kinds: Vec<String> =
        stage.house.events(&stage.ada, turn.run.id, "0").await.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "step.completed").count(), 2, "{kinds:?}");

    // What corrected the model is no word of the user's, and is not kept.
    stage.puppet.then([Act::Say("{\"total\": 3}")]);
    let more = StartRun {
        conversation: Some(turn.conversation_id),
        agent: agent_config::agents::AgentRef::Name("adder".parse().unwrap()),
        ..say("and 1?")
    };
    assert_eq!(stage.house.talk(&stage.ada, more).await.output, Some(json!({"total": 3})));
    let asked = stage.puppet.asked();
    let said = asked[2]["messages"].to_string();
    assert!(!said.contains("does not fit") && said.contains("It is 2."), "{said}");
}

/// Waits until the model was asked so often.
async fn asked(puppet: &Puppet, times: usize) {
    while puppet.asked().len() < times {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_process_that_takes_over_asks_again_only_once_in_all() {
    let silent = Settings { lease: Duration::ZERO, heartbeat: Duration::from_secs(3600), ..Settings::default() };
    let stage = Stage::set(silent).await;
    let Stage { house, ada, puppet } = &stage;
    puppet.then([Act::Say("It is 2.")]).then([Act::Hang(Arc::new(Notify::new()))]);
    let start = clerk(house, ada, json!({})).await;
    let run = house.runtime.start(ada, start).await.unwrap().run;
    asked(puppet, 2).await;
    puppet.then([Act::Say("It is two.")]);
    let second = house.second();
    second.look_for_work().await.unwrap();
    let turn = second.wait(ada, run, WAIT).await.unwrap();
    assert_eq!((turn.run.error.unwrap().code.as_str(), turn.run.steps), ("output.invalid", 2));
    let requests = puppet.asked();
    assert_eq!(last_said(&requests[1]), last_said(&requests[2]), "the same words as before");
}

async fn detail(tenant: &Tenant, run: RunId) -> Value {
    let mut tx = tenant.begin().await.unwrap();
    json!(timeline::detail(&mut tx, run).await.unwrap())
}

#[tokio::test]
async fn a_developer_sees_what_each_step_was_sent_asked_took_and_cost() {
    let silent = Settings { lease: Duration::ZERO, heartbeat: Duration::from_secs(3600), ..Settings::default() };
    let Stage { house, ada, puppet } = Stage::set(silent).await;
    puppet.then([Act::Refuse(503)]).then([Act::Call("desk__run", json!({"n": 1}))]);
    puppet.then([Act::Hang(Arc::new(Notify::new()))]);
    let model = json!({"provider": "puppet", "name": "m", "temperature": 0.5, "max_output_tokens": 90});
    let start = clerk(&house, &ada, json!({"model": model})).await;
    let run = house.runtime.start(&ada, start).await.unwrap().run;
    asked(&puppet, 3).await;
    puppet.then([Act::Say("{\"total\": 2}")]);
    let second: AgentRuntime = house.second();
    second.look_for_work().await.unwrap();
    assert_eq!(second.wait(&ada, run, WAIT).await.unwrap().run.status, RunStatus::Completed);

    let detail = detail(&ada, run).await;
    let [first, last] = detail["timeline"].as_array().unwrap().as_slice() else { panic!("{detail:#}") };
    let sent = |messages: u64| {
        let bytes = &[first, last][usize::from(messages > 1)]["sent"];
        json!({"messages": messages, "functions": 1, "temperature": 0.5, "max_output_tokens": 90, "output_schema": true,
            "system_bytes": bytes["system_bytes"], "message_bytes": bytes["message_bytes"]})
    };
    assert_eq!((&first["sent"], &last["sent"]), (&sent(1), &sent(3)), "{detail:#}");
    assert!(first["sent"]["system_bytes"].as_u64() > Some(100) && last["sent"]["message_bytes"].as_u64() > Some(100));
    let [failed] = first["failed_tries"].as_array().unwrap().as_slice() else { panic!("{first:#}") };
    assert_eq!((&failed["model"], &failed["code"]), (&json!("puppet/m"), &json!("provider.unavailable")));
    assert_eq!((&last["failed_tries"], &last["text_bytes"]), (&Value::Null, &json!(12)));
    let [call] = first["calls"].as_array().unwrap().as_slice() else { panic!("{first:#}") };
    assert_eq!((&call["tool"], &call["status"], &call["fuel_used"]), (&json!("desk"), &json!("ok"), &json!(1000)));
    assert_eq!(first["tool_calls"], json!([call["id"]]));
    assert!(call["cost"]["amount"] != json!("0") && call["argument_bytes"].as_u64() > Some(0), "{call:#}");
    let [resume] = detail["resumes"].as_array().unwrap().as_slice() else { panic!("{detail:#}") };
    assert_eq!(resume["attempt"], 2);
    let words = detail["timeline"].to_string();
    assert!(!words.contains("what is 1 and 1") && !words.contains("Add."), "sizes, not contents: {words}");
}
