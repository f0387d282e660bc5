//! Webhooks are told of what happened, signed, until they have heard it; and of nothing else.

mod receiver;
mod sending;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use agent_config::webhooks::{
    self, Delivery, DeliveryStatus, EventKind, Webhook, WebhookChange, WebhookSpec,
    deliveries::{self, After, Attempted},
};
use agent_runtime::{
    RunStatus, StartRun,
    webhooks::{SenderParts, WebhookSender, notify},
};
use domain::{
    Clock, ExposeSecret, Problem, SecretString, SystemClock, SystemIds, page::PageRequest, time::ManualClock,
};
use egress::Egress;
use kit::FakeExecutor;
use receiver::Receiver;
use serde_json::{Value, json};
use tenancy::Tenant;

use crate::house::{House, say};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A house with a receiver outside, and a process that sends.
struct Post {
    house: House,
    clock: Arc<ManualClock>,
    receiver: Receiver,
    sender: WebhookSender,
}

impl Post {
    async fn new() -> Post {
        let house = House::new(FakeExecutor::echo()).await;
        // Ahead of the runs, which go by the system's clock: what they tell is due.
        let clock = Arc::new(ManualClock::at(SystemClock.now().plus(MINUTE)));
        let receiver = Receiver::start().await;
        let sender = sender(&house, &clock, Egress::new(vec![receiver.address]).unwrap());
        Post { house, clock, receiver, sender }
    }

    fn another_sender(&self) -> WebhookSender {
        sender(&self.house, &self.clock, Egress::new(vec![self.receiver.address]).unwrap())
    }

