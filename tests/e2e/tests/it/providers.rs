//! Models behind an OpenAI-compatible address that a tenant chose: what it is asked, what its answers become, and what
//! happens when it fails.

mod upstream;

use serde_json::{Value, json};

use crate::app::{Answer, Client, TestApp, component};
use upstream::{STREAM, Script, Upstream, delta, finish, fragment, usage};

const KEY: &str = "sk-a-secret-of-adas";

/// A product in which a tenant has the provider `acme`.
struct Stage {
    app: TestApp,
    ada: Client,
    upstream: Upstream,
}

impl Stage {
    async fn set() -> Stage {
        let upstream = Upstream::start().await;
        let app = TestApp::with_egress(vec![upstream.address]).await;
        let ada = app.tenant("ada").await;
        provider(&ada, "acme", &upstream.base_url()).await.created();
        ada.upload("calc", component("calc")).await.created();
        ada.upload("clock", component("clock")).await.created();
        Stage { app, ada, upstream }
    }

    /// An agent on this model with both tools, and what else is said.
    async fn agent(&self, name: &str, model: Value, more: Value) {
        let tools = json!([{"tool": "calc", "version": "latest"}, {"tool": "clock", "version": "latest"}]);
        let mut agent = json!({"name": name, "system_prompt": "You help {{who}}.", "model": model, "tools": tools});
        agent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ada.post("/v1/agents", agent).await.created();
    }
}

async fn provider(client: &Client, name: &str, base_url: &str) -> Answer {
    let key = json!({"kind": "openai_compatible", "api_key": KEY, "base_url": base_url});
    client.put(&format!("/v1/provider-keys/{name}"), key).await
}

/// Two calls whose fragments come interleaved, torn in the middle of words.
fn two_calls() -> Script {
    let start =
        |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}});
    let more = |text: &str| json!({"function": {"arguments": text}});
    Script::chunks(&[
        delta(json!({"role": "assistant", "content": null})),
        fragment(0, start("call_a", "calc__evaluate")),
        fragment(1, start("call_b", "clock__days_between")),
        fragment(1, more("{\"fr")),
        fragment(0, more("{\"expres")),
        fragment(1, more("om\": \"2026-01-01\", \"t")),
        fragment(0, more("sion\": \"12.5")),
        fragment(0, more(" * 3\"}")),
        fragment(1, more("o\": \"2026-02-01\"}")),
        finish("tool_calls"),
        usage(100, 40, 20),
    ])
}

