//! Readers of a run's events: they may leave and come back anywhere, and the process that drives the run may die under
//! them. What they have in the end is what is stored.

use std::{sync::Arc, time::Duration};

use agent_runtime::{
    AgentRuntime, EventCursor, RunEvent, RunStatus, Settings, StartRun,
    approvals::{self, Decide, Decision},
};
use async_trait::async_trait;
use domain::{Clock, RunId, SystemClock};
use futures::StreamExt;
use kit::FakeExecutor;
use serde_json::{Value, json};
use tenancy::Tenant;
use tokio::sync::Notify;
use tool_api::{CallError, CallHost, Finished, Intent, Recording, Replayed, ToolCall, ToolExecutor};

use crate::{
    house::{House, say},
    puppet::{Act, Puppet},
};

/// A client as the contract wants it: it keeps what it is told, and drops what a resumed run makes void.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client {
    pub(crate) seen: Vec<RunEvent>,
}

impl Client {
    pub(crate) fn hear(&mut self, event: RunEvent) {
        if event.kind == "run.resumed" {
            let last = event.data["restarts_after"].as_u64().unwrap();
            let counts = |seen: &RunEvent| match seen.offset {
                None => u64::from(seen.seq) <= last,
                Some(_) => u64::from(seen.seq) < last,
            };
            self.seen.retain(counts);
        }
        assert!(self.seen.last().is_none_or(|last| last.id() < event.id()), "out of order: {event:?} {:#?}", self.seen);
        self.seen.push(event);
    }

    fn after(&self) -> EventCursor {
        self.seen.last().map(RunEvent::id).unwrap_or_default()
    }

    /// What each message says, by what came in pieces.
    pub(crate) fn texts(&self) -> Vec<(Value, String)> {
        let mut texts: Vec<(Value, String)> = Vec::new();
        for event in self.seen.iter().filter(|event| event.kind == "message.delta") {
            let (id, text) = (&event.data["message_id"], event.data["text"].as_str().unwrap());
            match texts.last_mut() {
                Some((last, so_far)) if last == id => so_far.push_str(text),
                _ => texts.push((id.clone(), text.to_owned())),
            }
        }
        texts
    }

    pub(crate) fn kinds(&self) -> Vec<&str> {
        self.seen.iter().map(|event| event.kind.as_str()).filter(|kind| *kind != "message.delta").collect()
    }

    /// Reads on until the run has ended.
    async fn read_on(&mut self, runtime: &AgentRuntime, tenant: &Tenant, run: RunId) {
        let events = runtime.follow(tenant, run, self.after()).await.unwrap();
        for event in events.map(Result::unwrap).collect::<Vec<_>>().await {
            self.hear(event);
        }
    }
}

/// What a run has said, as it is stored.
pub(crate) async fn stored(tenant: &Tenant, run: RunId) -> Vec<(Value, String)> {
    let mut tx = tenant.begin().await.unwrap();
    let conversation = agent_runtime::runs::get(&mut tx, run).await.unwrap().unwrap().conversation_id;
    let page = domain::page::PageRequest { limit: 100, after: None };
    let messages = conversation_store::messages::list(&mut tx, conversation, page).await.unwrap().data;
    let by_model = messages.into_iter().filter(|message| message.role == domain::message::Role::Assistant);
    by_model.filter(|message| !message.content.is_empty()).map(|message| (json!(message.id), message.content)).collect()
}

/// A run that tells of two steps, the second of which its process will never commit.
pub(crate) struct Abandoned {
    pub(crate) house: House,
    pub(crate) ada: Tenant,
    pub(crate) puppet: Puppet,
    pub(crate) run: RunId,
    /// All that the process has told.
    pub(crate) told: Vec<RunEvent>,
    /// Lets the model of the first process go on.
    pub(crate) go_on: Arc<Notify>,
}

impl Abandoned {
    pub(crate) async fn set(settings: Settings) -> Abandoned {
        let puppet = Puppet::start().await;
        let go_on = Arc::new(Notify::new());
        puppet.then([Act::Say("Let me "), Act::Say("lööok. "), Act::Call("desk__run", json!({"n": 1}))]);
        puppet.then([Act::Say("It "), Act::Say("will nevér "), Act::Hang(go_on.clone()), Act::Say("be known.")]);
        let silent = Settings { lease: Duration::ZERO, heartbeat: Duration::from_secs(3600), ..settings };
        let house = House::with_model(FakeExecutor::echo(), silent, &puppet).await;
        let ada = house.tenant("ada").await;
        let run = house.runtime.start(&ada, to_puppet(&house, &ada).await).await.unwrap().run;
        let events = house.runtime.follow(&ada, run, EventCursor::default()).await.unwrap();
        let mut told = Vec::new();
        let mut events = std::pin::pin!(events);
        while told.last().is_none_or(|last: &RunEvent| last.data["text"] != "will nevér ") {
            told.push(events.next().await.unwrap().unwrap());
        }
        Abandoned { house, ada, puppet, run, told, go_on }
    }
}

