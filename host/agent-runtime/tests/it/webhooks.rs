//! Webhooks are told of what happened, signed, until they have heard it; and of nothing else.

mod receiver;

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
async fn a_notice_is_sent_until_it_arrives() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, secret) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    post.receiver.answer("503 Service Unavailable", "retry-after: 120");
    post.tell(&ada, EventKind::BudgetThreshold, json!({"spent": "1"})).await;
    post.send().await;
    let failing = post.seen(&ada, &webhook).await.failing_since;
    assert_eq!(failing, Some(post.clock.now()));
    post.clock.advance(Duration::from_secs(119));
    post.send().await;
    assert_eq!(post.receiver.heard().len(), 1, "the receiver has asked for two minutes");
    post.clock.advance(Duration::from_secs(1));
    post.receiver.answer("302 Found", "location: http://localhost/");
    post.send().await;
    let delivery = post.deliveries(&ada, &webhook).await.remove(0);
    let attempt = delivery.last_attempt.unwrap();
    assert_eq!((delivery.attempts, attempt.response_status), (2, Some(302)));
    assert!(attempt.error.unwrap().contains("redirects are not followed"));
    post.clock.advance(6 * MINUTE);
    post.receiver.answer("204 No Content", "x: y");
    post.send().await;
    let heard = post.receiver.heard();
    assert_eq!(heard.len(), 3);
    let ids: BTreeSet<String> = heard.iter().map(receiver::Heard::id).collect();
    let times: BTreeSet<String> = heard.iter().map(|heard| heard.headers["webhook-timestamp"].clone()).collect();
    assert_eq!((ids.len(), times.len()), (1, 3), "the same notice, signed at its own time");
    heard.iter().for_each(|heard| assert_eq!(heard.verified(&secret)["data"], json!({"spent": "1"})));
    assert_eq!(post.deliveries(&ada, &webhook).await[0].status, DeliveryStatus::Delivered);
    assert_eq!(post.seen(&ada, &webhook).await.failing_since, None);
}

#[tokio::test]
async fn processes_side_by_side_send_each_notice_once() {
    let post = Post::new().await;
    let (ada, bob) = (post.house.tenant("ada").await, post.house.tenant("bob").await);
    for tenant in [&ada, &bob] {
        post.webhook(tenant, &[EventKind::BudgetThreshold]).await;
        for number in 0..20 {
            post.tell(tenant, EventKind::BudgetThreshold, json!({ "number": number })).await;
        }
    }
    let others = [post.another_sender(), post.another_sender()];
    let round = async |sender: &WebhookSender| {
        for _ in 0..4 {
            sender.send_due().await.unwrap();
        }
    };
    tokio::join!(round(&post.sender), round(&others[0]), round(&others[1]));
    let ids: Vec<String> = post.receiver.heard().iter().map(receiver::Heard::id).collect();
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (40, 40));
}

#[tokio::test]
async fn a_receiver_that_fails_comes_after_those_that_answer() {
    let post = Post::new().await;
    let (ada, bob) = (post.house.tenant("ada").await, post.house.tenant("bob").await);
    let mut failing = Vec::new();
    for _ in 0..3 {
        let (webhook, _) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
        failing.push(webhook.id);
    }
    post.receiver.answer("500 Internal Server Error", "x: y");
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    post.send().await;
    post.clock.advance(DAY);
    let (healthy, _) = post.webhook(&bob, &[EventKind::BudgetThreshold]).await;
    post.tell(&bob, EventKind::BudgetThreshold, json!({})).await;
    let due = async |each, rows| {
        let due = post.house.db.db.due_webhooks(post.clock.now(), each, rows).await.unwrap();
        due.into_iter().map(|(_, webhook, failing)| (webhook, failing)).collect::<Vec<_>>()
    };
    assert_eq!(due(8, 1).await, [(healthy.id, false)], "the others have waited longer");
    let all = due(8, 8).await;
    assert!(all.len() == 4 && all[1..].iter().all(|(webhook, is_failing)| *is_failing && failing.contains(webhook)));
    assert_eq!(due(2, 8).await.len(), 3, "of one tenant not more than so many");
}

#[tokio::test]
async fn a_process_that_dies_leaves_its_notices_to_the_next() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, _) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    let now = post.clock.now();
    let mut tx = ada.begin().await.unwrap();
    let key = kit::master_key();
    let claimed = deliveries::claim(&mut tx, &key, webhook.id, (now, now.plus(MINUTE)), 10).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    post.send().await;
    assert_eq!(post.receiver.heard().len(), 0, "it is another's");
    post.clock.advance(MINUTE);
    post.send().await;
    assert_eq!(post.receiver.heard().len(), 1);

    // The dead one was only slow: its verdict comes too late.
    let late = Attempted {
        at: now,
        duration: MINUTE,
        response_status: None,
        after: After::Again { error: "no answer".into(), at: now },
    };
    let mut tx = ada.begin().await.unwrap();
    assert!(!deliveries::settle(&mut tx, webhook.id, claimed.1[0].id, claimed.1[0].attempt, &late).await.unwrap());
    drop(tx);
    assert_eq!(post.deliveries(&ada, &webhook).await[0].status, DeliveryStatus::Delivered);
}

