use agent_config::{AgentRef, agents, revisions};
use domain::{Problem, page::PageRequest};
use serde_json::json;
use uuid::Uuid;

use crate::house::{House, agent};

#[tokio::test]
async fn a_stranger_has_no_agent() {
    let house = House::build().await;
    let (ada, bob) = (house.db.tenant("ada").await, house.db.tenant("bob").await);
    let made = house.create(&ada, agent(json!({}))).await.unwrap();
    let all = PageRequest::default();
    for agent in [AgentRef::Id(made.id), AgentRef::Name(made.spec.name.clone())] {
        let mut tx = bob.begin().await.unwrap();
        for refused in [
            agents::get(&mut tx, &agent).await.map(drop),
            agents::archive(&mut tx, &agent, house.now()).await,
            revisions::list(&mut tx, &agent, all).await.map(drop),
            revisions::get(&mut tx, &agent, 1).await.map(drop),
            revisions::activate(&mut tx, &agent, 1, house.now()).await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code(), "agent.not_found");
        }
        assert!(revisions::pinned(&mut tx, made.id, 1).await.is_err());
        assert!(revisions::functions(&mut tx, made.id, 1).await.unwrap().is_empty());
    }
    assert_eq!(house.publish(&bob, "clerk", json!({})).await.unwrap_err().code(), "agent.not_found");
    let mut tx = bob.begin().await.unwrap();
    assert!(agents::list(&mut tx, None, all).await.unwrap().data.is_empty());
    drop(tx);
    house.create(&bob, agent(json!({}))).await.unwrap();
}

#[tokio::test]
async fn a_strangers_version_is_a_missing_one() {
    let house = House::build().await;
    let (ada, bob) = (house.db.tenant("ada").await, house.db.tenant("bob").await);
    let version = house.push(&ada, "calc", "one").await.unwrap();
    let bind = async |version: &str| {
        let tools = json!([{"tool": "calc", "version": version}]);
        let error = house.create(&bob, agent(json!({"tools": tools}))).await.unwrap_err();
        (error.code(), error.kind(), error.fields().remove(0).pointer, error.to_string().replace(version, "..."))
    };
    let foreign = bind(&version.version.to_string()).await;
    assert_eq!((foreign.0, foreign.2.as_str()), ("binding.version_not_found", "/tools/0"));
    assert_eq!(foreign, bind(&format!("sha256:{}", "0".repeat(64))).await);
    assert_eq!(foreign.0, bind("latest").await.0);
    // Nor does a tool of the same name make it visible.
    house.push(&bob, "calc", "two").await.unwrap();
    assert_eq!(foreign, bind(&version.version.to_string()).await);
}

#[tokio::test]
async fn a_patch_publishes_what_it_changes() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let one = house.push(&ada, "calc", "one").await.unwrap();
    let tools = json!([{"tool": "calc", "version": "latest", "limits": {"fuel": 7}}]);
    let made = house.create(&ada, agent(json!({"tools": tools, "temperature": "0.5"}))).await.unwrap();
    assert_eq!((made.revision, made.spec.tools[0].version), (1, one.version));
    let shown = serde_json::to_value(&made).unwrap();
    assert_eq!(shown["model"], json!({"name": "demo", "temperature": 0.5}));
    assert_eq!(shown["tools"][0]["version"], json!(one.version));
    assert_eq!((&shown["tools"][0]["limits"]["fuel"], &shown["tools"][0]["grants"]), (&json!(7), &json!({})));

    // `latest` was resolved: a new version changes no agent.
    let two = house.push(&ada, "calc", "two").await.unwrap();
    house.wait(60);
    assert_eq!(house.publish(&ada, "clerk", json!({})).await.unwrap(), made);
    assert_eq!(house.publish(&ada, "clerk", json!({"model": {"name": "demo"}})).await.unwrap(), made);
    let second = house.publish(&ada, "clerk", json!({"description": "sums", "metadata": {"a": 1}})).await.unwrap();
    assert_eq!((second.revision, second.spec.tools[0].version), (2, one.version));
    assert_eq!(second.spec.tools, made.spec.tools);
    assert!(second.updated_at > second.created_at);
    let tools = json!([{"tool": "calc", "version": "latest"}]);
    let third = house.publish(&ada, "clerk", json!({"tools": tools, "name": "boss"})).await.unwrap();
    assert_eq!((third.revision, third.spec.tools[0].version), (3, two.version));
    assert_eq!(house.publish(&ada, "clerk", json!({})).await.unwrap_err().code(), "agent.not_found");

    let mut tx = ada.begin().await.unwrap();
    assert_eq!(agents::get(&mut tx, &AgentRef::Id(made.id)).await.unwrap(), third);
    assert_eq!(agents::get(&mut tx, &"boss".parse().unwrap()).await.unwrap(), third);
    let boss = AgentRef::Id(made.id);
    let page = revisions::list(&mut tx, &boss, PageRequest { limit: 2, after: None }).await.unwrap();
    assert_eq!((page.data, page.next), (vec![third.clone(), second.clone()], Some(Uuid::from_u128(2))));
    let page = revisions::list(&mut tx, &boss, PageRequest { limit: 2, after: page.next }).await.unwrap();
    assert_eq!((page.data, page.next), (vec![made.clone()], None));
    assert_eq!(revisions::get(&mut tx, &boss, 1).await.unwrap(), made);
    assert_eq!(revisions::get(&mut tx, &boss, 4).await.unwrap_err().code(), "revision.not_found");
    assert_eq!(revisions::get(&mut tx, &boss, u32::MAX).await.unwrap_err().code(), "revision.not_found");

    // Back to the first, with its name; the next one is the fourth.
    assert_eq!(revisions::activate(&mut tx, &boss, 1, house.now()).await.unwrap(), made);
    tx.commit().await.unwrap();
    let fourth = house.publish(&ada, "clerk", json!({"system_prompt": "Help more."})).await.unwrap();
    assert_eq!((fourth.revision, fourth.spec.description), (4, None));
}

