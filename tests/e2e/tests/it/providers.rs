//! Models behind an OpenAI-compatible address that a tenant chose: what it is asked, what its answers become, and what
//! happens when it fails.

mod failing;
mod kinds;
mod request_key;
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
    let key = json!({"kind": "azure", "api_key": KEY});
    let answer = ada.put("/v1/provider-keys/other", key).await;
    assert!(!answer.text.contains(KEY), "{}", answer.text);
    answer.problem(422, "request.invalid");
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