#[tokio::test]
async fn tool_calls_in_fragments_are_put_together_run_and_billed() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({})).await;
    upstream.then(two_calls()).then(Script::says(&["It is 37.5, ", "und es sind ", "31 T\u{e4}ge."], 200, 0, 10));
    let body = json!({"message": "How much, how long?", "context": {"who": "Ada"}});
    let turn = ada.post("/v1/agents/clerk/chat", body).await.ok();
    assert_eq!((&turn["run"]["status"], &turn["run"]["steps"]), (&json!("completed"), &json!(2)), "{turn}");
    assert_eq!(turn["message"]["content"], "It is 37.5, und es sind 31 T\u{e4}ge.");
    let calls = turn["tool_calls"].as_array().unwrap();
    let [calc, clock] = calls.as_slice() else { panic!("{turn}") };
    assert_eq!(
        (&calc["arguments"], &calc["outcome"]["content"][0]["text"]),
        (&json!({"expression": "12.5 * 3"}), &json!("37.5"))
    );
    assert_eq!(clock["arguments"], json!({"from": "2026-01-01", "to": "2026-02-01"}));
    assert_eq!(clock["outcome"]["structured"], json!({"days": 31, "weekdays": 22}));

    // What the provider was asked: everything it needs, and nothing that was not set.
    let asked = upstream.asked();
    for request in &asked {
        assert_eq!(request.line, "POST /v1/chat/completions HTTP/1.1");
        assert_eq!(request.headers["authorization"], format!("Bearer {KEY}"));
        assert_eq!((&request.body["model"], &request.body["stream"]), (&json!("m-1"), &json!(true)));
        assert_eq!(request.body["stream_options"], json!({"include_usage": true}));
        let mut fields: Vec<_> = request.body.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["messages", "model", "stream", "stream_options", "tools"]);
        let tools = request.body["tools"].as_array().unwrap();
        let names: Vec<_> = tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["calc__evaluate", "clock__now", "clock__days_between"]);
        assert_eq!(tools[0]["function"]["parameters"]["type"], "object");
    }
    let [first, second] = asked.as_slice() else { panic!("{asked:?}") };
    let said = [
        json!({"role": "system", "content": "You help Ada."}),
        json!({"role": "user", "content": "How much, how long?"}),
    ];
    assert_eq!(first.body["messages"], json!(said));
    let messages = second.body["messages"].as_array().unwrap();
    assert_eq!(messages[..2], said);
    assert_eq!((&messages[2]["role"], &messages[2]["content"]), (&json!("assistant"), &Value::Null));
    let arguments = messages[2]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), calc["arguments"]);
    let results: Vec<_> = messages[3..].iter().map(|message| (&message["role"], &message["tool_call_id"])).collect();
    assert_eq!(results, [(&json!("tool"), &json!("call_a")), (&json!("tool"), &json!("call_b"))]);
    assert_eq!(messages[3]["content"], "37.5");

    // Tokens as the provider counted them, at the price of a tenant's own key.
    let events = ada.get("/v1/usage/events").await.ok()["data"].clone();
    let events = events.as_array().unwrap();
    let mut tokens: Vec<_> = events
        .iter()
        .filter(|event| event["kind"].as_str().unwrap().starts_with("model_"))
        .map(|event| {
            assert_eq!((&event["provider"], &event["model"]), (&json!("own:acme"), &json!("m-1")));
            assert_eq!((&event["unit_price"], &event["per"]), (&json!("0.1"), &json!(1_000_000)));
            (event["kind"].as_str().unwrap(), event["quantity"].as_str().unwrap())
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(
        tokens,
        [
            ("model_cached_input_tokens", "40"),
            ("model_input_tokens", "200"),
            ("model_input_tokens", "60"),
            ("model_output_tokens", "10"),
            ("model_output_tokens", "20"),
        ]
    );
    assert_eq!(
        (&turn["run"]["usage"]["input_tokens"], &turn["run"]["usage"]["output_tokens"]),
        (&json!(300), &json!(30))
    );
    assert_eq!(ada.get("/v1/usage").await.ok()["total"]["cost"], turn["run"]["cost"]);
}

#[tokio::test]
async fn what_an_agent_sets_is_sent_and_nothing_else() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let model =
        json!({"provider": "acme", "name": "family/m-2", "max_output_tokens": 50, "options": {"seed": 7, "n": 3}});
    stage.agent("tuned", model, json!({"temperature": "0.25"})).await;
    upstream.then(Script::says(&["Hi."], 10, 0, 2));
    assert_eq!(ada.chat("tuned", "Hi").await["message"]["content"], "Hi.");
    let asked = upstream.asked();
    let body = &asked[0].body;
    for (field, value) in
        [("temperature", json!(0.25)), ("max_tokens", json!(50)), ("seed", json!(7)), ("n", Value::Null)]
    {
        assert_eq!(body[field], value, "{field}");
    }
    assert_eq!(body["model"], "family/m-2");

    // A provider that reports no usage: it is counted.
    upstream.then(Script::chunks(&[delta(json!({"content": "Hello there."})), finish("stop")]));
    let turn = ada.chat("tuned", "Hi").await;
    assert!(turn["run"]["usage"]["input_tokens"].as_u64().unwrap() > 50, "the tools count: {turn}");
    assert_eq!(turn["run"]["usage"]["output_tokens"], 3, "{turn}");
}

#[tokio::test]
async fn the_stream_of_a_provider_is_passed_on() {
    let stage = Stage::set().await;
    stage.agent("clerk", json!("acme/m-1"), json!({})).await;
    stage.upstream.then(two_calls()).then(Script::says(&["Gr\u{fc}", "\u{df}e."], 200, 0, 10));
    let told = stage.ada.chat_stream("clerk", "Go").await;
    let kinds: Vec<_> = told.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!((kinds.len(), kinds[0]), (10, "run.started"));
    let of_calls = kinds[1..5].iter().filter(|kind| **kind == "tool_call.started").count();
    assert_eq!((of_calls, kinds[1]), (2, "tool_call.started"));
    assert_eq!(kinds[5..], ["step.completed", "message.delta", "message.delta", "step.completed", "run.completed"]);
    assert_eq!((&told[6].2["text"], &told[7].2["text"]), (&json!("Gr\u{fc}"), &json!("\u{df}e.")));
    assert_eq!((told[6].0.as_str(), told[7].0.as_str()), ("6.4", "6.8"), "the offset counts bytes");
}

