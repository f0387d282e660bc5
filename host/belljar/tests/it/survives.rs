//! Invariant 3 with a real kill: what was accepted is there, and nothing is charged twice.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures::StreamExt;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::{
    process::Dev,
    upstream::{Answer, Upstream, delta, finish, usage},
};

/// A lease lasts 15 s; whoever looks for abandoned runs looks every second.
const RESUMED_SECONDS_MAX: u64 = 40;

fn decimal(money: &Value) -> Decimal {
    Decimal::from_str_exact(money["amount"].as_str().unwrap()).unwrap()
}

/// The usage events of the tenant. Their sum is the total, and no cause is billed twice.
async fn bill(dev: &Dev) -> Vec<Value> {
    let events = dev.get("/v1/usage/events?limit=100").await["data"].as_array().unwrap().clone();
    let total = dev.get("/v1/usage").await["total"].clone();
    assert_eq!(total["events"], events.len());
    assert_eq!(decimal(&total["cost"]), events.iter().map(|event| decimal(&event["amount"])).sum());
    let of_calls = events.iter().filter(|event| event["call_id"].is_string());
    let mut causes: Vec<String> = of_calls.map(|event| format!("{} {}", event["call_id"], event["kind"])).collect();
    let count = causes.len();
    causes.sort();
    causes.dedup();
    assert_eq!(causes.len(), count, "{events:#?}");
    events
}

/// Reads a stream up to the first event of this name; answers its data and the names before it.
async fn until<B: AsRef<[u8]>>(
    stream: &mut (impl futures::Stream<Item = reqwest::Result<B>> + Unpin),
    unread: &mut String,
    name: &str,
) -> (Value, Vec<String>) {
    let mut before = Vec::new();
    loop {
        while let Some((event, rest)) = unread.split_once("\n\n") {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let (event, data) = (field("event: "), field("data: "));
            *unread = rest.to_owned();
            match event {
                Some(event) if event == name => return (serde_json::from_str(&data.unwrap()).unwrap(), before),
                Some(event) => before.push(event),
                None => {}
            }
        }
        let bytes = stream.next().await.unwrap_or_else(|| panic!("no {name} after {before:?}")).unwrap();
        unread.push_str(str::from_utf8(bytes.as_ref()).unwrap());
    }
}

/// Calls `calc`, then begins to speak and falls silent; asked once more, it answers, and again.
async fn model() -> Upstream {
    let function = json!({"name": "calc__evaluate", "arguments": "{\"expression\": \"12.5 * 3\"}"});
    let call = json!({"index": 0, "id": "call_a", "type": "function", "function": function});
    let calls = vec![delta(json!({"tool_calls": [call]})), finish("tool_calls"), usage(100, 40, 20)];
    Upstream::start(vec![
        Answer { chunks: calls, ends: true },
        Answer { chunks: vec![delta(json!({"content": "It is"}))], ends: false },
        Answer::says("It is 37.5.", 200, 5),
        Answer::says("Still 37.5.", 300, 7),
    ])
    .await
}

async fn start(home: &Path, upstream: &Upstream) -> Dev {
    Dev::start_with(home, |command| command.args(["--allow-egress", &upstream.address.to_string()])).await
}

/// The messages of a conversation, as roles and texts; and what they have to say of tools.
async fn said(dev: &Dev, conversation: &str) -> (Vec<(String, String)>, Vec<Value>) {
    let messages = dev.get(&format!("/v1/conversations/{conversation}/messages")).await;
    let messages = messages["data"].as_array().unwrap().clone();
    let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
    let said = messages.iter().map(|message| (text(message, "role"), text(message, "content"))).collect();
    let parts = messages.iter().flat_map(|message| message["parts"].as_array().unwrap().clone());
    (said, parts.filter(|part| part["type"] != "text").collect())
}

