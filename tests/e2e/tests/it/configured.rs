//! What a turn is driven by is kept in memory. Whatever is changed of it counts for the next turn.

use serde_json::{Value, json};

use crate::{
    app::{Client, TestApp},
    outside::NOBODY,
};

async fn run(client: &Client, agent: &str) -> Value {
    client.chat(agent, "hello").await["run"].clone()
}

async fn refused(client: &Client, agent: &str, status: u16, code: &str) {
    let answer = client.post(&format!("/v1/agents/{agent}/chat"), json!({"message": "hello"})).await;
    answer.problem(status, code);
}

#[tokio::test]
async fn an_agent_that_is_changed_archived_or_followed_by_another_of_its_name_is_so_for_the_next_turn() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let first = run(&ada, "clerk").await;
    let by_id = first["agent_id"].as_str().unwrap();
    for (change, name) in [(json!({"description": "second"}), "clerk"), (json!({"name": "teller"}), "teller")] {
        let revision = ada.patch(&format!("/v1/agents/{by_id}"), change).await.ok()["revision"].clone();
        for agent in [name, by_id] {
            let run = run(&ada, agent).await;
            assert_eq!((&run["revision"], &run["agent"]), (&revision, &json!(name)));
        }
    }
    refused(&ada, "clerk", 404, "agent.not_found").await;
    // The older revision, under the name that the agent has now: as it is answered, and as it is told later.
    let old = ada.post(&format!("/v1/agents/{by_id}/chat"), json!({"message": "hello", "revision": 1})).await.ok();
    assert_eq!((&old["run"]["revision"], &old["run"]["agent"]), (&json!(1), &json!("teller")));
    let later = ada.get(&format!("/v1/runs/{}", old["run"]["id"].as_str().unwrap())).await.ok();
    assert_eq!((&later["revision"], &later["agent"]), (&json!(1), &json!("teller")));
    ada.post(&format!("/v1/agents/{by_id}/revisions/1/activate"), json!({})).await.ok();
    assert_eq!(run(&ada, "clerk").await["revision"], 1);
    assert_eq!(ada.delete("/v1/agents/clerk").await.status, 204);
    for agent in ["clerk", by_id] {
        refused(&ada, agent, 404, "agent.not_found").await;
    }
    ada.agent("clerk", &[]).await;
    assert_ne!(run(&ada, "clerk").await["agent_id"], first["agent_id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_provider_key_is_there_for_the_next_turn_and_gone_for_the_one_after_it_was_deleted() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let ada = app.tenant("ada").await;
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "acme/large"});
    ada.post("/v1/agents", agent).await.created();
    let unknown = run(&ada, "clerk").await["error"]["code"].clone();
    let key = json!({"kind": "openai_compatible", "api_key": "sk-1", "base_url": format!("http://{NOBODY}/v1")});
    ada.put("/v1/provider-keys/acme", key).await.created();
    let known = run(&ada, "clerk").await["error"]["code"].clone();
    assert_ne!(known, unknown);
    assert_eq!(ada.delete("/v1/provider-keys/acme").await.status, 204);
    assert_eq!(run(&ada, "clerk").await["error"]["code"], unknown);
    app.stop().await;
}

#[tokio::test]
async fn budgets_quotas_and_plans_count_for_the_next_turn() {
    let app = TestApp::start().await;
    let (ada, operator) = (app.tenant("ada").await, app.operator());
    ada.agent("clerk", &[]).await;
    let first = run(&ada, "clerk").await;

    let spec = json!({"scope": "tenant", "window": "day", "amount": "0"});
    let budget = ada.post("/v1/budgets", spec).await.created()["id"].clone();
    refused(&ada, "clerk", 402, "budget.exceeded").await;
    assert_eq!(ada.delete(&format!("/v1/budgets/{}", budget.as_str().unwrap())).await.status, 204);
    assert_eq!(run(&ada, "clerk").await["status"], "completed");

    let tenant = format!("/operator/v1/tenants/{}", ada.tenant);
    operator.patch(&tenant, json!({"overrides": {"tokens_per_month": 1}})).await.ok();
    refused(&ada, "clerk", 402, "quota.tokens").await;
    operator.patch(&tenant, json!({"overrides": {}})).await.ok();
    assert_eq!(run(&ada, "clerk").await["status"], "completed");
    let mut plan = operator.get("/operator/v1/plans/pro").await.ok();
    let before = std::mem::replace(&mut plan["tokens_per_month"], json!(1));
    operator.put("/operator/v1/plans/pro", plan.clone()).await.ok();
    refused(&ada, "clerk", 402, "quota.tokens").await;
    plan["tokens_per_month"] = before;
    operator.put("/operator/v1/plans/pro", plan).await.ok();
    assert_eq!(run(&ada, "clerk").await["cost"], first["cost"]);
    app.stop().await;
}