#[tokio::test]
async fn a_provider_that_fails_fails_the_run_with_a_code_and_costs_nothing() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({"limits": {"deadline_seconds": 60}})).await;
    let said = |words: &str| json!({"error": {"message": words, "type": "x"}});
    let status = |status: &str, headers: &str| Script::refusal(status, headers, &said("no"));
    let stream = |body: &str| Script::raw(format!("{STREAM}{body}"));
    let four_billion = fragment(4_294_967_295, json!({"id": "a", "function": {"name": "calc__evaluate"}}));
    let leaks = Script::refusal("400 Bad Request", "", &said(&format!("what is {KEY}?")));
    for (name, script, times, code, words) in [
        ("a wrong key", status("401 Unauthorized", ""), 1, "provider.key_refused", "provider key named `acme`"),
        (
            "too many requests",
            status("429 Too Many Requests", "retry-after: 0\r\n"),
            3,
            "provider.rate_limited",
            "try later",
        ),
        (
            "an hour's wait",
            status("429 Too Many Requests", "retry-after: 3600\r\n"),
            1,
            "provider.rate_limited",
            "try later",
        ),
        ("a failure", status("500 Internal Server Error", ""), 3, "provider.unavailable", "try again"),
        ("an unknown model", status("404 Not Found", ""), 1, "provider.model_not_found", "`m-1`"),
        ("our key in its words", leaks, 1, "provider.request_refused", "what is [key]?"),
        (
            "a page",
            Script::raw("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html></html>"),
            1,
            "provider.bad_stream",
            "base_url",
        ),
        (
            "a redirect",
            Script::raw("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"),
            1,
            "provider.bad_stream",
            "another address",
        ),
        ("garbage", stream("data: {\"choices\": 7}\n\n"), 1, "provider.bad_stream", "base_url"),
        (
            "bytes",
            Script::raw([STREAM.as_bytes(), b"data: \xff\xfe\n\n"].concat()),
            1,
            "provider.bad_stream",
            "base_url",
        ),
        ("a line without end", stream(&"x".repeat(1 << 20)), 1, "provider.bad_stream", "256 KiB"),
        (
            "a call's index of four billion",
            stream(&format!("data: {four_billion}\n\n")),
            1,
            "provider.bad_stream",
            "above 63",
        ),
        (
            "an error in the stream",
            stream(&format!("data: {}\n\n", said("overloaded"))),
            3,
            "provider.unavailable",
            "overloaded",
        ),
        ("a closed door", Script::raw(""), 3, "egress.connect_failed", "127.0.0.1"),
    ] {
        for _ in 0..times {
            upstream.then(script.clone());
        }
        let answer = ada.post("/v1/agents/clerk/chat", json!({"message": name})).await;
        assert!(!answer.text.contains(KEY), "{name}: {}", answer.text);
        let turn = answer.ok();
        let run = &turn["run"];
        assert_eq!((&run["status"], &run["stop_reason"]), (&json!("failed"), &json!("error")), "{name}: {turn}");
        assert_eq!(run["error"]["code"], code, "{name}: {turn}");
        assert!(run["error"]["detail"].as_str().unwrap().contains(words), "{name}: {turn}");
        assert_eq!(
            (&run["cost"]["amount"], &run["steps"], &turn["message"]),
            (&json!("0"), &json!(0), &Value::Null),
            "{name}"
        );
        assert_eq!(upstream.asked().len(), times, "{name}");

        // Nothing is lost: the message is kept, and the conversation can go on.
        let path = format!("/v1/conversations/{}/messages", turn["conversation_id"].as_str().unwrap());
        assert_eq!(ada.get(&path).await.ok()["data"][0]["content"], name);
        upstream.then(Script::says(&["Here I am."], 10, 0, 2));
        let again = json!({"message": "Hello?", "conversation_id": turn["conversation_id"]});
        let turn = ada.post("/v1/agents/clerk/chat", again).await.ok();
        assert_eq!(turn["message"]["content"], "Here I am.", "{name}: {turn}");
        upstream.asked();
    }
}

#[tokio::test]
async fn a_passing_failure_is_tried_again() {
    let stage = Stage::set().await;
    stage.agent("clerk", json!("acme/m-1"), json!({})).await;
    let no = json!({"error": {"message": "no"}});
    stage
        .upstream
        .then(Script::refusal("429 Too Many Requests", "retry-after: 0\r\n", &no))
        .then(Script::refusal("503 Service Unavailable", "", &no))
        .then(Script::says(&["Now."], 10, 0, 2));
    assert_eq!(stage.ada.chat("clerk", "Hi").await["message"]["content"], "Now.");
    assert_eq!(stage.upstream.asked().len(), 3);
}

