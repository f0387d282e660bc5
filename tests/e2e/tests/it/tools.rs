//! Uploading tools: what becomes of a component, and what is told about one that is none.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{Answer, Client, TestApp, component, text_component};

/// Longest wait for what the product does by itself: an inspection, and the look for stopped ones every 5 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest, the code of its rejection, and words that its author needs.
const REJECTED: [(&str, &str, &str); 9] = [
    ("core_module", "component.core_module", "wasm32-wasip2"),
    ("no_toolbox", "component.no_toolbox", "guest SDK"),
    ("unknown_import", "component.unknown_import", "`acme:unknown/thing@1.0.0`"),
    ("bomb", "component.too_complex", "instances"),
    ("bad_schema", "toolbox.bad_schema", "input-schema of `run`"),
    ("schema_bomb", "toolbox.bad_schema", "unfolds to more than"),
    ("dup_names", "toolbox.duplicate_function", "rename one"),
    ("bad_name", "toolbox.bad_function", "run it__now!"),
    ("describe_spins", "toolbox.describe_failed", "limit.fuel"),
];

/// A guest from either folder.
pub(crate) fn guest(name: &str) -> Bytes {
    const TEXTS: [&str; 5] = ["bomb", "core_module", "multi_memory", "no_toolbox", "unknown_import"];
    if TEXTS.contains(&name) { text_component(name) } else { component(name) }
}

/// Calls a function of the tool's newest version.
pub(crate) async fn call(client: &Client, tool: &str, body: Value) -> Answer {
    client.post(&format!("/v1/tools/{tool}/versions/latest/calls"), body).await
}

/// What every neighbour must keep getting.
pub(crate) async fn calc_answers(client: &Client) {
    let body = json!({"function": "evaluate", "arguments": {"expression": "6 * 7"}});
    let row = call(client, "calc", body).await.ok();
    assert_eq!(row["outcome"]["content"], json!([{"type": "text", "text": "42"}]), "{row}");
}

/// A tenant whose plan differs.
pub(crate) async fn tenant_with(app: &TestApp, name: &str, overrides: Value) -> Client {
    let client = app.tenant(name).await;
    let patch = json!({"plan": "free", "overrides": overrides});
    app.operator().patch(&format!("/operator/v1/tenants/{}", client.tenant), patch).await.ok();
    client
}