#[tokio::test]
async fn a_name_is_taken_until_its_agent_is_archived() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let first = house.create(&ada, agent(json!({}))).await.unwrap();
    assert_eq!(house.create(&ada, agent(json!({}))).await.unwrap_err().code(), "agent.name_taken");
    let boss = house.create(&ada, agent(json!({"name": "boss"}))).await.unwrap();
    assert_eq!(house.publish(&ada, "boss", json!({"name": "clerk"})).await.unwrap_err().code(), "agent.name_taken");

    let mut tx = ada.begin().await.unwrap();
    agents::archive(&mut tx, &"clerk".parse().unwrap(), house.now()).await.unwrap();
    for agent in [AgentRef::Id(first.id), "clerk".parse().unwrap()] {
        assert_eq!(agents::get(&mut tx, &agent).await.unwrap_err().code(), "agent.not_found");
        assert_eq!(agents::archive(&mut tx, &agent, house.now()).await.unwrap_err().code(), "agent.not_found");
    }
    let pinned = revisions::pinned(&mut tx, first.id, 1).await.unwrap();
    assert!(pinned.archived, "its runs go on");
    tx.commit().await.unwrap();

    let second = house.create(&ada, agent(json!({}))).await.unwrap();
    let mut tx = ada.begin().await.unwrap();
    let page = agents::list(&mut tx, None, PageRequest { limit: 1, after: None }).await.unwrap();
    assert_eq!((page.data, page.next), (vec![second.clone()], Some(second.id.uuid())));
    let page = agents::list(&mut tx, None, PageRequest { limit: 1, after: page.next }).await.unwrap();
    assert_eq!((page.data[0].spec.name.as_str(), page.next), ("boss", None));
    // What is not asked for leaves no hole in a page.
    let page = agents::list(&mut tx, Some(&[boss.id]), PageRequest { limit: 1, after: None }).await.unwrap();
    assert_eq!((page.data, page.next), (vec![boss], None));
    assert!(agents::list(&mut tx, Some(&[]), PageRequest::default()).await.unwrap().data.is_empty());
}