#[tokio::test]
async fn a_provider_that_hangs_is_left_at_the_runs_deadline() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    stage.agent("clerk", json!("acme/m-1"), json!({"limits": {"deadline_seconds": 2}})).await;
    let partial = format!("{STREAM}data: {}\n\n", delta(json!({"content": "I think that"})));
    for (script, kept) in
        [(Script::hang(""), None), (Script::hang(STREAM), None), (Script::hang(partial), Some("I think that"))]
    {
        upstream.then(script);
        let turn = ada.chat("clerk", "Hi").await;
        let run = &turn["run"];
        assert_eq!((&run["status"], &run["stop_reason"]), (&json!("failed"), &json!("deadline")), "{turn}");
        assert_eq!(run["error"]["code"], "run.deadline", "{turn}");
        assert_eq!(turn["message"]["content"].as_str(), kept, "{turn}");
        upstream.asked();
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_kept_and_counted() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let fallback = json!({"fallback_models": ["demo"]});
    stage.agent("clerk", json!("acme/m-1"), fallback).await;
    let line = format!("data: {}\n\n", delta(json!({"content": "The answer is"})));
    // A connection that ends, and one that breaks in the middle of a chunk.
    let chunked = STREAM.replace("connection: close", "transfer-encoding: chunked");
    let broken = format!("{chunked}{:x}\r\n{line}\r\nff\r\ndata: ", line.len());
    let call = fragment(0, json!({"id": "a", "function": {"name": "calc__evaluate", "arguments": "{}"}}));
    let with_call = format!("{STREAM}{line}data: {call}\n\n");
    for script in [format!("{STREAM}{line}"), broken, with_call] {
        upstream.then(Script::raw(script));
        let told = ada.chat_stream("clerk", "Hi").await;
        let kinds: Vec<_> = told.iter().map(|(_, kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["run.started", "message.delta", "step.completed", "run.failed"]);
        let turn = &told[3].2;
        assert_eq!(turn["run"]["error"]["code"], "provider.cut_short", "{turn}");
        assert_eq!((&turn["message"]["content"], &turn["tool_calls"]), (&json!("The answer is"), &json!([])), "{turn}");
        assert!(turn["run"]["usage"]["input_tokens"].as_u64().unwrap() > 50, "{turn}");
        assert!(turn["run"]["usage"]["output_tokens"].as_u64().unwrap() >= 3, "{turn}");
        assert_ne!(turn["run"]["cost"]["amount"], "0");
        let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.ok();
        assert_eq!(run["timeline"][0]["model"], "acme/m-1", "what was said cannot be unsaid: no other model is asked");
        assert_eq!(upstream.asked().len(), 1);
    }
}

#[tokio::test]
async fn another_model_is_asked_when_the_first_fails_before_its_first_word() {
    let stage = Stage::set().await;
    let Stage { app, ada, upstream } = &stage;
    provider(ada, "second", &upstream.base_url()).await.created();
    let models = json!({"fallback_models": [{"provider": "second", "name": "m-2", "temperature": 0.5}, "demo"]});
    stage.agent("clerk", json!("acme/m-1"), models).await;
    let refused = || Script::refusal("401 Unauthorized", "", &json!({"error": {"message": "no"}}));
    upstream.then(refused()).then(Script::says(&["I am second."], 10, 0, 2));
    let turn = ada.chat("clerk", "What is 6 * 7?").await;
    assert_eq!(turn["message"]["content"], "I am second.");
    let asked = upstream.asked();
    assert_eq!((&asked[0].body["model"], &asked[0].body["temperature"]), (&json!("m-1"), &Value::Null));
    assert_eq!((&asked[1].body["model"], &asked[1].body["temperature"]), (&json!("m-2"), &json!(0.5)));
    let run = ada.get(&format!("/v1/runs/{}", turn["run"]["id"].as_str().unwrap())).await.ok();
    assert_eq!(run["timeline"][0]["model"], "second/m-2");
    let events = ada.get("/v1/usage/events").await.ok();
    assert!(events["data"].as_array().unwrap().iter().all(|event| event["provider"] == "own:second"), "{events}");

    // Each step asks the first one again.
    upstream.then(refused()).then(refused()).then(refused()).then(refused());
    let turn = ada.chat("clerk", "What is 6 * 7?").await;
    assert_eq!(turn["message"]["content"], "calc__evaluate says: 42", "the demo model is the last");
    assert_eq!(upstream.asked().len(), 4);

    // A stranger has no such provider, whatever name it is given.
    let bob = app.tenant("bob").await;
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "acme/m-1"});
    bob.post("/v1/agents", agent).await.created();
    assert_eq!(bob.chat("clerk", "Hi").await["run"]["error"]["code"], "provider.unknown");
}