async fn to_puppet(house: &House, tenant: &Tenant) -> StartRun {
    let tools = json!([{"tool": "desk", "version": "latest"}]);
    house.agent(tenant, json!({"name": "p", "system_prompt": "", "model": "puppet/m", "tools": tools})).await;
    StartRun { agent: agent_config::agents::AgentRef::Name("p".parse().unwrap()), ..say("look") }
}

#[tokio::test]
async fn a_reader_comes_back_at_every_event_while_another_process_takes_the_run_over() {
    let Abandoned { house, ada, puppet, run, told, go_on } = Abandoned::set(Settings::default()).await;
    // One who stays with the process that has lost the run.
    let staying = house.runtime.follow(&ada, run, EventCursor::default()).await.unwrap();

    let second = house.second();
    puppet.then([Act::Say("It is "), Act::Say("1, "), Act::Say("sïr.")]);
    second.look_for_work().await.unwrap();
    let turn = second.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    assert_eq!((turn.run.status, turn.run.steps), (RunStatus::Completed, 2), "{:?}", turn.run.error);
    let expected = stored(&ada, run).await;
    assert_eq!(expected.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["Let me lööok. ", "It is 1, sïr."]);

    for cut in 0..=told.len() {
        let mut client = Client::default();
        told[..cut].iter().for_each(|event| client.hear(event.clone()));
        let mut whole = client.clone();
        whole.read_on(&second, &ada, run).await;
        assert_eq!(whole.texts(), expected, "left after {cut} events");
        assert_eq!(
            whole.kinds(),
            [
                "run.started",
                "tool_call.started",
                "tool_call.completed",
                "step.completed",
                "run.resumed",
                "step.completed",
                "run.completed"
            ],
            "left after {cut} events"
        );
        // And leaves again, at every event of the rest.
        let events = second.follow(&ada, run, client.after()).await.unwrap();
        for event in events.map(Result::unwrap).collect::<Vec<_>>().await {
            client.hear(event);
            let mut again = client.clone();
            again.read_on(&second, &ada, run).await;
            assert_eq!((again.texts(), again.kinds()), (whole.texts(), whole.kinds()), "at {}", client.after());
        }
    }

    // The process that was silent says more, cannot commit it, and its reader hears what counts.
    go_on.notify_one();
    let mut client = Client::default();
    for event in staying.map(Result::unwrap).collect::<Vec<_>>().await {
        client.hear(event);
    }
    assert_eq!(client.texts(), expected);
    assert_eq!(client.kinds().last(), Some(&"run.completed"));
    let last = &client.seen.last().unwrap().data;
    assert_eq!(last["message"]["content"], "It is 1, sïr.");
}

#[tokio::test]
async fn readers_at_every_event_follow_the_run_into_the_process_that_goes_on() {
    let Abandoned { house, ada, puppet, run, told, .. } = Abandoned::set(Settings::default()).await;
    let second = house.second();
    let held = Arc::new(Notify::new());
    puppet.then([Act::Say("It is "), Act::Hang(held.clone()), Act::Say("1.")]);
    second.look_for_work().await.unwrap();
    // They come while the second process is in the middle of the step that the first one told of.
    let mut readers = Vec::new();
    for cut in 0..=told.len() {
        let mut client = Client::default();
        told[..cut].iter().for_each(|event| client.hear(event.clone()));
        let mut events = second.follow(&ada, run, client.after()).await.unwrap();
        while client.seen.last().is_none_or(|last| last.data["text"] != "It is ") {
            client.hear(events.next().await.unwrap().unwrap());
        }
        readers.push((cut, client, events));
    }
    held.notify_one();
    let turn = second.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
    let expected = stored(&ada, run).await;
    for (cut, mut client, events) in readers {
        for event in events.map(Result::unwrap).collect::<Vec<_>>().await {
            client.hear(event);
        }
        assert_eq!(client.texts(), expected, "left after {cut} events");
        assert_eq!(client.kinds().last(), Some(&"run.completed"));
    }
}

#[tokio::test]
async fn a_run_that_ends_elsewhere_has_an_end_for_every_reader() {
    let Abandoned { house, ada, run, told, .. } = Abandoned::set(Settings::default()).await;
    let second = house.second();
    let mut tx = ada.begin().await.unwrap();
    sqlx::query("UPDATE run SET cancel_requested = true WHERE run_id = $1")
        .bind(run.uuid())
        .execute(tx.conn())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    second.look_for_work().await.unwrap();
    second.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    for cut in 0..=told.len() {
        let mut client = Client::default();
        told[..cut].iter().for_each(|event| client.hear(event.clone()));
        client.read_on(&second, &ada, run).await;
        assert_eq!(client.kinds().last(), Some(&"run.cancelled"), "left after {cut} events");
        assert_eq!(client.texts(), stored(&ada, run).await, "left after {cut} events");
    }
}

