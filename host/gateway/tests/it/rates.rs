//! Requests a minute.

use std::time::Instant;

use domain::SecretString;
use gateway::RedisUrl;
use serde_json::json;

use crate::app::{App, Client};

/// A tenant that may make so many requests a minute, and two of its keys: one for everything, one bound to an end user.
async fn slow(app: &App, requests_per_minute: u32) -> (Client, Client) {
    let ada = app.tenant("ada").await;
    let bound = json!({"name": "browser", "scopes": ["runs:read"], "external_user_id": "ada"});
    let bound = app.client(&ada.post("/v1/api-keys", bound).await.created());
    let id = ada.get("/v1/tenant").await.ok()["id"].as_str().unwrap().to_owned();
    let overrides = json!({"overrides": {"requests_per_minute": requests_per_minute}});
    app.operator().patch(&format!("/operator/v1/tenants/{id}"), overrides).await.ok();
    (ada, bound)
}

fn told<'a>(answer: &'a crate::app::Answered, name: &str) -> &'a str {
    answer.headers[name].to_str().unwrap()
}

#[tokio::test]
async fn a_tenant_makes_no_more_requests_than_its_plan_allows() {
    let app = App::start().await;
    let (ada, _) = slow(&app, 3).await;
    let bob = app.tenant("bob").await;
    // Three were made before the plan was small: its debt is what they cost then.
    let mut refused = None;
    for _ in 0..4 {
        let answer = ada.get("/v1/runs").await;
        assert_eq!(told(&answer, "ratelimit-policy"), "\"default\";q=3;w=60");
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("the fourth of three is refused");
    refused.problem(429, "rate_limit.exceeded");
    assert!(told(&refused, "ratelimit").starts_with("\"default\";r=0;t="));
    let seconds: u64 = told(&refused, "retry-after").parse().unwrap();
    assert!((1..=20).contains(&seconds), "{seconds}");
    let theirs = bob.get("/v1/runs").await;
    theirs.ok();
    assert!(told(&theirs, "ratelimit").starts_with("\"default\";r=119;t="), "{:?}", theirs.headers);
    // Who says nothing true is not counted, nor told.
    let nobody = Client { key: "x".into(), ..bob };
    assert!(!nobody.get("/v1/runs").await.headers.contains_key("ratelimit"));
}

#[tokio::test]
async fn a_bound_key_leaves_the_rest_to_its_tenant() {
    let app = App::start().await;
    let (ada, browser) = slow(&app, 40).await;
    for _ in 0..10 {
        browser.get("/v1/runs").await.ok();
    }
    let refused = browser.get("/v1/runs").await;
    assert!(refused.problem(429, "rate_limit.exceeded")["detail"].as_str().unwrap().contains("API key"));
    assert!(told(&refused, "ratelimit").contains("\"key\";r=0;t="));
    ada.get("/v1/runs").await.ok();
}

#[tokio::test]
async fn replicas_count_together() {
    let Some(redis) = crate::redis::Redis::start().await else { return };
    let url = RedisUrl::new(&SecretString::from(redis.url())).unwrap();
    let one = App::with_redis(Some(url)).await;
    let two = one.replica(Some(RedisUrl::new(&SecretString::from(redis.url())).unwrap()));
    let (ada, browser) = slow(&one, 6).await;
    let elsewhere = Client { router: two, ..ada.clone() };
    let (began, mut let_in) = (Instant::now(), 0);
    for turn in 0..20 {
        let client = if turn % 2 == 0 { &ada } else { &elsewhere };
        let answer = client.get("/v1/runs").await;
        assert!(answer.headers.contains_key("ratelimit"));
        let_in += u64::from(answer.status == 200);
    }
    // One comes back each ten seconds. Two that count apart let in twice as many.
    let at_most = 6 + began.elapsed().as_secs() / 10;
    assert!((4..=at_most).contains(&let_in), "{let_in} of {at_most}");
    let refused = elsewhere.get("/v1/runs").await;
    refused.problem(429, "rate_limit.exceeded");
    browser.get("/v1/runs").await.problem(429, "rate_limit.exceeded");

    // While Redis is away, each counts on its own, and says so in its log.
    redis.stop().await;
    ada.get("/v1/runs").await.ok();
    elsewhere.get("/v1/runs").await.ok();
}
