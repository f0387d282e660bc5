//! Tools with grants, in the whole product: what they reach, what is told of it, and how it is run again.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    app::{Client, TestApp, component},
    outside::{Asked, Outside, Reply},
    tools::call,
};

const WEATHER_KEY: &str = "weather-key-0123456789";

/// Answers whoever shows the key.
fn weather(asked: &Asked) -> Reply {
    if asked.headers.get("authorization").is_none_or(|shown| *shown != format!("Bearer {WEATHER_KEY}")) {
        return Reply { status: "401 Unauthorized", ..Reply::text(format!("wrong key: {:?}", asked.headers)) };
    }
    Reply::json(&json!({"place": "Oslo", "sky": "clear", "temperature": -3.5, "asked_with": asked.headers}))
}

/// What the tool `weather` asks for, at another address.
fn weather_grants(outside: &Outside) -> Value {
    json!({
        "http": [{
            "host": outside.host(), "paths": ["/v1"], "plain_http": true,
            "headers": [{"name": "Authorization", "secret": "weather_key", "format": "Bearer {}"}],
        }],
        "config": {"base_url": outside.url(""), "unit": "celsius"},
    })
}

async fn bind(client: &Client, agent: &str, binding: Value) -> Value {
    let agent = json!({"name": agent, "system_prompt": "You help.", "model": "demo", "tools": [binding]});
    client.post("/v1/agents", agent).await.created()
}

/// A tenant with an agent `forecaster` that may ask for the weather.
async fn forecaster(app: &TestApp, outside: &Outside) -> Client {
    let ada = app.tenant("ada").await;
    ada.upload("weather", component("weather")).await.created();
    ada.secret("weather_key", WEATHER_KEY).await;
    let grants = weather_grants(outside);
    bind(&ada, "forecaster", json!({"tool": "weather", "version": "latest", "grants": grants, "record": true})).await;
    ada
}

fn fetch(url: &str, grants: Value) -> Value {
    json!({"function": "get", "arguments": {"url": url}, "grants": grants})
}

#[tokio::test]
async fn what_no_grant_names_is_never_reached() {
    let outside = Outside::start(|_| Reply::text("reached")).await;
    let forbidden = Outside::start(|_| Reply::text("reached")).await;
    let app = TestApp::with_egress(vec![outside.address]).await;
    let ada = app.tenant("ada").await;
    ada.upload("fetch", component("fetch")).await.created();
    let grant = |more: Value| {
        let mut grant = json!({"host": outside.host(), "plain_http": true});
        grant.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"http": [grant]})
    };
    let port = outside.address.port();
    for (url, grants) in [
        (outside.url("/"), json!({})),
        (outside.url("/"), json!({"http": [{"host": outside.host()}]})),
        (outside.url("/"), json!({"http": [{"host": "127.0.0.1", "plain_http": true}]})),
        (outside.url("/"), grant(json!({"methods": ["HEAD", "POST"]}))),
        (outside.url("/private"), grant(json!({"paths": ["/public"]}))),
        (outside.url("/public/../private"), grant(json!({"paths": ["/public"]}))),
        (outside.url("/public/%2e%2e/private"), grant(json!({"paths": ["/public"]}))),
        (format!("http://localhost:{port}/"), grant(json!({}))),
        (format!("http://127.1:{port}/"), grant(json!({"paths": ["/public"]}))),
        (format!("http://evil@127.0.0.1:{port}/"), grant(json!({"paths": ["/public"]}))),
    ] {
        let row = call(&ada, "fetch", fetch(&url, grants.clone())).await.ok();
        assert_ne!(row["outcome"]["status"], "ok", "{url} {grants}: {row}");
        assert!(row["outcome"]["code"] == "denied.http" || row["outcome"]["status"] == "tool_error", "{url}: {row}");
    }
    assert_eq!(outside.asked().len(), 0, "{:?}", outside.asked());

    // A grant is the tenant's word; a private address needs the operator's too.
    let grants = json!({"http": [{"host": forbidden.host(), "plain_http": true}]});
    let row = call(&ada, "fetch", fetch(&forbidden.url("/"), grants)).await.ok();
    assert_ne!(row["outcome"]["status"], "ok", "{row}");
    assert_eq!(forbidden.asked().len(), 0);

    let row =
        call(&ada, "fetch", fetch(&outside.url("/public/page?a=1"), grant(json!({"paths": ["/public"]})))).await.ok();
    assert_eq!(row["outcome"]["structured"]["text"], "reached", "{row}");
    assert_eq!((outside.asked()[0].path.as_str(), outside.asked()[0].query.as_str()), ("/public/page", "a=1"));
    app.stop().await;
}