/// Asks until a version is no longer compiling.
async fn settled(client: &Client, path: &str) -> Value {
    let began = Instant::now();
    loop {
        let version = client.get(path).await.ok();
        if version["status"] != "compiling" {
            return version;
        }
        assert!(began.elapsed() < PATIENCE, "still compiling: {version}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_uploaded_tool_shows_what_it_can() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    for (tool, functions) in
        [("calc", &["evaluate"] as &[&str]), ("clock", &["now", "days_between"]), ("table", &["query"])]
    {
        let bytes = component(tool);
        let answer = ada.upload(tool, bytes.clone()).await;
        let told = answer.headers.get("location").cloned();
        let version = answer.created();
        let location = format!("/v1/tools/{tool}/versions/{}", version["version"].as_str().unwrap());
        assert_eq!(told.unwrap(), location);
        assert_eq!((&version["status"], &version["number"]), (&json!("ready"), &json!(1)));
        assert_eq!(version["contract"], "belljar:tool@1.0.0");
        assert_eq!((&version["requires"], &version["size_bytes"]), (&json!({}), &json!(bytes.len())));
        let shown = version["functions"].as_array().unwrap();
        let names: Vec<_> = shown.iter().map(|function| function["name"].as_str().unwrap()).collect();
        assert_eq!(names, functions);
        for function in shown {
            let name = function["name"].as_str().unwrap();
            assert_eq!(function["model_name"], format!("{tool}__{name}"));
            assert!(function["description"].as_str().unwrap().len() > 20, "{function}");
            assert_eq!(function["input_schema"]["type"], "object");
        }
        assert_eq!(ada.get(&location).await.ok(), version);
        assert_eq!(ada.get(&format!("/v1/tools/{tool}/versions/latest")).await.ok(), version);
        assert_eq!(ada.get(&format!("/v1/tools/{tool}")).await.ok()["latest"], version);

        let download = ada.request(Method::GET, &format!("{location}/wasm")).send().await.unwrap();
        assert_eq!(download.headers()["content-type"], "application/wasm");
        assert_eq!(download.bytes().await.unwrap(), bytes);
    }
    let tools = ada.get("/v1/tools").await.ok();
    let names: Vec<_> = tools["data"].as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
    assert_eq!(names, ["table", "clock", "calc"], "newest first");
}

#[tokio::test]
async fn the_same_bytes_are_the_same_version() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let first = ada.upload("sums", component("calc")).await.created();
    assert_eq!(ada.upload("sums", component("calc")).await.ok(), first);

    let second = ada.upload("sums", component("clock")).await.created();
    assert_eq!(second["number"], 2);
    assert_eq!(ada.get("/v1/tools/sums/versions/latest").await.ok(), second);
    assert_eq!(ada.upload("sums", component("calc")).await.ok()["number"], 1, "an old version stays what it is");
    assert_eq!(ada.get("/v1/tools/sums/versions/latest").await.ok(), second);
    assert_eq!(ada.get("/v1/tools/sums/versions").await.ok()["data"], json!([second, first]));
    assert_eq!(ada.upload("other", component("calc")).await.created()["version"], first["version"]);
}

#[tokio::test]
async fn a_version_may_carry_a_label() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let upload = async |query: &str| {
        let request = ada.request(Method::POST, &format!("/v1/tools/calc/versions{query}"));
        Answer::of(request.header("content-type", "application/wasm").body(component("calc"))).await
    };
    assert_eq!(upload("?label=1.4.0").await.created()["label"], "1.4.0");
    assert_eq!(upload("").await.ok()["label"], "1.4.0", "no label changes none");
    assert_eq!(upload("?label=1.5.0").await.ok()["label"], "1.5.0");
    let problem = upload(&format!("?label={}", "x".repeat(65))).await.problem(422, "tool_version.bad_label");
    assert_eq!(problem["errors"][0]["pointer"], "/label");
    upload("?colour=red").await.problem(422, "request.invalid");
}

#[tokio::test]
async fn a_component_may_come_as_a_form() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let calc = component("calc");
    let form = async |parts: &[(&str, &[u8])]| {
        let mut body = Vec::new();
        for (name, bytes) in parts {
            let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n");
            body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
        }
        body.extend_from_slice(b"--x--\r\n");
        let request = ada.request(Method::POST, "/v1/tools/calc/versions");
        Answer::of(request.header("content-type", "multipart/form-data; boundary=x").body(body)).await
    };
    for (manifest, status, code, pointer) in
        [("{", 400, "request.bad_json", "/manifest"), (r#"{"colour": 1}"#, 422, "request.invalid", "/manifest/colour")]
    {
        let problem = form(&[("component", &calc), ("manifest", manifest.as_bytes())]).await.problem(status, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    form(&[("manifest", b"{}")]).await.problem(422, "request.invalid");
    form(&[("tool", &calc)]).await.problem(422, "request.invalid");
    assert_eq!(form(&[("component", &calc)]).await.created()["status"], "ready");
}

#[tokio::test]
async fn a_version_that_an_agent_uses_stays() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let pinned = ada.upload("calc", component("calc")).await.created();
    ada.agent("clerk", &["calc"]).await;
    let free = ada.upload("calc", component("clock")).await.created();
    let path = |version: &Value| format!("/v1/tools/calc/versions/{}", version["version"].as_str().unwrap());

    let problem = ada.delete(&path(&pinned)).await.problem(409, "tool_version.in_use");
    assert!(problem["detail"].as_str().unwrap().contains("`clerk`"), "{problem}");
    let problem = ada.delete("/v1/tools/calc").await.problem(409, "tool.in_use");
    assert!(problem["detail"].as_str().unwrap().contains("`clerk`"), "{problem}");
    assert_eq!(ada.get(&path(&pinned)).await.ok(), pinned);

    assert_eq!(ada.delete(&path(&free)).await.status, 204);
    ada.get(&path(&free)).await.problem(404, "tool_version.not_found");
    assert_eq!(ada.get("/v1/tools/calc/versions/latest").await.ok(), pinned);
    assert_eq!(ada.chat("clerk", "What is 6 * 7?").await["message"]["content"], "calc__evaluate says: 42");
}

#[tokio::test]
async fn an_upload_need_not_be_waited_for() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let request = ada.request(Method::POST, "/v1/tools/calc/versions?wait=0");
    let answer = Answer::of(request.header("content-type", "application/wasm").body(component("calc"))).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(answer.json()["status"], "compiling");
    let location = answer.headers["location"].to_str().unwrap();
    let version = settled(&ada, location).await;
    assert_eq!((&version["status"], &version["functions"][0]["name"]), (&json!("ready"), &json!("evaluate")));
    calc_answers(&ada).await;
}

#[tokio::test]
async fn an_upload_whose_process_died_is_claimed_again() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let version = ada.upload("calc", component("calc")).await.created();
    let died = "UPDATE belljar.tool_version
                SET status = 'compiling', functions = '[]', contract = NULL, claimed_until = now() - interval '1 minute'";
    let changed = sqlx::query(died).execute(&mut app.db.superuser().await).await.unwrap();
    assert_eq!(changed.rows_affected(), 1);
    let again = settled(&ada, &format!("/v1/tools/calc/versions/{}", version["version"].as_str().unwrap())).await;
    assert_eq!(again, version);
}