#[tokio::test]
async fn a_run_that_is_killed_in_its_second_step_goes_on_from_its_first_and_is_charged_once() {
    let (home, upstream) = (tempfile::tempdir().unwrap(), model().await);
    let dev = start(home.path(), &upstream).await;
    let url = format!("http://{}/v1", upstream.address);
    dev.put("/v1/provider-keys/acme", json!({"kind": "openai_compatible", "api_key": "sk-1", "base_url": url})).await;
    let tools = json!([{"tool": "calc", "version": "latest"}]);
    let agent = json!({"name": "clerk", "system_prompt": "", "model": "acme/m-1", "tools": tools});
    assert_eq!(dev.post("/v1/agents", agent).send().await.unwrap().status().as_u16(), 201);

    let turn = json!({"message": "How much?", "stream": true});
    let stream = dev.post("/v1/agents/clerk/chat", turn).send().await.unwrap();
    assert_eq!(stream.status().as_u16(), 200);
    let (mut stream, mut unread) = (stream.bytes_stream(), String::new());
    let (started, _) = until(&mut stream, &mut unread, "run.started").await;
    let (completed, before) = until(&mut stream, &mut unread, "step.completed").await;
    assert_eq!(before, ["tool_call.started", "tool_call.completed"]);
    // Killed in the middle of the second step's answer.
    let (begun, _) = until(&mut stream, &mut unread, "message.delta").await;
    assert_eq!(begun["text"], "It is");
    dev.kill();

    let dev = start(home.path(), &upstream).await;
    let conversation = started["conversation_id"].as_str().unwrap();
    let (messages, tools) = said(&dev, conversation).await;
    let roles: Vec<&str> = messages.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool"], "{messages:?}");
    assert_eq!(messages[0].1, "How much?");
    let [call, result] = tools.as_slice() else { panic!("{tools:#?}") };
    assert_eq!((&call["type"], &call["name"]), (&json!("tool_call"), &json!("calc__evaluate")));
    assert_eq!((&result["type"], &result["id"], &result["text"]), (&json!("tool_result"), &call["id"], &json!("37.5")));

    let path = format!("/v1/runs/{}", started["run_id"].as_str().unwrap());
    let run = dev.get(&path).await;
    assert_eq!((&run["steps"], &run["cost"]), (&json!(1), &completed["cost"]), "{run}");
    assert_eq!(run["timeline"].as_array().unwrap().len(), 1, "{run}");
    assert_eq!(run["timeline"][0]["tool_calls"], json!([call["id"]]));
    let calls = dev.get(&format!("/v1/tool-calls?run={}", started["run_id"].as_str().unwrap())).await;
    let [recorded] = calls["data"].as_array().unwrap().as_slice() else { panic!("{calls}") };
    assert_eq!((&recorded["id"], &recorded["step"]), (&call["id"], &run["timeline"][0]["step"]));
    assert_eq!(recorded["outcome"]["content"][0]["text"], "37.5");
    assert!(recorded["receipt"]["fuel_used"].as_u64().unwrap() > 0, "{recorded}");

    let first_bill = bill(&dev).await;
    let mut quantities: Vec<(&str, &str)> = first_bill
        .iter()
        .map(|event| {
            assert_eq!(event["run_id"], started["run_id"]);
            (event["kind"].as_str().unwrap(), event["quantity"].as_str().unwrap())
        })
        .collect();
    quantities.sort_unstable();
    let fuel = recorded["receipt"]["fuel_used"].to_string();
    let [cached, input, output, burnt, (held, _)] = quantities.as_slice() else { panic!("{quantities:?}") };
    assert_eq!(
        (*cached, *input, *output, *burnt, *held),
        (
            ("model_cached_input_tokens", "40"),
            ("model_input_tokens", "60"),
            ("model_output_tokens", "20"),
            ("tool_fuel", fuel.as_str()),
            "tool_memory_byte_seconds"
        )
    );
    assert_eq!(first_bill.iter().map(|event| decimal(&event["amount"])).sum::<Decimal>(), decimal(&run["cost"]));

    // It goes on from there. The step that was cut off is asked for again, and billed as it was answered.
    let run = resumed(&dev, &path).await;
    assert_eq!((&run["status"], &run["steps"]), (&json!("completed"), &json!(2)), "{run}");
    let whole_bill = bill(&dev).await;
    let (old, second): (Vec<Value>, Vec<Value>) =
        whole_bill.iter().cloned().partition(|event| first_bill.contains(event));
    assert_eq!(old.len(), first_bill.len(), "{whole_bill:#?}");
    let mut quantities: Vec<&str> = second.iter().map(|event| event["quantity"].as_str().unwrap()).collect();
    quantities.sort_unstable();
    assert_eq!(quantities, ["200", "5"], "{second:#?}");
    assert_eq!(whole_bill.iter().map(|event| decimal(&event["amount"])).sum::<Decimal>(), decimal(&run["cost"]));
    let (after, _) = said(&dev, conversation).await;
    assert_eq!(after[..3], messages[..], "nothing is said twice");
    assert_eq!(after[3..], [("assistant".to_owned(), "It is 37.5.".to_owned())]);
    assert_eq!(upstream.asked().len(), 3);

    // The next turn goes on from what was committed, and is billed for itself.
    let again = json!({"message": "And now?", "conversation_id": conversation});
    let answer: Value = dev.post("/v1/agents/clerk/chat", again).send().await.unwrap().json().await.unwrap();
    assert_eq!((&answer["run"]["status"], &answer["message"]["content"]), (&json!("completed"), &json!("Still 37.5.")));
    let asked = upstream.asked();
    let roles: Vec<&Value> = asked[3]["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant", "user"], "{}", asked[3]);
    let (old, new): (Vec<Value>, Vec<Value>) =
        bill(&dev).await.into_iter().partition(|event| event["run_id"] == started["run_id"]);
    assert_eq!(old.len(), whole_bill.len());
    assert_eq!(new.iter().map(|event| decimal(&event["amount"])).sum::<Decimal>(), decimal(&answer["run"]["cost"]));
    assert_eq!(dev.stop(), Some(0));
}

/// Waits until the run that nobody drives was gone on with, to its end.
async fn resumed(dev: &Dev, path: &str) -> Value {
    let began = Instant::now();
    loop {
        let run = dev.get(path).await;
        if run["status"] != "running" {
            return run;
        }
        assert!(began.elapsed() < Duration::from_secs(RESUMED_SECONDS_MAX), "still running: {run}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_turn_that_was_answered_202_is_there_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let dev = Dev::start(home.path()).await;
    let mut conversations = Vec::new();
    for n in 0..5 {
        let turn = json!({"message": format!("message {n}"), "background": true});
        let answer = dev.post("/v1/agents/assistant/chat", turn).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
        let run: Value = answer.json().await.unwrap();
        conversations.push(run["conversation_id"].as_str().unwrap().to_owned());
    }
    dev.kill();
    let dev = Dev::start(home.path()).await;
    for (n, conversation) in conversations.iter().enumerate() {
        let messages = dev.get(&format!("/v1/conversations/{conversation}/messages")).await;
        assert_eq!(messages["data"][0]["content"], format!("message {n}"));
    }
    bill(&dev).await;
}
