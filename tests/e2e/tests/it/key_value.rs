//! What tools store, as the tenant reads and writes it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, Client, TestApp},
    tools::tenant_with,
};

async fn put(client: &Client, path: &str, value: impl Into<reqwest::Body>) -> Answer {
    let request = client.request(Method::PUT, &format!("/v1/key-value/{path}"));
    Answer::of(request.header("content-type", "text/plain").body(value)).await
}

fn keys(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_entry_that_cannot_be_is_refused_with_words() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let long = "k".repeat(513);
    for (path, status, code) in [
        (format!("notes/{long}"), 422, "kv.bad_key"),
        ("no%20spaces/today".to_owned(), 422, "kv.bad_namespace"),
        (format!("{}/today", "n".repeat(1025)), 422, "kv.bad_namespace"),
        ("notes/%00".to_owned(), 422, "request.invalid"),
        ("%00/today".to_owned(), 422, "request.invalid"),
        ("notes/a/b".to_owned(), 404, "route.not_found"),
    ] {
        put(&ada, &path, "x").await.problem(status, code);
    }
    put(&ada, "notes/today", vec![b'x'; (256 << 10) + 1]).await.problem(413, "request.too_large");
    let small = tenant_with(&app, "bob", json!({"storage_bytes": 1000})).await;
    put(&small, "notes/today", vec![b'x'; 1000]).await.problem(413, "kv.quota");
    for client in [&ada, &small] {
        assert_eq!(client.get("/v1/key-value").await.ok(), json!({"data": [], "next_cursor": null}));
    }
    ada.get("/v1/key-value/notes/today").await.problem(404, "kv.not_found");
    ada.delete("/v1/key-value/notes/today").await.problem(404, "kv.not_found");
    app.stop().await;
}

#[tokio::test]
async fn bytes_go_in_and_come_out_as_they_are() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let bytes: Vec<u8> = (0..=255).cycle().take(256 << 10).collect();
    let path = "/v1/key-value/notes%2Fada/2026%2Fto%20do%25";
    let answer = put(&ada, "notes%2Fada/2026%2Fto%20do%25", bytes.clone()).await;
    assert_eq!(answer.headers["location"], path);
    let entry = answer.created();
    assert_eq!((&entry["namespace"], &entry["key"]), (&json!("notes/ada"), &json!("2026/to do%")));
    assert_eq!(entry["size_bytes"], bytes.len());
    let stored = ada.request(Method::GET, path).send().await.unwrap();
    assert_eq!(stored.headers()["content-type"], "application/octet-stream");
    assert_eq!(stored.headers()["x-content-type-options"], "nosniff");
    assert_eq!(stored.bytes().await.unwrap(), bytes);

    assert_eq!(put(&ada, "notes%2Fada/2026%2Fto%20do%25", "").await.ok()["size_bytes"], 0, "the same key again");
    assert_eq!(ada.get(path).await.text, "");
    assert_eq!(ada.delete(path).await.status, 204);
    ada.get(path).await.problem(404, "kv.not_found");
    app.stop().await;
}

#[tokio::test]
async fn keys_are_walked_in_order_by_prefix_and_page() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    for key in ["b/2", "a", "b/1", "c%_", "B", "b/10", "\u{fc}"] {
        put(&ada, &format!("notes/{}", crate::outside::escaped(key)), "four").await.created();
    }
    put(&ada, "other/x", "12345").await.created();
    let all = ["B", "a", "b/1", "b/10", "b/2", "c%_", "\u{fc}"];
    for limit in [1, 3, 100] {
        let (mut found, mut path) = (Vec::new(), format!("/v1/key-value/notes?limit={limit}"));
        loop {
            let page = ada.get(&path).await.ok();
            found.extend(keys(&page).into_iter().map(str::to_owned));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("/v1/key-value/notes?limit={limit}&cursor={cursor}");
        }
        assert_eq!(found, all, "{limit} a page");
    }
    for (prefix, expected) in
        [("b%2F", vec!["b/1", "b/10", "b/2"]), ("b%2F1", vec!["b/1", "b/10"]), ("c%25", vec!["c%_"]), ("%25", vec![])]
    {
        let page = ada.get(&format!("/v1/key-value/notes?prefix={prefix}")).await.ok();
        assert_eq!(keys(&page), expected, "{prefix}");
    }
    let cursor = ada.get("/v1/key-value/notes?limit=1").await.ok()["next_cursor"].clone();
    let elsewhere = format!("/v1/key-value/other?cursor={}", cursor.as_str().unwrap());
    ada.get(&elsewhere).await.problem(422, "page.bad_cursor");

    let namespaces = ada.get("/v1/key-value").await.ok();
    let counts: Vec<_> = namespaces["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["namespace"].clone(), row["entries"].clone()))
        .collect();
    assert_eq!(counts, [(json!("notes"), json!(7)), (json!("other"), json!(1))]);
    assert!(namespaces["data"][1]["bytes"].as_u64().unwrap() >= 5, "{namespaces}");
    let first = ada.get("/v1/key-value?limit=1").await.ok();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = ada.get(&format!("/v1/key-value?limit=1&cursor={cursor}")).await.ok();
    assert_eq!(second["data"], json!([namespaces["data"][1]]));
    app.stop().await;
}

#[tokio::test]
async fn what_is_of_all_users_is_not_for_a_bound_key() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    put(&ada, "notes%2Fada/today", "x").await.created();
    let scopes = json!(["tools:read", "tools:write"]);
    let bound = json!({"name": "browser", "scopes": scopes, "external_user_id": "ada"});
    let key = ada.post("/v1/api-keys", bound).await.created();
    let browser = app.client(key["key"].as_str().unwrap());
    for (method, path) in [
        (Method::GET, "/v1/key-value"),
        (Method::GET, "/v1/key-value/notes%2Fada"),
        (Method::GET, "/v1/key-value/notes%2Fada/today"),
        (Method::PUT, "/v1/key-value/notes%2Fada/today"),
        (Method::DELETE, "/v1/key-value/notes%2Fada/today"),
    ] {
        Answer::of(browser.request(method, path).body("y")).await.problem(403, "api_key.bound");
    }
    assert_eq!(ada.get("/v1/key-value/notes%2Fada/today").await.text, "x");
    app.stop().await;
}
