//! Conversations: begun with a history, listed, changed, read and erased.

use serde_json::{Value, json};

use crate::app::{Client, TestApp, component};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

async fn begun(client: &Client, body: Value) -> String {
    text(&client.post("/v1/conversations", body).await.created()["id"]).to_owned()
}

async fn ids(client: &Client, path: &str) -> Vec<String> {
    let list = client.get(path).await.ok();
    list["data"].as_array().unwrap().iter().map(|row| text(&row["id"]).to_owned()).collect()
}

/// All messages, by pages of this size: `role: content`.
async fn messages(client: &Client, conversation: &str, limit: usize) -> Vec<String> {
    let mut said = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/conversations/{conversation}/messages?limit={limit}{cursor}")).await.ok();
        let rows = page["data"].as_array().unwrap();
        assert!(rows.len() <= limit);
        said.extend(rows.iter().map(|row| format!("{}: {}", text(&row["role"]), text(&row["content"]))));
        let Some(next) = page["next_cursor"].as_str() else { return said };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test]
async fn a_conversation_that_cannot_be_is_refused_with_the_place() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let user = |text: &str| json!({"role": "user", "content": text});
    let with = |messages: Value| json!({"agent": "clerk", "messages": messages});
    for (body, code, pointer) in [
        (json!({"agent": "clerk", "colour": 1}), "request.invalid", Some("/colour")),
        (json!({"agent": "clerk", "title": ""}), "conversation.bad_title", Some("/title")),
        (json!({"agent": "clerk", "title": "t".repeat(201)}), "conversation.bad_title", Some("/title")),
        (
            json!({"agent": "clerk", "metadata": {"a": "m".repeat(20_000)}}),
            "conversation.metadata_too_large",
            Some("/metadata"),
        ),
        (json!({"agent": "clerk", "external_user_id": ""}), "request.invalid", Some("/external_user_id")),
        (with(json!([{"role": "system", "content": "x"}])), "request.invalid", Some("/messages/0/role")),
        (with(json!([user("a"), {"role": "tool", "content": "x"}])), "request.invalid", Some("/messages/1/role")),
        (with(json!([user("a"), user("")])), "request.invalid", Some("/messages/1/content")),
        (
            with(json!([{"role": "user", "content": [{"type": "image", "media_type": "text/html", "data": "aGk="}]}])),
            "request.invalid",
            Some("/messages/0/content/0"),
        ),
        (
            with(json!([{"role": "user", "content": [{"type": "image_url", "url": "https://a.example"}]}])),
            "request.invalid",
            Some("/messages/0/content/0/type"),
        ),
        (with(json!(vec![user("a"); 1001])), "conversation.bad_history", Some("/messages")),
    ] {
        let problem = ada.post("/v1/conversations", body).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"].as_str(), pointer, "{problem}");
    }
    ada.post("/v1/conversations", json!({"agent": "nobody"})).await.problem(404, "agent.not_found");
    assert!(ids(&ada, "/v1/conversations").await.is_empty());
    app.stop().await;
}

#[tokio::test]
async fn a_history_is_imported_and_read_oldest_first() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let history = json!([
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}, {"type": "image", "media_type": "image/png", "data": "aGk="}]},
        {"role": "assistant", "content": "four"},
    ]);
    let body = json!({
        "agent": "clerk", "title": "Before", "external_user_id": "user-1", "metadata": {"from": "elsewhere"},
        "messages": history,
    });
    let answer = ada.post("/v1/conversations", body).await;
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    let made = answer.created();
    let id = text(&made["id"]);
    assert_eq!(location, format!("/v1/conversations/{id}"));
    assert_eq!(ada.get(&location).await.ok(), made);
    assert_eq!((&made["title"], &made["external_user_id"]), (&json!("Before"), &json!("user-1")));
    assert_eq!(made["metadata"], json!({"from": "elsewhere"}));

    // Another user's turn does not find it.
    let path = "/v1/agents/clerk/chat";
    let of = |user: &str| json!({"message": "five", "conversation_id": id, "external_user_id": user});
    ada.post(path, of("user-2")).await.problem(404, "conversation.not_found");
    // A history is sent once.
    let resent = json!({"conversation_id": id, "messages": [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "six"},
    ]});
    ada.post(path, resent).await.problem(422, "chat.history_resent");
    let turn = ada.post(path, of("user-1")).await.ok();
    let answer = format!("assistant: {}", text(&turn["message"]["content"]));
    let all = ["user: one", "assistant: two", "user: three", "assistant: four", "user: five", answer.as_str()];
    for limit in [1, 4, 100] {
        assert_eq!(messages(&ada, id, limit).await, all, "{limit} a page");
    }
    let rows = ada.get(&format!("/v1/conversations/{id}/messages")).await.ok();
    let positions: Vec<u64> =
        rows["data"].as_array().unwrap().iter().map(|row| row["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [1, 2, 3, 4, 5, 6]);
    assert_eq!(rows["data"][2]["parts"][1], json!({"type": "image", "media_type": "image/png", "data": "aGk="}));
    assert!(rows["data"][0].get("run_id").is_none());
    assert_eq!(rows["data"][5]["run_id"], turn["run"]["id"]);
    app.stop().await;
}

#[tokio::test]
async fn a_list_shows_what_fits_every_filter() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    ada.agent("other", &[]).await;
    let mut made = Vec::new();
    for (agent, user) in
        [("clerk", json!("u1")), ("clerk", json!("u2")), ("other", json!("u1")), ("clerk", Value::Null)]
    {
        made.push(begun(&ada, json!({"agent": agent, "external_user_id": user})).await);
    }
    let of = |places: &[usize]| places.iter().map(|place| made[*place].clone()).collect::<Vec<_>>();
    let clerk = text(&ada.get("/v1/agents/clerk").await.ok()["id"]).to_owned();
    for (filter, expected) in [
        (String::new(), of(&[3, 2, 1, 0])),
        ("?agent=clerk".into(), of(&[3, 1, 0])),
        (format!("?agent={clerk}"), of(&[3, 1, 0])),
        ("?external_user_id=u1".into(), of(&[2, 0])),
        ("?agent=clerk&external_user_id=u1".into(), of(&[0])),
        ("?external_user_id=nobody".into(), of(&[])),
    ] {
        assert_eq!(ids(&ada, &format!("/v1/conversations{filter}")).await, expected, "{filter}");
    }
    ada.get("/v1/conversations?agent=nobody").await.problem(404, "agent.not_found");
    let problem = ada.get("/v1/conversations?user=u1").await.problem(422, "request.invalid");
    assert_eq!(problem["errors"][0]["pointer"], "/user");
    app.stop().await;
}

