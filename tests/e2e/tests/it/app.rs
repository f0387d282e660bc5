//! The product on a random port, and clients for its people.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use belljar::{
    config::Platform,
    serve::{self, Listeners},
    wire,
};
use bytes::Bytes;
use domain::SecretString;
use eventsource_stream::Eventsource;
use futures::StreamExt;
use kit::TestDb;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tenancy::{DbSettings, keys::KeyKind, seal::MasterKey};
use tokio::{sync::oneshot, task::JoinHandle};

const OPERATOR_TOKEN: &str = "the-operator-token-of-a-test";

/// The whole product. Dropped, it is told to stop.
pub(crate) struct TestApp {
    pub(crate) db: TestDb,
    pub(crate) tenant_url: String,
    pub(crate) operator_url: String,
    pub(crate) http: reqwest::Client,
    serving: Serving,
    _cache: tempfile::TempDir,
}

/// The listening product. Dropped, it is gone at once.
struct Serving {
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

impl TestApp {
    pub(crate) async fn start() -> TestApp {
        TestApp::with_egress(Vec::new()).await
    }

    /// With private addresses that tenants may reach.
    pub(crate) async fn with_egress(allow_egress: Vec<SocketAddr>) -> TestApp {
        TestApp::on(TestDb::start().await, kit::master_key(), allow_egress).await
    }

    /// On a database that another one has left.
    pub(crate) async fn on(db: TestDb, master_key: MasterKey, allow_egress: Vec<SocketAddr>) -> TestApp {
        TestApp::whole(db, master_key, allow_egress, Platform::default()).await
    }

    /// With model providers that the platform pays.
    pub(crate) async fn with_platform(platform: Platform) -> TestApp {
        TestApp::whole(TestDb::start().await, kit::master_key(), Vec::new(), platform).await
    }

    async fn whole(db: TestDb, master_key: MasterKey, allow_egress: Vec<SocketAddr>, platform: Platform) -> TestApp {
        let cache = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let listeners = Listeners::bind(any, any).await.unwrap();
        let url = |listener: &tokio::net::TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (tenant_url, operator_url) = (url(&listeners.tenant), url(&listeners.operator));
        let app = Box::pin(wire::assemble(wire::Settings {
            database: DbSettings { url: SecretString::from(db.url()), connections: 8 },
            master_key,
            cache_dir: cache.path().join("compiled"),
            compile_command: vec![env!("CARGO_BIN_EXE_e2e-compile-component").into()],
            key_kind: KeyKind::Test,
            operator_token: Some(SecretString::from(OPERATOR_TOKEN)),
            concurrent_runs: 64,
            concurrent_tool_calls: 16,
            allow_egress,
            redis_url: None,
            platform,
        }))
        .await
        .unwrap();
        let (stop, stopped) = oneshot::channel();
        let until = async move {
            let _ = stopped.await;
        };
        #[expect(clippy::disallowed_methods, reason = "the test waits for it in `stop`")]
        let task = tokio::spawn(serve::run(app, listeners, Duration::from_secs(10), until));
        #[expect(clippy::disallowed_methods, reason = "a test's client is no way out of the product")]
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        let serving = Serving { stop: Some(stop), task: Some(task) };
        TestApp { db, tenant_url, operator_url, http, serving, _cache: cache }
    }

    /// Stops as on SIGTERM and waits until all work has ended. Leaves the database.
    pub(crate) async fn stop(mut self) -> TestDb {
        drop(self.serving.stop.take());
        self.serving.task.take().unwrap().await.unwrap().unwrap();
        self.db
    }

    /// A tenant on the plan `pro`, made by the operator, with a key for everything.
    pub(crate) async fn tenant(&self, name: &str) -> Client {
        let tenant = self.operator().post("/operator/v1/tenants", json!({"name": name, "plan": "pro"})).await.created();
        let id = tenant["id"].as_str().unwrap().to_owned();
        let key = json!({"name": "test", "scopes": ["admin"]});
        let key = self.operator().post(&format!("/operator/v1/tenants/{id}/api-keys"), key).await.created();
        let mut client = self.client(key["key"].as_str().unwrap());
        client.tenant = id;
        client
    }

    pub(crate) fn client(&self, key: &str) -> Client {
        Client { http: self.http.clone(), url: self.tenant_url.clone(), key: key.to_owned(), tenant: String::new() }
    }

