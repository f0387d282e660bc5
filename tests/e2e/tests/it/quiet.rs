//! Invariant 5: a secret goes in and comes out nowhere: no answer, no row, no line of a log tells it.

mod tools;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use gateway::{operator_routes, tenant_routes};
use kit::TestDb;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tenancy::seal::MasterKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    app::{Answer, Client, TestApp, component},
    isolation::{Names, fill},
    outside::{Outside, escaped},
};

const PROVIDER_KEY: &str = "sk-canary-0123456789abcdefghijklmnop";
const PROVIDER_KEY_IN_A_HEADER: &str = "sk-canary-in-a-header-0123456789";
const REFUSED_PROVIDER_KEY: &str = "sk-canary-refused-0123456789";
/// 32 bytes.
const MASTER_KEY: &str = "canary-of-the-master-key-0123456";
const WORDS: &str = "words-that-only-ada-says";

/// Everything that this process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All answers, each with what was asked.
#[derive(Default)]
struct Answers(Vec<(String, String)>);

impl Answers {
    async fn ask(&mut self, client: &Client, method: &str, path: &str, body: Value) -> Value {
        let method: Method = method.parse().unwrap();
        let request = client.request(method.clone(), path);
        let answer = Answer::of(if body.is_null() { request } else { request.json(&body) }).await;
        self.keep(&format!("{method} {path}"), &answer);
        serde_json::from_str(&answer.text).unwrap_or_default()
    }

    fn keep(&mut self, asked: &str, answer: &Answer) {
        self.0.push((asked.to_owned(), format!("{} {:?}\n{}", answer.status, answer.headers, answer.text)));
    }
}

/// A model provider that tells everybody the key it was given: in headers, in errors, in reasons.
async fn indiscreet_provider() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            answer_indiscreetly(stream).await;
        }
    });
    address
}

async fn answer_indiscreetly(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    let whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        length.is_none_or(|length| body.len() >= length)
    };
    while !whole(&request) {
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => request.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let key = request.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap_or_default();
    let status = match path.split('/').nth(1) {
        Some("works") => "200 OK",
        Some("refuses") => "401 Unauthorized",
        Some("breaks") => "500 Broken",
        _ => "400 Bad Request",
    };
    let (kind, body) = if status == "200 OK" {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": "good day"}, "finish_reason": "stop"}]});
        ("text/event-stream", format!("data: {chunk}\n\ndata: [DONE]\n\n"))
    } else {
        let said = format!("wrong key {key}, as in: {request}");
        ("application/json", json!({"error": {"message": said, "type": key, "code": key}}).to_string())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nx-key: {key}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}

/// Every row of every table, as text; bytes are hexadecimal there.
async fn dump(superuser: &mut PgConnection) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.oid::regclass::text FROM pg_class c
         WHERE c.relkind IN ('r', 'p') AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)",
    )
    .fetch_all(&mut *superuser)
    .await
    .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    let mut dump = String::new();
    for table in tables {
        let sql = format!("SELECT t::text FROM {table} t");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *superuser).await.unwrap();
        dump.push_str(&format!("{table}\n{}\n", rows.join("\n")));
    }
    dump
}

/// What a secret may look like where it was written down.
fn forms(secret: &str) -> Vec<String> {
    let json = json!(secret).to_string();
    let twice = json!(json).to_string();
    let quoted = |text: &str| text.trim_matches(['"', '\\']).to_owned();
    vec![
        secret.to_owned(),
        hexadecimal(secret),
        escaped(secret),
        BASE64_STANDARD.encode(secret),
        quoted(&json),
        quoted(&twice),
    ]
}