#[tokio::test]
async fn a_denial_stands_on_the_receipt() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("fetch", component("fetch")).await.created();
    let row = call(&ada, "fetch", fetch("https://example.com/a?secret=1", json!({}))).await.ok();
    assert_eq!(row["outcome"]["code"], "denied.http", "{row}");
    assert_eq!(row["receipt"]["denied"], json!(["http"]), "{row}");
    let told = &row["receipt"]["host_calls"][0];
    assert_eq!(told["target"], "GET https://example.com/a", "without the query: {row}");
    assert!(told["grant"].is_null() && told["error"].is_string(), "{row}");
    app.stop().await;
}

#[tokio::test]
async fn a_bound_secret_arrives_where_it_is_bound_and_nowhere_else() {
    let outside = Outside::start(weather).await;
    let app = TestApp::with_egress(vec![outside.address]).await;
    let ada = forecaster(&app, &outside).await;
    let events = ada.chat_stream("forecaster", "/weather__now {\"place\": \"Oslo\"}").await;
    let told = format!("{events:?}");
    assert!(!told.contains(WEATHER_KEY), "{told}");
    let (.., last) = events.last().unwrap();
    let made = &last["tool_calls"][0];
    assert_eq!(made["outcome"]["structured"]["sky"], "clear", "{last}");

    let progress = events.iter().position(|(_, kind, _)| kind == "tool_call.progress").unwrap();
    let (.., data) = &events[progress];
    assert_eq!((&data["id"], &data["text"]), (&made["id"], &json!("asking for the weather in Oslo")), "{data}");
    let place = |kind: &str| events.iter().position(|(_, other, _)| other == kind).unwrap();
    assert!(place("tool_call.started") < progress && progress < place("tool_call.completed"), "{events:?}");

    let asked = outside.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].headers["authorization"], format!("Bearer {WEATHER_KEY}"));
    assert_eq!(asked[0].headers["accept-encoding"], "identity");

    let id = made["id"].as_str().unwrap();
    let row = ada.get(&format!("/v1/tool-calls/{id}")).await.ok();
    let receipt = &row["receipt"];
    assert_eq!(receipt["secrets_used"], json!(["weather_key"]), "{row}");
    let sent: Vec<&Value> =
        receipt["host_calls"].as_array().unwrap().iter().filter(|call| call["interface"] == "wasi:http").collect();
    assert_eq!(sent.len(), 1, "{receipt}");
    assert_eq!(sent[0]["target"], format!("GET {}", outside.url("/v1/now")));
    assert_eq!(sent[0]["grant"], format!("http {}", outside.host()));
    let number = |field: &str| sent[0][field].as_u64().unwrap();
    assert!(number("bytes_in") > 0 && number("bytes_out") > 0 && number("duration_us") > 0, "{receipt}");
    let counted: u64 =
        receipt["host_call_counts"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert!(counted >= receipt["host_calls"].as_array().unwrap().len() as u64, "{receipt}");
    app.stop().await;
}

