//! What a call is about to send is noted before it connects, or it does not connect.

use std::sync::Arc;

use serde_json::{Value, json};
use tool_api::{CallHost, Intent, ToolExecutor};

use super::{ask, grant, http_calls, jar, reports, send, upstream::HELLO, upstream::Upstream};
use crate::host::Host;

fn keyed(upstream: &Upstream) -> Value {
    let mut granted = grant(&upstream.authority());
    granted["idempotency_header"] = "Idempotency-Key".into();
    granted
}

#[tokio::test]
async fn what_cannot_be_noted_is_not_sent() {
    let upstream = Upstream::answering(HELLO).await;
    let jar = jar(&[&upstream]);
    let client = jar.load("http_client").await;
    let host: Arc<dyn CallHost> = Arc::new(Host { is_broken: true, ..Host::default() });
    let call = send(client, &[ask(&upstream, "/")], &[grant(&upstream.authority())]);
    let finished = jar.executor.call(call, host).await.unwrap();
    assert!(reports(&finished)[0]["error"].as_str().unwrap().contains("InternalError"), "{finished:?}");
    let [told] = http_calls(&finished).try_into().unwrap();
    assert!(told.error.as_ref().unwrap().contains("was not sent"), "{told:?}");
    assert_eq!(upstream.accepted(), 0);
}

#[tokio::test]
async fn a_call_notes_its_first_request_and_the_first_without_its_key() {
    let (with, without) = (Upstream::answering(HELLO).await, Upstream::answering(HELLO).await);
    let jar = jar(&[&with, &without]);
    let client = jar.load("http_client").await;
    let intent = |upstream: &Upstream, idempotency_header| Intent {
        method: "GET".into(),
        target: format!("http://{}/a", upstream.authority()),
        idempotency_header,
    };
    let denied = json!({"scheme": "http", "authority": "elsewhere.example", "path": "/"});
    let (first, second) = (ask(&with, "/a?q=1"), ask(&without, "/a"));
    for (asks, expected) in [
        (vec![denied], vec![]),
        (vec![first.clone(), first.clone()], vec![intent(&with, true)]),
        (vec![second.clone(), second.clone()], vec![intent(&without, false)]),
        (vec![first.clone(), second.clone(), second.clone()], vec![intent(&with, true), intent(&without, false)]),
        (vec![second, first], vec![intent(&without, false)]),
    ] {
        let host = Arc::new(Host::default());
        let call = send(client, &asks, &[keyed(&with), grant(&without.authority())]);
        let finished = jar.executor.call(call, Arc::clone(&host) as Arc<dyn CallHost>).await.unwrap();
        assert_eq!(reports(&finished).len(), asks.len());
        assert_eq!(*host.intents.lock().unwrap(), expected, "{asks:?}");
    }
}