#[tokio::test]
async fn a_notice_that_never_arrives_is_given_up_and_can_be_sent_again() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, secret) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    post.receiver.answer("500 Internal Server Error", "x: y");
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    post.send_for(&ada, &webhook).await;
    assert_eq!(post.receiver.heard().len(), 10);
    let given_up = post.deliveries(&ada, &webhook).await.remove(0);
    assert_eq!((given_up.status, given_up.attempts), (DeliveryStatus::Failed, 10));

    post.receiver.answer("200 OK", "x: y");
    let mut tx = ada.begin().await.unwrap();
    let again = deliveries::redeliver(&mut tx, webhook.id, given_up.id, post.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(again.status, DeliveryStatus::Pending);
    post.send().await;
    let heard = post.receiver.heard();
    assert_eq!((heard.len(), heard[10].id()), (11, given_up.id.to_string()));
    heard[10].verified(&secret);
    assert_eq!(post.deliveries(&ada, &webhook).await[0].status, DeliveryStatus::Delivered);
}

#[tokio::test]
async fn a_webhook_at_which_nothing_arrives_is_disabled() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, _) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    post.receiver.answer("500 Internal Server Error", "x: y");
    for _ in 0..7 {
        post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
        post.send().await;
        post.clock.advance(DAY);
    }
    let disabled = post.seen(&ada, &webhook).await;
    assert!(!disabled.enabled);
    assert_eq!(disabled.disabled_reason.as_deref(), Some("nothing has arrived for 5 days"));
    let sent = post.receiver.heard().len();
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    post.send().await;
    assert_eq!(post.receiver.heard().len(), sent, "nothing is sent to it any more");
    let mut tx = ada.begin().await.unwrap();
    let newest = post.deliveries(&ada, &webhook).await.remove(0);
    let refused = deliveries::redeliver(&mut tx, webhook.id, newest.id, post.clock.now()).await.unwrap_err();
    assert_eq!(refused.code(), "webhook.disabled");
    drop(tx);

    // Enabled again, it hears what waited.
    post.receiver.answer("200 OK", "x: y");
    let waiting = post.deliveries(&ada, &webhook).await;
    let waiting = waiting.iter().filter(|delivery| delivery.status == DeliveryStatus::Pending).count();
    assert!(waiting > 0);
    let webhook = post.change(&ada, &webhook, enabled(true)).await;
    assert_eq!((webhook.failing_since, webhook.disabled_reason.clone()), (None, None));
    post.send().await;
    assert_eq!(post.receiver.heard().len(), sent + waiting);
}

#[tokio::test]
async fn a_receiver_that_is_gone_disables_its_webhook() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, _) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    post.receiver.answer("410 Gone", "x: y");
    post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
    post.send().await;
    assert!(!post.seen(&ada, &webhook).await.enabled);
    assert_eq!(post.deliveries(&ada, &webhook).await[0].status, DeliveryStatus::Failed);
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_one_before_it_for_a_day() {
    let post = Post::new().await;
    let ada = post.house.tenant("ada").await;
    let (webhook, old) = post.webhook(&ada, &[EventKind::BudgetThreshold]).await;
    assert!(old.expose_secret().starts_with("whsec_"));
    let rotate = async || {
        let mut tx = ada.begin().await.unwrap();
        let rotated = webhooks::rotate(&mut tx, &kit::master_key(), webhook.id, post.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        rotated
    };
    let hear = async || {
        post.tell(&ada, EventKind::BudgetThreshold, json!({})).await;
        post.send().await;
        post.receiver.heard().pop().unwrap()
    };
    let (shown, new) = rotate().await;
    assert_eq!(shown.previous_secret_until, Some(post.clock.now().plus(DAY)));
    let heard = hear().await;
    assert!(heard.verifies(&old) && heard.verifies(&new));
    post.clock.advance(DAY);
    let heard = hear().await;
    assert!(!heard.verifies(&old) && heard.verifies(&new));

    // Twice: the one that leaked is gone at once.
    let (_, second) = rotate().await;
    let (_, third) = rotate().await;
    let heard = hear().await;
    assert!(!heard.verifies(&new) && heard.verifies(&second) && heard.verifies(&third));
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
