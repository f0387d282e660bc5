//! Secrets that tools are given: added to what they send, or read by them.

use reqwest::Method;
use serde_json::{Value, json};

use super::Answers;
use crate::{
    app::{Answer, Client, component},
    outside::{Outside, unescaped},
};

/// Where a request may carry a secret, and the canaries that it carries there: some need escapes in JSON, some in a URL.
const IN_HEADERS: [&str; 4] =
    ["canary-in-a-header-0001", "canary in a header 0002", "canary\"in\\a'header-0003", "canary/in+a=header&0004"];
const IN_THE_QUERY: [&str; 4] = [
    "canary-in-the-query-0005",
    "canary in the query 0006",
    "canary&in=the?query#0007",
    "canary%2Fin%20the%query-0008",
];
const BASIC: [&str; 3] = ["canary-as-a-password-0009", "canary as:a:password 0010", "canary\"as/a\\password-0011"];
const READABLE: [&str; 3] = ["canary-that-is-read-0012", "canary \"that\" is read 0013", "canary/that+is=read-0014"];
/// Never stored: each stands in a request that is refused.
const REFUSED: &str = "canary-that-is-refused-0015";

pub(super) struct Told {
    pub(super) canaries: Vec<String>,
    /// The id of a call that was recorded.
    pub(super) recorded: String,
}

async fn store(answers: &mut Answers, ada: &Client, name: &str, value: &str, readable: bool) {
    let path = format!("/v1/secrets/{name}");
    let body = json!({"value": value, "readable": readable});
    for _ in 0..2 {
        let stored = answers.ask(ada, "PUT", &path, body.clone()).await;
        assert_eq!(stored["name"], name, "{stored}");
    }
}

/// Stores secrets, gives them to tools, and lets the tools show them to a server that tells everything again.
pub(super) async fn use_secrets(answers: &mut Answers, ada: &Client, outside: &Outside) -> Told {
    for (field, value) in [
        ("value", json!([REFUSED])),
        ("value", json!(REFUSED.repeat(10_000))),
        ("value", json!({"text": REFUSED})),
        ("hosts", json!(["not a host"])),
        ("secret", json!(REFUSED)),
    ] {
        let mut body = json!({"value": REFUSED});
        body[field] = value;
        let problem = answers.ask(ada, "PUT", "/v1/secrets/refused", body).await;
        assert_eq!(problem["status"], 422, "{problem}");
    }
    let request = ada.request(Method::PUT, "/v1/secrets/refused").body(format!("{{\"value\": \"{REFUSED}"));
    let request = request.header("content-type", "application/json");
    answers.keep("PUT /v1/secrets/refused", &Answer::of(request).await);

    let bound: Vec<&str> = [&IN_HEADERS[..], &IN_THE_QUERY, &BASIC].concat();
    for (at, value) in bound.iter().enumerate() {
        store(answers, ada, &format!("bound{at}"), value, false).await;
    }
    for (at, value) in READABLE.iter().enumerate() {
        store(answers, ada, &format!("read{at}"), value, true).await;
    }
    // What the reflected requests carry besides.
    let request = ada.request(Method::PUT, "/v1/key-value/notes/today").body("nothing secret");
    answers.keep("PUT /v1/key-value/notes/today", &Answer::of(request).await);

    answers.keep("POST /v1/tools/fetch/versions", &ada.upload("fetch", component("fetch")).await);
    let grants = grants(outside);
    let tools = json!([{"tool": "fetch", "version": "latest", "grants": grants, "record": true}]);
    let agent = json!({"name": "sender", "system_prompt": "You send.", "model": "demo", "tools": tools});
    let agent = answers.ask(ada, "POST", "/v1/agents", agent).await;
    assert!(agent["id"].is_string(), "{agent}");
    let mut recorded = String::new();
    let paths = ["/header0", "/header1", "/header2", "/header3", "/query", "/basic0", "/basic1", "/basic2"];
    for path in paths {
        let url = outside.url(&format!("{path}/page?asked=openly"));
        let said = format!("/fetch__get {}", json!({"url": url}));
        let turn = answers.ask(ada, "POST", "/v1/agents/sender/chat", json!({"message": said})).await;
        let made = &turn["tool_calls"][0];
        assert_eq!(made["outcome"]["status"], "ok", "{turn}");
        assert!(!made["receipt"]["secrets_used"].as_array().unwrap().is_empty(), "{turn}");
        recorded = made["id"].as_str().unwrap().to_owned();
        answers.ask(ada, "POST", "/v1/agents/sender/chat", json!({"message": said, "stream": true})).await;
        let body = json!({"function": "get", "arguments": {"url": url}, "grants": grants, "record": true});
        let row = answers.ask(ada, "POST", "/v1/tools/fetch/versions/latest/calls", body).await;
        assert_eq!(row["outcome"]["status"], "ok", "{row}");
    }
    slips(answers, ada).await;
    arrived(outside);
    let canaries = bound.iter().chain(&READABLE).chain([&REFUSED]).map(|canary| (*canary).to_owned()).collect();
    Told { canaries, recorded }
}

