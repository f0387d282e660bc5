//! A notice is sent until it has arrived, by one process at a time, or is given up.

use super::*;

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