#[tokio::test]
async fn a_binding_that_cannot_be_is_named() {
    let house = House::build().await;
    let ada = house
        .tenant_with(json!({"tool_limits": {
            "fuel": 1000, "memory_bytes": 1_048_576, "deadline_ms": 1000, "output_bytes": 1024, "log_bytes": 1024,
            "host_calls": 10,
        }}))
        .await;
    house.push(&ada, "calc", "one").await.unwrap();
    house.push(&ada, "many", "functions=100").await.unwrap();
    house.push(&ada, "some", "functions=29").await.unwrap();
    house.push(&ada, "ruler", "asks=unit").await.unwrap();
    let rejected = house.push(&ada, "calc", "bad").await.unwrap();
    let refuse = async |tools: serde_json::Value| {
        let error = house.create(&ada, agent(json!({"tools": tools}))).await.unwrap_err();
        (error.code(), error.fields().remove(0).pointer)
    };
    for (tools, code, pointer) in [
        (json!([{"tool": "none", "version": "latest"}]), "binding.version_not_found", "/tools/0"),
        (json!([{"tool": "calc", "version": rejected.version}]), "binding.version_not_ready", "/tools/0"),
        (
            json!([{"tool": "calc", "version": "latest"}, {"tool": "calc", "version": "latest"}]),
            "binding.duplicate_tool",
            "/tools/1",
        ),
        (
            json!([{"tool": "calc", "version": "latest", "functions": ["walk"]}]),
            "binding.function_not_found",
            "/tools/0/functions/0",
        ),
        (
            json!([{"tool": "calc", "version": "latest", "limits": {"fuel": 1001}}]),
            "binding.limit_above_plan",
            "/tools/0/limits/fuel",
        ),
        (
            json!([{"tool": "ruler", "version": "latest", "grants": "as_requested"}]),
            "binding.grant_missing",
            "/tools/0/grants/config",
        ),
        (
            json!([{"tool": "many", "version": "latest"}, {"tool": "some", "version": "latest"}]),
            "agent.too_many_functions",
            "/tools",
        ),
    ] {
        assert_eq!(refuse(tools.clone()).await, (code, pointer.to_owned()), "{tools}");
    }

    let tools = json!([
        {"tool": "some", "version": "latest", "functions": ["f3", "f1", "f3"]},
        {"tool": "many", "version": "latest"},
        {"tool": "ruler", "version": "latest", "grants": {"config": {"unit": "m"}}},
    ]);
    let made = house.create(&ada, agent(json!({"tools": tools}))).await.unwrap();
    let mut tx = ada.begin().await.unwrap();
    let functions = revisions::functions(&mut tx, made.id, 1).await.unwrap();
    assert_eq!(functions.len(), 103);
    let names: Vec<_> = functions.iter().take(3).map(|function| function.spec.model_name.as_str()).collect();
    assert_eq!(names, ["some__f1", "some__f3", "many__f0"]);
    let last = &functions[102];
    assert_eq!((last.spec.model_name.as_str(), last.limits.fuel), ("ruler__run", 1000));
    assert_eq!(last.grants.config["unit"], "m");
    assert_eq!(last.artifact, tool_api::ArtifactHash::of(b"asks=unit"));
}

#[tokio::test]
async fn changes_at_once_are_each_a_revision() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    house.create(&ada, agent(json!({}))).await.unwrap();
    let (a, b, c) = tokio::join!(
        house.publish(&ada, "clerk", json!({"description": "a"})),
        house.publish(&ada, "clerk", json!({"display_name": "b"})),
        house.publish(&ada, "clerk", json!({"system_prompt": "c"})),
    );
    let mut made = [a.unwrap(), b.unwrap(), c.unwrap()];
    made.sort_by_key(|agent| agent.revision);
    assert_eq!(made.each_ref().map(|agent| agent.revision), [2, 3, 4]);
    let last = &made[2].spec;
    assert_eq!((last.description.as_deref(), last.display_name.as_deref()), (Some("a"), Some("b")));
    assert_eq!(last.system_prompt, "c");
}

#[tokio::test]
async fn a_binding_tells_what_it_lacks_and_whether_it_records() {
    let house = House::build().await;
    let ada = house.db.tenant("ada").await;
    let asks = r#"requires={"key_value": [{"namespace": "notes", "access": "write", "reason": "keeps them"}], "scratch_bytes": 9}"#;
    house.push(&ada, "notes", asks).await.unwrap();
    let tools = json!([{"tool": "notes", "version": "latest", "record": true, "grants": {"scratch_bytes": 10}}]);
    let made = house.create(&ada, agent(json!({"tools": tools}))).await.unwrap();
    let shown = serde_json::to_value(&made).unwrap();
    assert_eq!(shown["tools"][0]["missing"], json!([{"grant": "key_value notes", "reason": "keeps them"}]));
    assert_eq!(shown["tools"][0]["record"], true);
    // What was answered can be sent back.
    assert_eq!(house.publish(&ada, "clerk", json!({"tools": shown["tools"]})).await.unwrap(), made);
    let mut tx = ada.begin().await.unwrap();
    assert_eq!(agents::get(&mut tx, &AgentRef::Id(made.id)).await.unwrap(), made);
    let functions = revisions::functions(&mut tx, made.id, 1).await.unwrap();
    assert!(functions[0].record && functions[0].grants.scratch_bytes == Some(10));
    drop(tx);

    let tools = json!([{"tool": "notes", "version": "latest", "grants": "as_requested"}]);
    let asked = house.publish(&ada, "clerk", json!({"tools": tools})).await.unwrap();
    let tool = &serde_json::to_value(&asked).unwrap()["tools"][0];
    let grants = json!({"key_value": [{"namespace": "notes", "access": "write"}], "scratch_bytes": 9});
    assert_eq!((&tool["grants"], tool.get("missing"), tool.get("record")), (&grants, None, None));
}