#[tokio::test]
async fn a_patch_changes_only_what_it_names() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.agent("clerk", &[]).await;
    let metadata = json!({"a": 1, "b": {"c": 2, "d": 3}});
    let id = begun(&ada, json!({"agent": "clerk", "title": "Old", "metadata": metadata})).await;
    let path = format!("/v1/conversations/{id}");
    for (patch, code, pointer) in [
        (json!({"agent_id": "x"}), "request.invalid", "/agent_id"),
        (json!({"external_user_id": "u"}), "request.invalid", "/external_user_id"),
        (json!({"title": ""}), "conversation.bad_title", "/title"),
        (json!({"title": 7}), "request.invalid", "/title"),
        (json!({"metadata": []}), "request.invalid", "/metadata"),
    ] {
        let problem = ada.patch(&path, patch).await.problem(422, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer);
    }
    for (patch, title, metadata) in [
        (json!({}), json!("Old"), metadata),
        (json!({"metadata": {"a": null, "b": {"c": 5}}}), json!("Old"), json!({"b": {"c": 5, "d": 3}})),
        (json!({"title": "New"}), json!("New"), json!({"b": {"c": 5, "d": 3}})),
        (json!({"title": null, "metadata": null}), Value::Null, json!({})),
    ] {
        let changed = ada.patch(&path, patch.clone()).await.ok();
        assert_eq!((&changed["title"], &changed["metadata"]), (&title, &metadata), "{patch}");
        assert_eq!(ada.get(&path).await.ok(), changed);
    }
    app.stop().await;
}

#[tokio::test]
async fn an_erased_conversation_leaves_only_its_bill() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("calc", component("calc")).await.created();
    ada.agent("clerk", &["calc"]).await;
    let turn = ada.chat("clerk", "/calc__evaluate {\"expression\": \"77700112345678 + 1\"}").await;
    let (conversation, run) = (text(&turn["conversation_id"]), text(&turn["run"]["id"]));
    let call = text(&turn["tool_calls"][0]["id"]);
    let kept = begun(&ada, json!({"agent": "clerk", "messages": [{"role": "user", "content": "stays"}]})).await;
    let bill = ada.get("/v1/usage").await.ok();
    assert!(bill["total"]["events"].as_u64().unwrap() >= 4, "{bill}");

    let path = format!("/v1/conversations/{conversation}");
    assert_eq!(ada.delete(&path).await.status, 204);
    for (gone, code) in [
        (path.clone(), "conversation.not_found"),
        (format!("{path}/messages"), "conversation.not_found"),
        (format!("/v1/runs/{run}"), "run.not_found"),
        (format!("/v1/runs/{run}/events"), "run.not_found"),
        (format!("/v1/tool-calls/{call}"), "tool_call.not_found"),
    ] {
        ada.get(&gone).await.problem(404, code);
    }
    ada.delete(&path).await.problem(404, "conversation.not_found");
    let more = json!({"message": "hi", "conversation_id": conversation});
    ada.post("/v1/agents/clerk/chat", more).await.problem(404, "conversation.not_found");
    assert_eq!(ids(&ada, "/v1/conversations").await, std::slice::from_ref(&kept));
    assert_eq!(messages(&ada, &kept, 20).await, ["user: stays"]);
    assert_eq!(ada.get("/v1/usage").await.ok(), bill, "what was used stays on the bill");

    // For good: no row holds what was said.
    let mut superuser = app.db.superuser().await;
    for table in ["message", "run", "step", "tool_call", "run_event"] {
        let sql = format!("SELECT count(*) FROM belljar.{table} t WHERE t::text LIKE '%7770011234567%'");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut superuser).await.unwrap();
        assert_eq!(rows, 0, "{table} remembers what was erased");
    }
    app.stop().await;
}

/// A run that goes on is cancelled first: nothing writes into what is erased.
#[tokio::test]
async fn erasing_a_busy_conversation_ends_its_run() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("sleep", component("sleep_long")).await.created();
    ada.agent("clerk", &["sleep"]).await;
    let body = json!({"message": "/sleep__run {}", "background": true});
    let answer = ada.post("/v1/agents/clerk/chat", body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let turn = answer.json();
    let (conversation, run) = (text(&turn["conversation_id"]), text(&turn["run"]["id"]));
    let more = json!({"message": "hi", "conversation_id": conversation});
    ada.post("/v1/agents/clerk/chat", more).await.problem(409, "conversation.busy");
    assert_eq!(ada.delete(&format!("/v1/conversations/{conversation}")).await.status, 204);
    ada.get(&format!("/v1/runs/{run}")).await.problem(404, "run.not_found");
    app.stop().await;
}