    pub(crate) fn operator(&self) -> Client {
        Client {
            http: self.http.clone(),
            url: self.operator_url.clone(),
            key: OPERATOR_TOKEN.to_owned(),
            tenant: String::new(),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Somebody with a key.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    pub(crate) key: String,
    /// `ten_...`
    pub(crate) tenant: String,
}

impl Client {
    /// A request with the key, not yet sent.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PATCH, path).json(&body)).await
    }

    /// Uploads a component and waits for the verdict.
    pub(crate) async fn upload(&self, tool: &str, component: impl Into<Bytes>) -> Answer {
        let request = self
            .request(Method::POST, &format!("/v1/tools/{tool}/versions"))
            .header("content-type", "application/wasm")
            .body(component.into());
        Answer::of(request).await
    }

    /// The same with a manifest, as a form.
    pub(crate) async fn upload_with(&self, tool: &str, component: impl Into<Bytes>, manifest: &str) -> Answer {
        let part = |name: &str| format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        let (first, second, end) = (part("manifest"), part("component"), "\r\n--x--\r\n");
        let component: Bytes = component.into();
        let body = [first.as_bytes(), manifest.as_bytes(), b"\r\n", second.as_bytes(), &component, end.as_bytes()];
        let request = self
            .request(Method::POST, &format!("/v1/tools/{tool}/versions"))
            .header("content-type", "multipart/form-data; boundary=x")
            .body(body.concat());
        Answer::of(request).await
    }

    /// The same tenant with another key, of these scopes.
    pub(crate) async fn with_scopes(&self, scopes: &[&str]) -> Client {
        let key = self.post("/v1/api-keys", json!({"name": "scoped", "scopes": scopes})).await.created();
        Client { key: key["key"].as_str().unwrap().to_owned(), ..self.clone() }
    }

    /// Stores a secret.
    pub(crate) async fn secret(&self, name: &str, value: &str) {
        self.put(&format!("/v1/secrets/{name}"), json!({"value": value})).await.created();
    }

    /// An agent on the demo model with the newest versions of these tools.
    pub(crate) async fn agent(&self, name: &str, tools: &[&str]) {
        let tools: Vec<Value> = tools.iter().map(|tool| json!({"tool": tool, "version": "latest"})).collect();
        let agent = json!({"name": name, "system_prompt": "You help.", "model": "demo", "tools": tools});
        self.post("/v1/agents", agent).await.created();
    }

    /// One turn, as JSON, whatever it came to.
    pub(crate) async fn chat(&self, agent: &str, message: &str) -> Value {
        self.post(&format!("/v1/agents/{agent}/chat"), json!({"message": message})).await.ok()
    }

    /// One turn, as a stream: the events in order, each `(id, event, data)`.
    pub(crate) async fn chat_stream(&self, agent: &str, message: &str) -> Vec<(String, String, Value)> {
        let path = format!("/v1/agents/{agent}/chat");
        let request = self.request(Method::POST, &path).json(&json!({"message": message, "stream": true}));
        events(request.send().await.unwrap()).await
    }
}

/// Reads an event stream to its end.
pub(crate) async fn events(response: Response) -> Vec<(String, String, Value)> {
    assert_eq!(response.status(), StatusCode::OK);
    response
        .bytes_stream()
        .eventsource()
        .map(|event| {
            let event = event.unwrap();
            (event.id, event.event, serde_json::from_str(&event.data).unwrap())
        })
        .collect()
        .await
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text))
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    #[track_caller]
    pub(crate) fn created(self) -> Value {
        assert_eq!(self.status, 201, "{}", self.text);
        assert!(self.headers.contains_key("location"), "a created thing has a Location: {:?}", self.headers);
        self.json()
    }

    /// A problem with this status and code, in the form of every problem.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{}", self.text);
        for field in ["type", "title", "detail", "request_id"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", self.text);
        }
        assert_eq!(problem["status"], status);
        problem
    }
}

/// A built component: an example tool or a guest, by its file name.
pub(crate) fn component(name: &str) -> Bytes {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guests");
    let path = folder.join(format!("{name}.wasm"));
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; build the guests first: cargo xtask guests", path.display()))
        .into()
}

/// A guest written as text.
pub(crate) fn text_component(name: &str) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../guests/wat/{name}.wat"));
    wat::parse_file(path).unwrap().into()
}