#[tokio::test]
async fn a_direct_call_is_answered_kept_and_billed() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let version = ada.upload("calc", component("calc")).await.created();
    let body = json!({"function": "evaluate", "arguments": {"expression": "0.1 + 0.2"}, "external_user_id": "u-1"});
    let row = call(&ada, "calc", body).await.ok();
    assert_eq!(
        (&row["tool"], &row["function"], &row["version"]),
        (&json!("calc"), &json!("evaluate"), &version["version"])
    );
    assert_eq!(row["outcome"], json!({"status": "ok", "content": [{"type": "text", "text": "0.3"}]}));
    assert_eq!(row["external_user_id"], "u-1");
    let receipt = &row["receipt"];
    let number = |name: &str| receipt[name].as_u64().unwrap();
    assert!(number("fuel_used") > 0 && number("memory_peak_bytes") > 0, "{receipt}");
    assert!(0 < number("instantiate_us") && number("instantiate_us") <= number("total_us"), "{receipt}");
    assert_eq!((&receipt["artifact"], &receipt["contract"]), (&version["version"], &json!("belljar:tool@1.0.0")));
    assert_eq!((&receipt["price"]["currency"], &receipt["price_book"]), (&json!("USD"), &json!(1)));
    assert!(receipt["price"]["amount"].as_str().unwrap().parse::<f64>().unwrap() > 0.0, "{receipt}");

    let id = row["id"].as_str().unwrap();
    assert_eq!(ada.get(&format!("/v1/tool-calls/{id}")).await.ok(), row);
    assert_eq!(ada.get("/v1/tool-calls?tool=calc&status=ok").await.ok()["data"], json!([row]));
    assert_eq!(ada.get("/v1/usage").await.ok()["total"]["cost"], receipt["price"]);

    for (change, status, code, pointer) in [
        (json!({"function": "divide"}), 422, "tool_call.function_not_found", "/function"),
        (json!({"arguments": {"expression": 1}}), 422, "tool_call.bad_arguments", "/arguments/expression"),
        (json!({"limits": {"fuel": 1_000_000_000_000_u64}}), 422, "tool_call.limit_above_plan", "/limits/fuel"),
        (json!({"limits": {"colour": 1}}), 422, "request.invalid", "/limits/colour"),
        (json!({"grants": {"colour": []}}), 422, "request.invalid", "/grants/colour"),
        (json!({"grants": {"http": [{"host": "a.example/"}]}}), 422, "request.invalid", "/grants/http/0/host"),
        (json!({"grants": {"scratch_bytes": 0}}), 422, "tool_call.bad_grants", "/grants/scratch_bytes"),
    ] {
        let mut body = json!({"function": "evaluate", "arguments": {"expression": "1"}});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let problem = call(&ada, "calc", body).await.problem(status, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    assert_eq!(
        ada.get("/v1/tool-calls").await.ok()["data"].as_array().unwrap().len(),
        1,
        "what never began is not kept"
    );
}

#[tokio::test]
async fn what_is_no_tool_is_told_why_and_nothing_is_lost() {
    let app = TestApp::start().await;
    let ada = app.tenant("ada").await;
    let ready = ada.upload("calc", component("calc")).await.created();
    let calc = component("calc");
    let not_wasm = |bytes: Bytes, words| ("not wasm", bytes, "component.not_wasm", words);
    let guests = REJECTED.iter().map(|(name, code, words)| (*name, guest(name), *code, *words));
    let cases = guests.chain([
        not_wasm(Bytes::new(), "send the bytes"),
        not_wasm(Bytes::from_static(b"#!/bin/sh\necho hello"), "wasm32-wasip2"),
        not_wasm(Bytes::from_static(b"(component)"), "wasm-tools parse"),
        not_wasm(calc.slice(..calc.len() / 2), "damaged"),
    ]);
    for (name, bytes, code, words) in cases {
        let problem = ada.upload("calc", bytes.clone()).await.problem(422, "tool_version.rejected");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("({code})")) && detail.contains(words), "{name}: {problem}");

        let newest = ada.get("/v1/tools/calc/versions?limit=1").await.ok()["data"][0].clone();
        assert_eq!((&newest["status"], &newest["rejection"]["code"]), (&json!("rejected"), &json!(code)), "{name}");
        assert_eq!(newest["functions"], json!([]), "{name}");
        let path = format!("/v1/tools/calc/versions/{}", newest["version"].as_str().unwrap());
        ada.post(&format!("{path}/calls"), json!({"function": "run"})).await.problem(422, "tool_version.rejected");
        ada.upload("calc", bytes).await.problem(422, "tool_version.rejected");
        let agent = json!({"name": "clerk", "system_prompt": "", "model": "demo",
                           "tools": [{"tool": "calc", "version": newest["version"]}]});
        ada.post("/v1/agents", agent).await.problem(422, "binding.version_not_ready");

        assert_eq!(ada.get("/v1/tools/calc/versions/latest").await.ok(), ready, "{name}");
        calc_answers(&ada).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compile_bomb_is_refused_in_time_and_the_neighbour_is_answered() {
    let app = TestApp::start().await;
    let (ada, mallory) = (app.tenant("ada").await, app.tenant("mallory").await);
    ada.upload("calc", component("calc")).await.created();
    let began = Instant::now();
    let bomb = mallory.upload("bomb", kit::compile_bomb(0));
    let neighbour = async {
        for _ in 0.. {
            calc_answers(&ada).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let problem = tokio::select! {
        answer = bomb => answer.problem(422, "tool_version.rejected"),
        () = neighbour => unreachable!(),
    };
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(problem["detail"].as_str().unwrap().contains("(component.compile_limit)"), "{problem}");
    calc_answers(&ada).await;
    mallory.upload("calc", component("calc")).await.created();
}

#[tokio::test]
async fn an_upload_that_cannot_be_taken_leaves_nothing() {
    let app = TestApp::start().await;
    let ada = tenant_with(&app, "ada", json!({"upload_bytes": 1000})).await;
    let problem = ada.upload("calc", component("calc")).await.problem(413, "request.too_large");
    assert!(problem["detail"].as_str().unwrap().contains("1000 bytes"), "{problem}");
    let full = tenant_with(&app, "bob", json!({"storage_bytes": 1000})).await;
    full.upload("calc", component("calc")).await.problem(413, "tool.storage_exceeded");

    let eve = app.tenant("eve").await;
    let upload = async |tool: &str, kind: &str| {
        let request = eve.request(Method::POST, &format!("/v1/tools/{tool}/versions"));
        Answer::of(request.header("content-type", kind).body(component("calc"))).await
    };
    upload("calc", "application/octet-stream").await.problem(415, "request.unsupported_media_type");
    upload("calc", "application/json").await.problem(415, "request.unsupported_media_type");
    for name in ["Calc", "my_tool", "1st", "a-name-of-more-than-thirty-chars"] {
        let problem = upload(name, "application/wasm").await.problem(422, "request.invalid");
        assert!(problem["errors"][0]["detail"].as_str().unwrap().contains("^[a-z]"), "{problem}");
    }
    for client in [&ada, &full, &eve] {
        assert_eq!(client.get("/v1/tools").await.ok()["data"], json!([]));
        client.get("/v1/tools/calc").await.problem(404, "tool.not_found");
    }
}