#[tokio::test]
async fn an_address_that_is_not_public_is_refused() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let port = upstream.address.port();
    for url in [
        "https://127.0.0.1/v1",
        "http://127.0.0.1:1/v1",
        "https://localhost/v1",
        "https://api.localhost/v1",
        "https://10.0.0.1/v1",
        "https://192.168.1.1:8443/v1",
        "https://169.254.169.254/latest/meta-data",
        "http://169.254.169.254/v1",
        "https://0x7f000001/v1",
        "https://2130706433/v1",
        "https://[::1]/v1",
        "https://[::ffff:169.254.169.254]/v1",
        "https://[fd00:ec2::254]/v1",
        // The operator allowed one address at this port, and no other.
        &format!("http://127.0.0.2:{port}/v1"),
    ] {
        let problem = provider(ada, "inside", url).await.problem(422, "egress.address_refused");
        assert!(problem["detail"].as_str().unwrap().contains("--allow-egress"), "{problem}");
    }
    for (url, code) in [
        ("http://example.com/v1", "egress.bad_url"),
        ("ftp://example.com/v1", "egress.bad_url"),
        ("https://user:pass@example.com/v1", "egress.bad_url"),
        ("https://example.com/v1?key=1", "provider_key.bad_base_url"),
        ("example.com", "egress.bad_url"),
    ] {
        provider(ada, "inside", url).await.problem(422, code);
    }
    assert_eq!(ada.get("/v1/provider-keys").await.ok()["data"].as_array().unwrap().len(), 1, "nothing of them is kept");

    // A name is looked up when it is used. This machine's own names need no network.
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let names = hosts.lines().filter(|line| line.starts_with("127.")).flat_map(|line| line.split_whitespace().skip(1));
    for (n, name) in names.filter(|name| !name.starts_with("localhost") && !name.starts_with('#')).take(2).enumerate() {
        let inside = format!("inside-{n}");
        provider(ada, &inside, &format!("https://{name}/v1")).await.created();
        let agent = json!({"name": inside, "system_prompt": "", "model": format!("{inside}/m")});
        ada.post("/v1/agents", agent).await.created();
        let turn = ada.chat(&inside, "Hi").await;
        assert_eq!(turn["run"]["error"]["code"], "egress.address_refused", "{name}: {turn}");
        assert!(!turn.to_string().contains("127."), "the address is our own network's: {turn}");
    }
    assert_eq!(upstream.asked().len(), 0);
}

#[tokio::test]
async fn a_providers_key_goes_in_and_never_comes_out() {
    let stage = Stage::set().await;
    let Stage { ada, upstream, .. } = &stage;
    let again = provider(ada, "acme", &upstream.base_url()).await;
    assert_eq!(again.status, 200, "{}", again.text);
    stage.agent("clerk", json!("acme/m-1"), json!({})).await;
    // A provider that repeats the key, in its words and in a call.
    let call = fragment(0, json!({"id": "a", "function": {"name": "calc__evaluate", "arguments": "{}"}}));
    let error = json!({"error": {"message": format!("{KEY} is overloaded"), "type": "invalid_request_error"}});
    upstream.then(Script::raw(format!("{STREAM}data: {call}\n\ndata: {error}\n\n")));
    let turn = ada.post("/v1/agents/clerk/chat", json!({"message": "Hi"})).await;
    assert_eq!(upstream.asked()[0].headers["authorization"], format!("Bearer {KEY}"));
    for answer in [
        again,
        turn,
        ada.get("/v1/provider-keys").await,
        ada.get("/v1/agents/clerk").await,
        ada.get("/v1/runs").await,
        ada.get("/v1/models").await,
        ada.get("/v1/usage/events").await,
        provider(ada, "acme", "https://10.0.0.1/").await,
    ] {
        assert!(!answer.text.contains(KEY), "{}", answer.text);
    }
    let key = json!({"kind": "anthropic", "api_key": KEY});
    let answer = ada.put("/v1/provider-keys/other", key).await;
    assert!(!answer.text.contains(KEY), "{}", answer.text);
    answer.problem(422, "provider_key.kind_unavailable");
    let database: Vec<String> = sqlx::query_scalar("SELECT p::text FROM belljar.provider_key p")
        .fetch_all(&mut stage.app.db.superuser().await)
        .await
        .unwrap();
    assert_eq!(database.len(), 1);
    let in_hex: String = KEY.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert!(!database[0].contains(KEY) && !database[0].contains(&in_hex), "it is sealed");
    assert_eq!(ada.delete("/v1/provider-keys/acme").await.status, 204);
    assert_eq!(ada.chat("clerk", "Hi").await["run"]["error"]["code"], "provider.unknown");
}