fn hexadecimal(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_secret_is_in_no_answer_no_row_and_no_log() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let (provider, outside) = (indiscreet_provider().await, Outside::reflecting().await);
    let master_key = MasterKey::new(*MASTER_KEY.as_bytes().first_chunk().unwrap());
    let app = TestApp::on(TestDb::start().await, master_key, vec![provider, outside.address]).await;
    let mut answers = Answers::default();
    let operator = app.operator();

    // Keys, minted by the operator and by the tenant. The one answer that shows a key is not kept.
    let ada = app.tenant("ada").await;
    let minted = ada.post("/v1/api-keys", json!({"name": "second", "scopes": ["admin"]})).await.created();
    let second = app.client(minted["key"].as_str().unwrap());
    answers.ask(&second, "GET", "/v1/tenant", Value::Null).await;
    let unknown = app.client("bj_test_canary000000000000000000000000000000000000000000000");
    answers.ask(&unknown, "GET", "/v1/tenant", Value::Null).await;
    // A key in the wrong place.
    answers.ask(&second, "GET", &format!("/v1/runs?api_key={}", second.key), Value::Null).await;
    answers.ask(&second, "GET", &format!("/v1/runs/{}", second.key), Value::Null).await;
    answers.ask(&second, "POST", "/v1/api-keys", json!({"name": "x", "scopes": [], "key": second.key})).await;

    // A webhook's secrets. The answers that show them are not kept.
    let hook = json!({"url": format!("http://{provider}/works/hook"), "events": ["run.completed", "run.failed"]});
    let hook = ada.post("/v1/webhooks", hook).await.created();
    let webhook = hook["id"].as_str().unwrap().to_owned();
    let rotated = ada.post(&format!("/v1/webhooks/{webhook}/rotate-secret"), json!({})).await.ok();

    // A provider's key: stored, stored again, refused.
    let key = |at: &str| json!({"kind": "openai_compatible", "api_key": PROVIDER_KEY, "base_url": format!("http://{provider}/{at}/v1")});
    for at in ["works", "refuses", "breaks", "complains"] {
        answers.ask(&ada, "PUT", &format!("/v1/provider-keys/{at}"), key(at)).await;
        answers.ask(&ada, "PUT", &format!("/v1/provider-keys/{at}"), key(at)).await;
    }
    for (field, value) in [
        ("api_key", json!(format!("{REFUSED_PROVIDER_KEY} with spaces"))),
        ("api_key", json!([REFUSED_PROVIDER_KEY])),
        ("kind", json!("azure")),
        ("base_url", json!("http://169.254.169.254/v1")),
        ("base_url", json!(format!("http://user:{REFUSED_PROVIDER_KEY}@{provider}/v1"))),
        ("apikey", json!(REFUSED_PROVIDER_KEY)),
    ] {
        let mut body = key("refused");
        body["api_key"] = json!(REFUSED_PROVIDER_KEY);
        body[field] = value;
        let problem = answers.ask(&ada, "PUT", "/v1/provider-keys/refused", body).await;
        assert!(problem["status"].as_u64().unwrap() >= 400, "{problem}");
    }

    // The key is used, and the provider tells it again.
    ada.upload("echo", component("echo")).await.created();
    for at in ["works", "refuses", "breaks", "complains"] {
        let tools = json!([{"tool": "echo", "version": "latest"}]);
        let body = json!({"name": at, "system_prompt": WORDS, "model": format!("{at}/gpt"), "tools": tools});
        answers.ask(&ada, "POST", "/v1/agents", body).await;
        let path = format!("/v1/agents/{at}/chat");
        let turn = answers.ask(&ada, "POST", &path, json!({"message": WORDS})).await;
        let (status, expected) = (&turn["run"]["status"], if at == "works" { "completed" } else { "failed" });
        assert_eq!(status, expected, "{turn}");
        answers.ask(&ada, "POST", &path, json!({"message": WORDS, "stream": true})).await;
        let request = ada.request(Method::POST, &path).header("x-provider-key", PROVIDER_KEY_IN_A_HEADER);
        answers.keep(&path, &Answer::of(request.json(&json!({"message": WORDS}))).await);
    }
    ada.agent("clerk", &["echo"]).await;
    let said = format!("/echo__run {{\"x\": \"{WORDS}\"}}");
    let turn = answers.ask(&ada, "POST", "/v1/agents/clerk/chat", json!({"message": said})).await;
    let id = |value: &Value| value.as_str().unwrap().to_owned();
    assert_eq!(turn["tool_calls"][0]["outcome"]["status"], "ok", "{turn}");

    // Tools are given secrets, and what they reach tells them again.
    let told = tools::use_secrets(&mut answers, &ada, &outside).await;

    // Everything that can be read.
    let deliveries = ada.get(&format!("/v1/webhooks/{webhook}/deliveries")).await.ok();
    let names = Names::from([
        ("agents", "works".to_owned()),
        ("revisions", "1".into()),
        ("tools", "echo".into()),
        ("versions", "latest".into()),
        ("tool-calls", told.recorded.clone()),
        ("secrets", "bound0".into()),
        ("key-value", "notes".into()),
        ("{namespace}", "today".into()),
        ("conversations", id(&turn["conversation_id"])),
        ("runs", id(&turn["run"]["id"])),
        ("price-books", "1".into()),
        ("deliveries", id(&deliveries["data"][0]["id"])),
        ("webhooks", webhook),
        ("budgets", "bud_of_nobody".into()),
        ("tenants", ada.tenant.clone()),
        ("plans", "pro".into()),
    ]);
    for (client, routes) in [(&ada, tenant_routes()), (&operator, operator_routes())] {
        for (_, path) in routes.iter().filter(|(method, _)| *method == Method::GET) {
            answers.ask(client, "GET", &fill(path, &names), Value::Null).await;
        }
    }
    let runs = ada.get("/v1/runs").await.ok();
    for run in runs["data"].as_array().unwrap() {
        for path in [format!("/v1/runs/{}", id(&run["id"])), format!("/v1/runs/{}/events", id(&run["id"]))] {
            answers.ask(&ada, "GET", &path, Value::Null).await;
        }
    }
    let calls = ada.get("/v1/tool-calls?limit=100").await.ok();
    for call in calls["data"].as_array().unwrap() {
        let path = format!("/v1/tool-calls/{}", id(&call["id"]));
        for path in [path.clone(), format!("{path}/recording")] {
            answers.ask(&ada, "GET", &path, Value::Null).await;
        }
        answers.ask(&ada, "POST", &format!("{path}/replay"), json!({"version": "latest"})).await;
    }
    let rows = dump(&mut app.db.superuser().await).await;
    answers.ask(&ada, "DELETE", "/v1/provider-keys/works", Value::Null).await;
    answers.ask(&ada, "DELETE", &format!("/v1/api-keys/{}", id(&minted["id"])), Value::Null).await;
    answers.ask(&second, "GET", "/v1/tenant", Value::Null).await;
    let (operator_token, keys) = (operator.key.clone(), [ada.key.clone(), second.key.clone(), unknown.key.clone()]);
    app.stop().await;
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();

    // What is looked for can be found.
    assert!(rows.contains(WORDS) && log.contains("answered") && log.contains(" TRACE "), "{log}");
    assert!(answers.0.iter().any(|(_, told)| told.contains(WORDS)));
    let mut secrets: Vec<&str> =
        vec![PROVIDER_KEY, PROVIDER_KEY_IN_A_HEADER, REFUSED_PROVIDER_KEY, &operator_token, MASTER_KEY];
    secrets.extend(keys.iter().map(String::as_str));
    secrets.extend([&hook, &rotated].map(|shown| shown["secret"].as_str().unwrap()));
    secrets.extend(told.canaries.iter().map(String::as_str));
    assert!(secrets.len() >= 20, "{}", secrets.len());
    for secret in secrets {
        let forms = forms(secret);
        for (asked, told) in &answers.0 {
            let form = forms.iter().find(|form| told.contains(form.as_str()));
            assert!(form.is_none(), "{asked} answers with a secret, as `{form:?}`: {told}");
        }
        for form in forms {
            let row = rows.lines().find(|row| row.contains(&form));
            assert!(row.is_none(), "a row holds `{form}`: {row:?}");
            let line = log.lines().find(|line| line.contains(&form));
            assert!(line.is_none(), "a log holds `{form}`: {line:?}");
        }
    }
    let line = log.lines().find(|line| line.contains(WORDS));
    assert!(line.is_none(), "a log repeats what was said: {line:?}");
}