/// Every place at which a reader of `events` may leave, and what it has by then.
fn leaving(events: &[RunEvent]) -> impl Iterator<Item = Client> {
    (0..=events.len()).map(|cut| {
        let mut client = Client::default();
        events[..cut].iter().for_each(|event| client.hear(event.clone()));
        client
    })
}

#[tokio::test]
async fn a_reader_comes_back_at_every_event_of_a_run_that_waited_for_an_approval() {
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), Settings::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    let tools = json!([{"tool": "desk", "version": "latest", "approval": "always"}]);
    house.agent(&ada, json!({"name": "p", "system_prompt": "", "model": "puppet/m", "tools": tools})).await;
    puppet.then([Act::Say("May "), Act::Say("I? "), Act::Call("desk__run", json!({"n": 1}))]).then([Act::Say("Done.")]);
    let start = StartRun { agent: agent_config::agents::AgentRef::Name("p".parse().unwrap()), ..say("go") };
    let run = house.runtime.start(&ada, start).await.unwrap().run;
    let events = house.runtime.follow(&ada, run, EventCursor::default()).await.unwrap();
    let mut told = Vec::new();
    let mut staying = std::pin::pin!(events);
    while told.last().is_none_or(|last: &RunEvent| last.kind != "approval.requested") {
        told.push(staying.next().await.unwrap().unwrap());
    }
    let mut tx = ada.begin().await.unwrap();
    let call = told.last().unwrap().data["id"].as_str().unwrap().parse().unwrap();
    let decide = Decide { decision: Decision::Approve, arguments: None, reason: None, decided_by: None, api_key: None };
    approvals::decide(&mut tx, run, call, decide, SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
    let second = house.second();
    second.look_for_work().await.unwrap();
    told.extend(staying.map(Result::unwrap).collect::<Vec<_>>().await);
    let expected = stored(&ada, run).await;
    assert_eq!(expected.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["May I? ", "Done."]);
    let mut whole = Client::default();
    told.iter().for_each(|event| whole.hear(event.clone()));
    assert_eq!(whole.kinds().last(), Some(&"run.completed"));
    for mut client in leaving(&told) {
        let left = client.seen.len();
        client.read_on(&second, &ada, run).await;
        assert_eq!((client.texts(), client.kinds()), (expected.clone(), whole.kinds()), "left after {left} events");
    }
}

/// Sends a request, and hangs.
struct Sends(Arc<Notify>);

#[async_trait]
impl ToolExecutor for Sends {
    async fn call(&self, _: ToolCall, host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        let intent = Intent { method: "POST".into(), target: "https://bank.example/".into(), idempotency_header: true };
        host.sending(intent).await.unwrap();
        self.0.notify_one();
        std::future::pending().await
    }

    async fn replay(&self, _: ToolCall, _: Arc<Recording>) -> Result<Replayed, CallError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_reply_that_is_kept_over_a_crash_is_told_again_and_the_model_is_not_asked_again() {
    let puppet = Puppet::start().await;
    let sent = Arc::new(Notify::new());
    let silent = Settings { lease: Duration::ZERO, heartbeat: Duration::from_secs(3600), ..Settings::default() };
    let house = House::with_model(Sends(sent.clone()), silent, &puppet).await;
    let ada = house.tenant("ada").await;
    puppet.then([Act::Say("I "), Act::Say("pay. "), Act::Call("desk__run", json!({"n": 1}))]);
    let run = house.runtime.start(&ada, to_puppet(&house, &ada).await).await.unwrap().run;
    let mut events = house.runtime.follow(&ada, run, EventCursor::default()).await.unwrap();
    sent.notified().await;
    let mut told = Vec::new();
    while told.last().is_none_or(|last: &RunEvent| last.kind != "tool_call.started") {
        told.push(events.next().await.unwrap().unwrap());
    }
    puppet.then([Act::Say("Paid.")]);
    let second = house.process(Arc::new(FakeExecutor::echo()), Settings::default());
    second.look_for_work().await.unwrap();
    let turn = second.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    assert_eq!((turn.run.status, puppet.asked().len()), (RunStatus::Completed, 2), "{:?}", turn.run.error);
    let expected = stored(&ada, run).await;
    assert_eq!(expected.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["I pay. ", "Paid."]);
    for mut client in leaving(&told) {
        let left = client.seen.len();
        client.read_on(&second, &ada, run).await;
        assert_eq!(client.texts(), expected, "left after {left} events");
        let started = client.kinds().into_iter().filter(|kind| *kind == "tool_call.started").count();
        assert_eq!((started, client.kinds().last()), (1, Some(&"run.completed")), "left after {left} events");
    }
}
