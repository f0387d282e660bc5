//! The two listeners, without a network.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_config::Admission;
use agent_runtime::AgentRuntime;
use axum::{Router, body::Body, response::Response};
use domain::{Problem, SecretString, SystemClock, SystemIds};
use egress::Egress;
use gateway::{Gateway, Parts, RedisUrl};
use http::{HeaderMap, Method, Request, StatusCode, header};
use kit::{FakeExecutor, FakeInspector, TestDb, master_key};
use model_providers::Providers;
use serde_json::{Value, json};
use tenancy::keys::KeyKind;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

pub(crate) const OPERATOR_TOKEN: &str = "operator-token";

pub(crate) struct App {
    pub(crate) tenants: Router,
    pub(crate) operator: Router,
    pub(crate) shutdown: CancellationToken,
    db: TestDb,
}

/// A tenant's key, and the listener it is used at.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) router: Router,
    pub(crate) key: String,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl App {
    pub(crate) async fn start() -> App {
        App::with_redis(None).await
    }

    pub(crate) async fn with_redis(redis: Option<RedisUrl>) -> App {
        let db = TestDb::start().await;
        let mut global = db.db.global().await.unwrap();
        let now = domain::Clock::now(&SystemClock);
        billing_meter::prices::install_default(&mut global, now).await.unwrap();
        global.commit().await.unwrap();
        let shutdown = CancellationToken::new();
        let gateway = over(&db, shutdown.clone(), redis);
        App {
            tenants: gateway::tenant_router(gateway.clone()),
            operator: gateway::operator_router(gateway),
            shutdown,
            db,
        }
    }

    /// Another process's listener for tenants, over the same database.
    pub(crate) fn replica(&self, redis: Option<RedisUrl>) -> Router {
        gateway::tenant_router(over(&self.db, self.shutdown.clone(), redis))
    }

    /// Lets a tenant make as many requests and runs as a test likes.
    pub(crate) async fn generous(&self, tenant: &str) {
        let overrides = json!({"overrides": {"requests_per_minute": 100_000, "concurrent_runs": 64}});
        self.operator().patch(&format!("/operator/v1/tenants/{tenant}"), overrides).await.ok();
    }

    pub(crate) fn operator(&self) -> Client {
        Client { router: self.operator.clone(), key: OPERATOR_TOKEN.into() }
    }

    /// A new tenant's client, with a key that may do everything.
    pub(crate) async fn tenant(&self, name: &str) -> Client {
        let operator = self.operator();
        let id = operator.post("/operator/v1/tenants", json!({"name": name})).await.created()["id"].clone();
        let path = format!("/operator/v1/tenants/{}/api-keys", id.as_str().unwrap());
        let key = operator.post(&path, json!({"name": "all", "scopes": ["admin"]})).await.created();
        self.client(&key)
    }

    /// The client of a key that was just minted.
    pub(crate) fn client(&self, minted: &Value) -> Client {
        Client { router: self.tenants.clone(), key: minted["key"].as_str().unwrap().into() }
    }
}

fn over(db: &TestDb, shutdown: CancellationToken, redis: Option<RedisUrl>) -> Gateway {
    let db = db.db.clone();
    let egress = Egress::new(Vec::new()).unwrap();
    let providers = Arc::new(Providers::new(egress.clone(), BTreeMap::new()));
    let (clock, ids, inspector) = (Arc::new(SystemClock), Arc::new(SystemIds), Arc::new(FakeInspector));
    let runtime = AgentRuntime::new(agent_runtime::Parts {
        db: db.clone(),
        executor: Arc::new(FakeExecutor::echo()),
        inspector: inspector.clone(),
        providers: providers.clone(),
        master_key: master_key(),
        clock: clock.clone(),
        ids: ids.clone(),
        settings: agent_runtime::Settings::default(),
    });
    Gateway::new(Parts {
        db,
        runtime,
        admission: Arc::new(Admission::new(inspector, clock.clone(), ids.clone())),
        master_key: master_key(),
        key_kind: KeyKind::Test,
        operator_token: SecretString::from(OPERATOR_TOKEN),
        clock,
        ids,
        check_provider_url: Arc::new(move |url| {
            egress.check_url(url).map(drop).map_err(|error| Box::new(error) as Box<dyn Problem>)
        }),
        platform_providers: providers.platform_names(),
        metrics: gateway::metrics::install().unwrap(),
        background: TaskTracker::new(),
        shutdown,
        redis,
    })
}

impl Client {
    pub(crate) async fn send(&self, request: http::request::Builder, body: impl Into<Body>) -> Answered {
        let authorized = request.header(header::AUTHORIZATION, format!("Bearer {}", self.key));
        answered(&self.router, authorized.body(body.into()).unwrap()).await
    }

    pub(crate) async fn json(&self, method: Method, path: &str, body: Value) -> Answered {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        self.send(request, body.to_string()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.send(Request::get(path), Body::empty()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answered {
        self.send(Request::delete(path), Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answered {
        self.json(Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answered {
        self.json(Method::PATCH, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answered {
        self.json(Method::PUT, path, body).await
    }

    pub(crate) async fn upload(&self, path: &str, component: &'static str) -> Answered {
        self.send(Request::post(path).header(header::CONTENT_TYPE, "application/wasm"), component).await
    }

    /// A tool `echo`, bound to an agent `clerk` with the demo model.
    pub(crate) async fn clerk(&self) -> Value {
        self.upload("/v1/tools/echo/versions", "wasm").await.created();
        let agent = json!({
            "name": "clerk", "system_prompt": "help", "model": "demo", "tools": [{"tool": "echo", "version": "latest"}],
        });
        self.post("/v1/agents", agent).await.created()
    }
}

pub(crate) async fn answered(router: &Router, request: Request<Body>) -> Answered {
    let response: Response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = tokio::time::timeout(Duration::from_secs(60), axum::body::to_bytes(body, usize::MAX)).await;
    let text = String::from_utf8(bytes.unwrap().unwrap().to_vec()).unwrap();
    Answered { status: parts.status, headers: parts.headers, text }
}

impl Answered {
    fn is(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    pub(crate) fn ok(&self) -> Value {
        self.is(200)
    }

    pub(crate) fn created(&self) -> Value {
        assert!(self.headers.contains_key(header::LOCATION), "{}", self.text);
        self.is(201)
    }

    pub(crate) fn accepted(&self) -> Value {
        self.is(202)
    }

    pub(crate) fn done(&self) {
        self.is(204);
    }

    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let body = self.is(status);
        assert_eq!(body["code"], code, "{}", self.text);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(body["request_id"], self.headers["x-request-id"].to_str().unwrap());
        body
    }
}