    async fn webhook(&self, tenant: &Tenant, events: &[EventKind]) -> (Webhook, SecretString) {
        let spec = WebhookSpec { url: self.receiver.url(), events: events.iter().copied().collect() };
        let mut tx = tenant.begin().await.unwrap();
        let made = webhooks::create(&mut tx, &kit::master_key(), spec, &SystemIds, self.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        made
    }

    async fn change(&self, tenant: &Tenant, webhook: &Webhook, change: WebhookChange) -> Webhook {
        let mut tx = tenant.begin().await.unwrap();
        let webhook = webhooks::change(&mut tx, webhook.id, change, self.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        webhook
    }

    /// Something happened.
    async fn tell(&self, tenant: &Tenant, event: EventKind, data: Value) {
        let mut tx = tenant.begin().await.unwrap();
        notify(&mut tx, event, None, data, &SystemIds, self.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn deliveries(&self, tenant: &Tenant, webhook: &Webhook) -> Vec<Delivery> {
        let mut tx = tenant.begin().await.unwrap();
        let page = PageRequest { limit: 100, after: None };
        deliveries::list(&mut tx, webhook.id, None, page).await.unwrap().data
    }

    async fn seen(&self, tenant: &Tenant, webhook: &Webhook) -> Webhook {
        let mut tx = tenant.begin().await.unwrap();
        webhooks::get(&mut tx, webhook.id).await.unwrap()
    }

    async fn send(&self) {
        self.sender.send_due().await.unwrap();
    }

    /// Sends as time passes, until nothing is left to send.
    async fn send_for(&self, tenant: &Tenant, webhook: &Webhook) {
        loop {
            self.send().await;
            let left = self.deliveries(tenant, webhook).await;
            let Some(next) = left.iter().filter_map(|delivery| delivery.next_attempt_at).min() else { return };
            self.clock.advance(next.since(self.clock.now()));
        }
    }
}

fn sender(house: &House, clock: &Arc<ManualClock>, egress: Egress) -> WebhookSender {
    WebhookSender::new(SenderParts {
        db: house.db.db.clone(),
        egress,
        master_key: kit::master_key(),
        clock: clock.clone(),
        ids: Arc::new(SystemIds),
    })
}

fn enabled(enabled: bool) -> WebhookChange {
    WebhookChange { enabled: Some(enabled), ..WebhookChange::default() }
}

#[tokio::test]
async fn nobody_is_told_what_is_not_theirs_to_hear() {
    let post = Post::new().await;
    let (ada, bob) = (post.house.tenant("ada").await, post.house.tenant("bob").await);
    let (other_event, _) = post.webhook(&ada, &[EventKind::RunFailed]).await;
    let (off, _) = post.webhook(&ada, &[EventKind::RunCompleted]).await;
    post.change(&ada, &off, enabled(false)).await;
    let (strangers, _) = post.webhook(&bob, &[EventKind::RunCompleted]).await;
    post.house.chat(&ada, "hello").await;

    // What was not committed did not happen.
    let (webhook, _) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    let mut tx = ada.begin().await.unwrap();
    notify(&mut tx, EventKind::BudgetThreshold, None, json!({}), &SystemIds, post.clock.now()).await.unwrap();
    drop(tx);

    post.send().await;
    for (tenant, webhook) in [(&ada, &other_event), (&ada, &off), (&bob, &strangers), (&ada, &webhook)] {
        assert_eq!(post.deliveries(tenant, webhook).await, [], "{:?}", webhook.events);
    }
    assert_eq!(post.receiver.heard().len(), 0);

    let mut tx = bob.begin().await.unwrap();
    let refused = deliveries::list(&mut tx, off.id, None, PageRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), "webhook.not_found");
}

#[tokio::test]
async fn a_private_address_is_not_told() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, _) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    sender(&post.house, &post.clock, Egress::new(Vec::new()).unwrap()).send_due().await.unwrap();
    let delivery = post.deliveries(&ada, &webhook).await.remove(0);
    assert_eq!((delivery.status, delivery.attempts), (DeliveryStatus::Pending, 1));
    let attempt = delivery.last_attempt.unwrap();
    assert!(attempt.error.as_ref().is_some_and(|error| error.contains("public address")), "{attempt:?}");
    assert_eq!((attempt.response_status, post.receiver.connections()), (None, 0));
}

#[tokio::test]
async fn a_run_is_told_with_its_answer() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, secret) = post.webhook(&ada, &[EventKind::RunCompleted]).await;
    let turn = post.house.chat(&ada, "hello").await;
    post.send().await;
    let heard = post.receiver.heard().remove(0);
    let told = heard.verified(&secret);
    assert_eq!(
        (told["type"].as_str(), told["data"]["run"]["id"].as_str()),
        (Some("run.completed"), Some(turn.run.id.to_string().as_str()))
    );
    assert_eq!(told["data"]["run"]["status"], "completed");
    assert_eq!(told["data"]["message"]["content"], json!(turn.message.unwrap().content));
    assert!(told["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')));
    assert!(!heard.with_body("{}").verifies(&secret), "another body");
    assert!(!heard.verifies(&SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")), "another secret");

    let delivery = post.deliveries(&ada, &webhook).await.remove(0);
    assert_eq!((delivery.status, delivery.attempts), (DeliveryStatus::Delivered, 1));
    assert_eq!((delivery.last_attempt.unwrap().response_status, delivery.id.to_string()), (Some(200), heard.id()));
    post.clock.advance(DAY);
    post.send().await;
    assert_eq!(post.receiver.heard().len(), 1, "it is told once");
}

#[tokio::test]
async fn every_end_of_a_run_and_every_verdict_is_told() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let all =
        [EventKind::RunFailed, EventKind::RunCancelled, EventKind::ToolVersionReady, EventKind::ToolVersionRejected];
    let (_, secret) = post.webhook(&ada, &all).await;
    let spec = json!({"name": "lost", "system_prompt": "", "model": {"provider": "nowhere", "name": "x"}});
    post.house.agent(&ada, spec).await;
    let lost = domain::AgentName::try_from("lost".to_owned()).map(agent_config::AgentRef::Name).unwrap();
    post.house.talk(&ada, StartRun { agent: lost, ..say("hello") }).await;
    post.house.push(&ada, "another component").await;
    post.house.push(&ada, "bad component").await;
    post.send().await;
    let mut told: Vec<Value> = post.receiver.heard().iter().map(|heard| heard.verified(&secret)).collect();
    told.sort_by_key(|told| told["type"].to_string());
    let kinds: Vec<&str> = told.iter().map(|told| told["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["run.failed", "tool_version.ready", "tool_version.rejected"]);
    assert_eq!(told[0]["data"]["run"]["error"]["code"], "provider.unknown");
    assert_eq!((&told[1]["data"]["tool"], &told[1]["data"]["status"]), (&json!("desk"), &json!("ready")));
    assert_eq!(told[2]["data"]["rejection"]["code"], "component.not_wasm");
}

#[tokio::test]
async fn whoever_may_allow_a_call_is_told_that_it_waits() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, secret) = post.webhook(&ada, &[EventKind::ApprovalRequested]).await;
    let agent = post.house.bind(&ada, "careful", json!({"approval": "always"})).await;
    let turn = post.house.talk(&ada, StartRun { agent, ..say("/desk__run {\"n\": null}") }).await;
    assert_eq!(turn.run.status, RunStatus::WaitingForApproval);
    post.send().await;
    let told = post.receiver.heard().remove(0).verified(&secret);
    let (data, pending) = (&told["data"], &turn.run.pending_approvals[0]);
    assert_eq!((&told["type"], &data["run_id"]), (&json!("approval.requested"), &json!(turn.run.id)));
    assert_eq!(
        (&data["id"], &data["tool"], &data["arguments"]),
        (&json!(pending.id), &json!("desk"), &json!({"n": null}))
    );
    assert_eq!(
        (&data["conversation_id"], &data["expires_at"]),
        (&json!(turn.conversation_id), &json!(pending.expires_at))
    );
    assert_eq!(post.deliveries(&ada, &webhook).await.len(), 1);
}

#[tokio::test]
async fn what_is_erased_is_not_told() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, _) = post.webhook(&ada, &[EventKind::RunCompleted, EventKind::BudgetThreshold]).await;
    let turn = post.house.chat(&ada, "a secret between us").await;
    assert_eq!(post.deliveries(&ada, &webhook).await.len(), 1);
    post.house.runtime.delete_conversation(&ada, turn.conversation_id).await.unwrap();
    assert_eq!(post.deliveries(&ada, &webhook).await, []);

    // And after a month it is forgotten.
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    post.send().await;
    post.clock.advance(31 * DAY);
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    post.send().await;
    assert_eq!(post.deliveries(&ada, &webhook).await.len(), 1);
}

#[tokio::test]
async fn a_webhook_has_an_address_events_and_company() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let key = kit::master_key();
    let create = async |url: &str, events: &[EventKind]| {
        let spec = WebhookSpec { url: url.into(), events: events.iter().copied().collect() };
        let mut tx = ada.begin().await.unwrap();
        let made = webhooks::create(&mut tx, &key, spec, &SystemIds, post.clock.now()).await?;
        tx.commit().await.unwrap();
        Ok::<_, webhooks::WebhookError>(made)
    };
    let events = [EventKind::RunCompleted];
    assert_eq!(create("", &events).await.unwrap_err().code(), "webhook.bad_url");
    assert_eq!(create("https://a b", &events).await.unwrap_err().code(), "webhook.bad_url");
    assert_eq!(create("https://a", &[]).await.unwrap_err().code(), "webhook.no_events");
    for _ in 0..webhooks::WEBHOOKS_MAX {
        create("https://example.com/hook", &events).await.unwrap();
    }
    assert_eq!(create("https://example.com/hook", &events).await.unwrap_err().code(), "webhook.too_many");
}