fn grants(outside: &Outside) -> Value {
    let host = |path: String| json!({"host": outside.host(), "paths": [path], "plain_http": true});
    let mut http = Vec::new();
    let formats = ["Bearer {}", "{}", "key={}, more", "{}"];
    for (at, format) in formats.iter().enumerate() {
        let mut grant = host(format!("/header{at}"));
        grant["headers"] = json!([{"name": format!("x-key-{at}"), "secret": format!("bound{at}"), "format": format}]);
        http.push(grant);
    }
    let mut grant = host("/query".into());
    let bound = (0..4).map(|at| json!({"name": format!("key{at}"), "secret": format!("bound{}", 4 + at)}));
    grant["query"] = bound.collect();
    http.push(grant);
    for at in 0..3 {
        let mut grant = host(format!("/basic{at}"));
        grant["basic"] = json!({"user": "ada", "secret": format!("bound{}", 8 + at)});
        http.push(grant);
    }
    json!({"http": http})
}

/// A tool that may read its secrets says them wherever it can: in logs, in progress, in its answer, in a crash.
async fn slips(answers: &mut Answers, ada: &Client) {
    let reader = component("secret_reader");
    answers.keep("POST /v1/tools/reader/versions", &ada.upload("reader", reader).await);
    let grants = json!({
        "secrets": ["read0", "read1", "read2"], "key_value": [{"namespace": "notes", "access": "read"}],
    });
    let tools = json!([{"tool": "reader", "version": "latest", "grants": grants, "record": true}]);
    let agent = json!({"name": "reader", "system_prompt": "You read.", "model": "demo", "tools": tools});
    let agent = answers.ask(ada, "POST", "/v1/agents", agent).await;
    assert!(agent["id"].is_string(), "{agent}");
    for function in ["length", "slip", "slip_and_fail", "slip_and_panic", "slip_progress"] {
        for secret in ["read0", "read1", "read2"] {
            let arguments = json!({"name": secret});
            let said = format!("/reader__{function} {arguments}");
            let turn = answers.ask(ada, "POST", "/v1/agents/reader/chat", json!({"message": said})).await;
            assert_eq!(turn["tool_calls"][0]["receipt"]["secrets_used"], json!([secret]), "{turn}");
            answers.ask(ada, "POST", "/v1/agents/reader/chat", json!({"message": said, "stream": true})).await;
            let body = json!({"function": function, "arguments": arguments, "grants": grants, "record": true});
            let row = answers.ask(ada, "POST", "/v1/tools/reader/versions/latest/calls", body).await;
            assert_eq!(row["receipt"]["secrets_used"], json!([secret]), "{row}");
        }
        // One that a grant names and that may not be read.
        let body = json!({"function": function, "arguments": {"name": "bound0"}, "grants": {"secrets": ["bound0"]}});
        answers.ask(ada, "POST", "/v1/tools/reader/versions/latest/calls", body).await;
    }
}

/// What is looked for was really sent.
fn arrived(outside: &Outside) {
    let asked = outside.asked();
    for (at, value) in IN_HEADERS.iter().enumerate() {
        let shown = |headers: &std::collections::BTreeMap<String, String>| {
            headers.get(&format!("x-key-{at}")).is_some_and(|shown| shown.contains(value))
        };
        assert!(asked.iter().any(|asked| shown(&asked.headers)), "{value}");
    }
    for value in IN_THE_QUERY {
        let mut pairs = asked.iter().flat_map(|asked| asked.query.split('&')).filter_map(|pair| pair.split_once('='));
        assert!(pairs.any(|(_, sent)| unescaped(sent) == value), "{value}");
    }
    let basic = asked.iter().filter(|asked| asked.path.starts_with("/basic"));
    assert_eq!(basic.filter(|asked| asked.headers["authorization"].starts_with("Basic ")).count(), 9);
}