#[tokio::test]
async fn a_redirect_takes_no_secret_along() {
    let elsewhere = Outside::reflecting().await;
    let location = elsewhere.url("/stolen");
    let outside = Outside::start(move |_| Reply {
        status: "302 Found",
        headers: vec![("location".into(), location.clone())],
        ..Reply::text("")
    })
    .await;
    let app = TestApp::with_egress(vec![outside.address, elsewhere.address]).await;
    let ada = app.tenant("ada").await;
    ada.upload("fetch", component("fetch")).await.created();
    ada.secret("weather_key", WEATHER_KEY).await;
    let mut grants = weather_grants(&outside);
    grants["http"].as_array_mut().unwrap().push(json!({"host": elsewhere.host(), "plain_http": true}));
    let row = call(&ada, "fetch", fetch(&outside.url("/v1/now"), grants.clone())).await.ok();
    let text = row["outcome"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains(&elsewhere.url("/stolen")), "the tool decides: {row}");
    assert_eq!(elsewhere.asked().len(), 0, "the host follows nothing");
    call(&ada, "fetch", fetch(&elsewhere.url("/stolen"), grants)).await.ok();
    assert!(!format!("{:?}", elsewhere.asked()).contains(WEATHER_KEY), "{:?}", elsewhere.asked());
    app.stop().await;
}

