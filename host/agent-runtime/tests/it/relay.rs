//! Processes that hear each other over Redis. Skipped, and saying so, where no `redis-server` is installed.

use std::{process::Stdio, sync::Arc, time::Duration};

use agent_runtime::{EventCursor, Relay, RunEvent, RunStatus, Settings, StartRun};
use domain::{Ids, SystemIds};
use futures::StreamExt;
use kit::FakeExecutor;
use serde_json::json;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    sync::Notify,
};

use crate::{
    following::{Abandoned, Client, stored},
    house::{House, say},
    puppet::{Act, Puppet},
};

/// A Redis of its own, that ends with it.
struct Redis {
    port: u16,
    server: Child,
}

impl Redis {
    async fn start() -> Option<Redis> {
        // A port that was free a moment ago; whoever takes it in between fails this test, and no other.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Redis::on(port).await
    }

    async fn on(port: u16) -> Option<Redis> {
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                eprintln!("SKIPPED: no redis-server can be started here ({error}); install it to run this test");
                return None;
            }
        };
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
        Some(Redis { port, server })
    }

    fn relay(&self) -> Settings {
        let url = format!("redis://127.0.0.1:{}", self.port).into();
        Settings { relay: Some(Relay::new(&url, SystemIds.uuid()).unwrap()), ..Settings::default() }
    }
}

async fn puppet_agent(house: &House, tenant: &tenancy::Tenant) -> StartRun {
    house.agent(tenant, json!({"name": "p", "system_prompt": "", "model": "puppet/m"})).await;
    StartRun { agent: agent_config::agents::AgentRef::Name("p".parse().unwrap()), ..say("go") }
}

fn text(events: &[RunEvent]) -> String {
    events.iter().filter_map(|event| event.data["text"].as_str()).collect()
}

#[tokio::test]
async fn a_url_that_is_no_redis_is_refused() {
    for url in ["http://127.0.0.1", "redis", ""] {
        assert!(Relay::new(&url.to_owned().into(), SystemIds.uuid()).is_err(), "{url}");
    }
}

#[tokio::test]
async fn a_reader_elsewhere_hears_what_is_not_committed_yet() {
    let Some(redis) = Redis::start().await else { return };
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), redis.relay(), &puppet).await;
    let ada = house.tenant("ada").await;
    let held = Arc::new(Notify::new());
    puppet.then([Act::Say("One, "), Act::Say("two, "), Act::Hang(held.clone()), Act::Say("three.")]);
    let start = puppet_agent(&house, &ada).await;
    let run = house.runtime.start(&ada, start).await.unwrap().run;

    let elsewhere = house.another(redis.relay());
    let mut early = elsewhere.follow(&ada, run, EventCursor::default()).await.unwrap();
    let mut heard = Vec::new();
    while text(&heard) != "One, two, " {
        heard.push(early.next().await.unwrap().unwrap());
    }
    // And one who comes in the middle of a piece.
    let mut late = elsewhere.follow(&ada, run, "1.3".parse().unwrap()).await.unwrap();
    let mut heard_late = vec![late.next().await.unwrap().unwrap()];
    held.notify_one();
    heard.extend(early.map(Result::unwrap).collect::<Vec<_>>().await);
    heard_late.extend(late.map(Result::unwrap).collect::<Vec<_>>().await);
    assert_eq!((text(&heard).as_str(), text(&heard_late).as_str()), ("One, two, three.", ", two, three."));
    let last = heard.last().unwrap();
    assert_eq!((last.kind.as_str(), &last.data["message"]["content"]), ("run.completed", &json!("One, two, three.")));
    let ids: Vec<_> = heard.iter().map(RunEvent::id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[tokio::test]
async fn a_reader_elsewhere_follows_a_run_from_process_to_process() {
    let Some(redis) = Redis::start().await else { return };
    let Abandoned { house, ada, puppet, run, told, go_on } = Abandoned::set(redis.relay()).await;
    let elsewhere = house.another(redis.relay());
    let mut readers = Vec::new();
    for cut in 0..=told.len() {
        let mut client = Client::default();
        told[..cut].iter().for_each(|event| client.hear(event.clone()));
        let after = client.seen.last().map(RunEvent::id).unwrap_or_default();
        let mut events = elsewhere.follow(&ada, run, after).await.unwrap();
        while client.texts().last().is_none_or(|(_, text)| text != "It will nevér ") {
            client.hear(events.next().await.unwrap().unwrap());
        }
        readers.push((client, events));
    }
    let held = Arc::new(Notify::new());
    puppet.then([Act::Say("It is "), Act::Hang(held.clone()), Act::Say("1.")]);
    let second = house.another(redis.relay());
    second.look_for_work().await.unwrap();
    for (client, events) in &mut readers {
        while client.texts().last().is_none_or(|(_, text)| text != "It is ") {
            client.hear(events.next().await.unwrap().unwrap());
        }
        // The process that was silent says more, and nobody listens to it.
        go_on.notify_one();
    }
    held.notify_one();
    let turn = second.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
    assert_eq!(turn.run.status, RunStatus::Completed, "{:?}", turn.run.error);
    for (mut client, events) in readers {
        for event in events.map(Result::unwrap).collect::<Vec<_>>().await {
            client.hear(event);
        }
        assert_eq!(client.texts(), stored(&ada, run).await);
        assert_eq!(client.kinds().last(), Some(&"run.completed"));
    }
}

#[tokio::test]
async fn a_redis_that_goes_away_costs_time_and_nothing_else() {
    let Some(mut redis) = Redis::start().await else { return };
    let puppet = Puppet::start().await;
    let house = House::with_model(FakeExecutor::echo(), redis.relay(), &puppet).await;
    let ada = house.tenant("ada").await;
    let held = Arc::new(Notify::new());
    puppet.then([Act::Say("One, "), Act::Hang(held.clone()), Act::Say("two.")]);
    let start = puppet_agent(&house, &ada).await;
    let run = house.runtime.start(&ada, start).await.unwrap().run;
    let elsewhere = house.another(redis.relay());
    let mut events = elsewhere.follow(&ada, run, EventCursor::default()).await.unwrap();
    let mut heard = Vec::new();
    while text(&heard) != "One, " {
        heard.push(events.next().await.unwrap().unwrap());
    }
    redis.server.kill().await.unwrap();
    held.notify_one();
    heard.extend(events.map(Result::unwrap).collect::<Vec<_>>().await);
    assert_eq!(text(&heard), "One, two.");
    let turn = house.runtime.turn(&ada, run).await.unwrap();
    assert_eq!((turn.run.status, turn.message.unwrap().content.as_str()), (RunStatus::Completed, "One, two."));

    // Back again, it is used again; and what it has forgotten is in the database.
    let Some(_redis) = Redis::on(redis.port).await else { return };
    let held = Arc::new(Notify::new());
    puppet.then([Act::Say("Three, "), Act::Hang(held.clone()), Act::Say("four.")]);
    let again = StartRun { agent: agent_config::agents::AgentRef::Name("p".parse().unwrap()), ..say("go") };
    let run = house.runtime.start(&ada, again).await.unwrap().run;
    let told = async {
        let mut events = elsewhere.follow(&ada, run, EventCursor::default()).await.unwrap();
        let mut heard = Vec::new();
        let mut held = Some(held);
        while let Some(event) = events.next().await {
            heard.push(event.unwrap());
            // The first piece may have been lost while Redis was away: then only the commit tells.
            held.take_if(|_| heard.len() == 1).iter().for_each(|held| held.notify_one());
        }
        heard
    };
    assert_eq!(text(&told.await), "Three, four.");
}