#[tokio::test]
async fn each_user_has_notes_of_their_own() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let version = ada.upload("notes", component("notes")).await.created();
    assert_eq!(version["requires"]["key_value"][0]["namespace"], "notes/{external_user_id}", "{version}");
    let agent = bind(&ada, "secretary", json!({"tool": "notes", "version": "latest", "grants": "as_requested"})).await;
    let grants = json!({"key_value": [{"namespace": "notes/{external_user_id}", "access": "write"}]});
    assert_eq!(agent["tools"][0]["grants"], grants, "{agent}");
    let say = async |user: Option<&str>, message: &str| {
        let mut body = json!({"message": message});
        if let Some(user) = user {
            body["external_user_id"] = user.into();
        }
        ada.post("/v1/agents/secretary/chat", body).await.ok()
    };
    let turn = say(None, "/notes__add {\"text\": \"whose?\"}").await;
    assert_eq!(turn["tool_calls"][0]["outcome"]["code"], "denied.key_value", "{turn}");

    // Several calls of one step write in order, and none of them over another.
    let turn = say(Some("u/1"), "/notes__add {\"text\": \"milk\"}\n/notes__add {\"text\": \"bread\"}").await;
    for made in turn["tool_calls"].as_array().unwrap() {
        assert_eq!(made["outcome"]["status"], "ok", "{turn}");
    }
    say(Some("u2"), "/notes__add {\"text\": \"stamps\"}").await;
    let notes = async |user: &str| -> BTreeSet<String> {
        let turn = say(Some(user), "/notes__list {}").await;
        let listed = turn["tool_calls"][0]["outcome"]["structured"]["notes"].as_array().unwrap().clone();
        listed.iter().map(|note| note["text"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(notes("u/1").await, BTreeSet::from(["milk".into(), "bread".into()]));
    assert_eq!(notes("u2").await, BTreeSet::from(["stamps".into()]));
    assert_eq!(notes("u%2F1").await, BTreeSet::new());

    let namespaces = ada.get("/v1/key-value").await.ok();
    let names: Vec<&str> =
        namespaces["data"].as_array().unwrap().iter().map(|row| row["namespace"].as_str().unwrap()).collect();
    assert_eq!(names, ["notes/u%2F1", "notes/u2"], "{namespaces}");
    let stored = ada.get("/v1/key-value/notes%2Fu%252F1?prefix=note-").await.ok();
    assert_eq!(stored["data"].as_array().unwrap().len(), 2, "{stored}");
    assert_eq!(ada.get("/v1/key-value/notes%2Fu%252F1/count").await.text, "2");
    // What the tenant writes, its tools read.
    let path = "/v1/key-value/notes%2Fu2/note-99999999";
    assert_eq!(ada.request(reqwest::Method::PUT, path).body("tea").send().await.unwrap().status(), 201);
    assert!(notes("u2").await.contains("tea"));
    app.stop().await;
}

#[tokio::test]
async fn a_failed_call_leaves_no_entry() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("notes", component("notes")).await.created();
    let body = json!({
        "function": "add", "arguments": {"text": "never written"}, "external_user_id": "u", "limits": {"fuel": 12_000},
        "grants": {"key_value": [{"namespace": "notes/{external_user_id}", "access": "write"}]},
    });
    let row = call(&ada, "notes", body).await.ok();
    assert_eq!(row["outcome"]["code"], "limit.fuel", "{row}");
    assert_eq!(ada.get("/v1/key-value").await.ok()["data"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn what_a_tool_asks_for_and_does_not_get_is_named_before_its_first_call() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let version = ada.upload("weather", component("weather")).await.created();
    let asked = &version["requires"]["http"][0];
    assert_eq!(
        (&asked["host"], &asked["headers"][0]["secret"]),
        (&json!("api.weather.example"), &json!("weather_key"))
    );
    assert!(asked["reason"].as_str().unwrap().contains("wants a key"), "{version}");
    let binding = |grants: Value| json!({"tool": "weather", "version": "latest", "grants": grants});
    let config = json!({"unit": "celsius", "base_url": "https://api.weather.example"});
    let bare = bind(&ada, "bare", binding(json!({"config": config}))).await;
    let missing: Vec<&str> =
        bare["tools"][0]["missing"].as_array().unwrap().iter().map(|lack| lack["grant"].as_str().unwrap()).collect();
    assert_eq!(missing, ["http api.weather.example"], "{bare}");
    assert_eq!(ada.get("/v1/agents/bare").await.ok()["tools"][0]["missing"], bare["tools"][0]["missing"]);
    // What was read can be written back.
    ada.patch("/v1/agents/bare", json!({"description": "new", "tools": bare["tools"]})).await.ok();

    let mut asked = version["requires"]["http"].clone();
    asked[0].as_object_mut().unwrap().remove("reason");
    let whole = json!({"http": asked, "config": config});
    let agent = json!({"name": "a", "system_prompt": "", "model": "demo", "tools": [binding(whole.clone())]});
    let problem = ada.post("/v1/agents", agent).await.problem(422, "secret.not_found");
    assert!(problem["detail"].as_str().unwrap().contains("weather_key"), "{problem}");
    ada.secret("weather_key", WEATHER_KEY).await;
    let whole = bind(&ada, "whole", binding(whole)).await;
    assert!(whole["tools"][0]["missing"].is_null(), "{whole}");
    app.stop().await;
}

#[tokio::test]
async fn a_recorded_call_is_run_again_without_a_request() {
    let outside = Outside::start(weather).await;
    let app = TestApp::with_egress(vec![outside.address]).await;
    let ada = forecaster(&app, &outside).await;
    let turn = ada.chat("forecaster", "/weather__now {\"place\": \"Oslo\"}").await;
    let id = turn["tool_calls"][0]["id"].as_str().unwrap().to_owned();
    let row = ada.get(&format!("/v1/tool-calls/{id}")).await.ok();
    assert_eq!((&row["outcome"]["status"], &row["recorded"]), (&json!("ok"), &json!(true)), "{row}");
    let answer = ada.get(&format!("/v1/tool-calls/{id}/recording")).await;
    assert!(!answer.text.contains(WEATHER_KEY), "{}", answer.text);
    let recorded = answer.ok();
    assert_eq!((&recorded["id"], &recorded["outcome"]), (&row["id"], &row["outcome"]), "{recorded}");

    let replay =
        async |version: &Value| ada.post(&format!("/v1/tool-calls/{id}/replay"), json!({"version": version})).await;
    let same = replay(&row["version"]).await.ok();
    for what in ["output", "host_calls"] {
        assert_eq!(same[what], json!({"same": true, "differences": []}), "{same}");
    }
    assert_eq!((&same["missing"], &same["fuel"]["recorded"]), (&json!([]), &same["fuel"]["replayed"]), "{same}");
    assert_eq!(outside.asked().len(), 1, "a replay sends nothing");
    assert_eq!(replay(&json!("latest")).await.ok()["version"], row["version"]);

    // Builds that are not the same tool any more.
    let other = ada.upload("weather", component("calc")).await.created()["version"].clone();
    replay(&other).await.problem(422, "tool_call.function_not_found");
    let other = ada.upload("weather", component("clock")).await.created()["version"].clone();
    replay(&other).await.problem(422, "tool_call.bad_arguments");
    replay(&json!(format!("sha256:{}", "0".repeat(64)))).await.problem(404, "tool_version.not_found");
    replay(&json!("newest")).await.problem(422, "request.invalid");
    let calls = ada.get("/v1/tool-calls").await.ok();
    assert_eq!(calls["data"].as_array().unwrap().len(), 1, "a replay is no call: {calls}");

    // What was not recorded cannot be.
    let unrecorded = call(&ada, "weather", json!({"function": "now"})).await.ok();
    assert_eq!(unrecorded["recorded"], false, "{unrecorded}");
    let path = format!("/v1/tool-calls/{}", unrecorded["id"].as_str().unwrap());
    ada.get(&format!("{path}/recording")).await.problem(404, "recording.not_found");
    ada.post(&format!("{path}/replay"), json!({"version": "latest"})).await.problem(404, "recording.not_found");
    app.stop().await;
}

#[tokio::test]
async fn a_build_that_does_otherwise_is_told_apart() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("tool", component("echo")).await.created();
    let body = json!({"function": "run", "arguments": {}, "record": true});
    let row = call(&ada, "tool", body).await.ok();
    let other = ada.upload("tool", component("traps")).await.created()["version"].clone();
    let path = format!("/v1/tool-calls/{}/replay", row["id"].as_str().unwrap());
    let differs = ada.post(&path, json!({"version": other})).await.ok();
    assert_eq!(
        (&differs["output"]["same"], &differs["outcome"]["status"]),
        (&json!(false), &json!("trap")),
        "{differs}"
    );
    let places: Vec<&str> =
        differs["output"]["differences"].as_array().unwrap().iter().map(|one| one["at"].as_str().unwrap()).collect();
    assert!(places.contains(&"/status"), "{differs}");
    app.stop().await;
}

#[tokio::test]
async fn a_key_of_one_user_reads_no_recording_of_another() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    ada.upload("echo", component("echo")).await.created();
    let body = json!({"function": "run", "arguments": {"x": 1}, "record": true, "external_user_id": "u1"});
    let row = call(&ada, "echo", body).await.ok();
    let path = format!("/v1/tool-calls/{}", row["id"].as_str().unwrap());
    for (user, sees) in [("u1", true), ("u2", false)] {
        let scopes = json!(["runs:read", "tools:call"]);
        let key = json!({"name": user, "scopes": scopes, "external_user_id": user});
        let key = ada.post("/v1/api-keys", key).await.created();
        let browser = app.client(key["key"].as_str().unwrap());
        let (recording, replay) = (
            browser.get(&format!("{path}/recording")).await,
            browser.post(&format!("{path}/replay"), json!({"version": "latest"})).await,
        );
        if sees {
            recording.ok();
            replay.ok();
        } else {
            recording.problem(404, "tool_call.not_found");
            replay.problem(404, "tool_call.not_found");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_component_without_our_code_becomes_a_tool() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../example-tools/typed/manifest.json");
    let manifest = std::fs::read_to_string(path).unwrap();
    let described: Value = serde_json::from_str(&manifest).unwrap();
    let version = ada.upload_with("geometry", component("typed"), &manifest).await.created();
    assert_eq!((&version["contract"], &version["status"]), (&json!("wit"), &json!("ready")), "{version}");
    let area =
        version["functions"].as_array().unwrap().iter().find(|function| function["name"] == "shapes-area").unwrap();
    assert_eq!(area["description"], described["functions"]["example:geometry/shapes@1.0.0#area"]["description"]);
    ada.agent("surveyor", &["geometry"]).await;
    let turn = ada.chat("surveyor", "/geometry__shapes-area {\"shape\": {\"circle\": 2}}").await;
    let outcome = &turn["tool_calls"][0]["outcome"];
    assert_eq!(outcome["status"], "ok", "{turn}");
    assert!(outcome.to_string().contains("12.566"), "{turn}");
    assert!(turn["tool_calls"][0]["receipt"]["fuel_used"].as_u64().unwrap() > 0, "{turn}");

    // The same bytes say the same; a function that is not there has no description.
    assert_eq!(ada.upload_with("geometry", component("typed"), &manifest).await.ok(), version);
    let stray = r#"{"functions": {"volume": {"description": "None."}}}"#;
    ada.upload_with("others", component("typed"), stray).await.problem(422, "tool_version.rejected");
    app.stop().await;
}
