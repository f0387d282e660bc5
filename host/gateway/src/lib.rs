//! HTTP: authentication, limits, routing, SSE and the OpenAPI document.
//!
//! Owns: no table.
//! May use: domain, tool-api, tenancy, agent-config, conversation-store, billing-meter, agent-runtime.
//! Never: writes SQL; holds a business rule.
//! Start at: `lib::tenant_router`.

mod answer;
mod caller;
mod cors;
pub mod idempotency;
mod json;
mod limits;
pub mod metrics;
mod openapi;
mod page;
mod path;
mod problem;
mod rates;
mod routes;
mod said;
mod sse;

use std::{ops::Deref, sync::Arc};

use agent_config::Admission;
use agent_runtime::AgentRuntime;
use axum::{Router, extract::DefaultBodyLimit, middleware, routing::get};
use domain::{Clock, Ids, Problem, SecretString};
use metrics_exporter_prometheus::PrometheusHandle;
use tenancy::{
    Db,
    keys::{KeyHasher, KeyKind},
    seal::MasterKey,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use openapi::{operator_routes, tenant_routes};
pub use rates::RedisUrl;

/// Whether a provider's URL may be called: egress decides, which only the binary knows.
pub type UrlCheck = dyn Fn(&str) -> Result<(), Box<dyn Problem>> + Send + Sync;

/// What the gateway is made of.
pub struct Parts {
    pub db: Db,
    pub runtime: AgentRuntime,
    pub admission: Arc<Admission>,
    pub master_key: MasterKey,
    /// Of the keys that are minted here.
    pub key_kind: KeyKind,
    pub operator_token: SecretString,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
    pub check_provider_url: Arc<UrlCheck>,
    /// Providers whose key is the platform's; `demo` needs no mention.
    pub platform_providers: Vec<String>,
    /// From `metrics::install`.
    pub metrics: PrometheusHandle,
    /// What goes on when its request has been answered: draining waits for it.
    pub background: TaskTracker,
    /// Ends event streams, and makes `/readyz` say so.
    pub shutdown: CancellationToken,
    /// Where replicas count requests together. `None`: each on its own.
    pub redis: Option<RedisUrl>,
}

/// What every handler may ask.
#[derive(Clone)]
pub struct Gateway {
    parts: Arc<Parts>,
    hasher: Arc<KeyHasher>,
    cursors: page::CursorKey,
    shared: Arc<limits::Shared>,
    rates: Arc<rates::Rates>,
}

impl Gateway {
    pub fn new(parts: Parts) -> Self {
        Self {
            hasher: Arc::new(KeyHasher::new(&parts.master_key)),
            cursors: page::CursorKey::new(&parts.master_key),
            shared: Arc::new(limits::Shared::new()),
            rates: Arc::new(rates::Rates::new(parts.redis.as_ref())),
            parts: Arc::new(parts),
        }
    }
}

impl Deref for Gateway {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// The tenants' listener.
pub fn tenant_router(gateway: Gateway) -> Router {
    let router = tenant_api().split_for_parts().0.route("/openapi.json", get(openapi::tenant));
    surrounded(router, gateway).layer(middleware::from_fn(cors::around))
}

/// The operator's listener.
pub fn operator_router(gateway: Gateway) -> Router {
    surrounded(operator_api().split_for_parts().0.route("/operator/openapi.json", get(openapi::operator)), gateway)
}

fn tenant_api() -> OpenApiRouter<Gateway> {
    use crate::routes::{
        agents, approvals, budgets, calls, chat, conversations, key_value, keys, models, provider_keys, runs, secrets,
        tenant, tools, usage, webhooks,
    };
    OpenApiRouter::new()
        .routes(routes!(tenant::show, tenant::change))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(agents::create, agents::list))
        .routes(routes!(agents::show, agents::publish, agents::archive))
        .routes(routes!(agents::revisions))
        .routes(routes!(agents::revision))
        .routes(routes!(agents::activate))
        .routes(routes!(chat::chat))
        .routes(routes!(tools::list))
        .routes(routes!(tools::show, tools::delete))
        .routes(routes!(tools::upload, tools::versions))
        .routes(routes!(tools::version, tools::delete_version))
        .routes(routes!(tools::wasm))
        .routes(routes!(calls::call))
        .routes(routes!(calls::list))
        .routes(routes!(calls::show))
        .routes(routes!(calls::recording))
        .routes(routes!(calls::replay))
        .routes(routes!(conversations::create, conversations::list))
        .routes(routes!(conversations::show, conversations::change, conversations::delete))
        .routes(routes!(conversations::messages))
        .routes(routes!(runs::list))
        .routes(routes!(runs::show))
        .routes(routes!(runs::events))
        .routes(routes!(runs::cancel))
        .routes(routes!(approvals::decide))
        .routes(routes!(provider_keys::list))
        .routes(routes!(provider_keys::put, provider_keys::delete))
        .routes(routes!(secrets::list))
        .routes(routes!(secrets::put, secrets::delete))
        .routes(routes!(key_value::namespaces))
        .routes(routes!(key_value::list))
        .routes(routes!(key_value::get, key_value::put, key_value::delete))
        .routes(routes!(models::list))
        .routes(routes!(models::price_book))
        .routes(routes!(budgets::create, budgets::list))
        .routes(routes!(budgets::show, budgets::change, budgets::delete))
        .routes(routes!(usage::report))
        .routes(routes!(usage::events))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::show, webhooks::change, webhooks::delete))
        .routes(routes!(webhooks::rotate_secret))
        .routes(routes!(webhooks::deliveries))
        .routes(routes!(webhooks::delivery))
        .routes(routes!(webhooks::redeliver))
}

fn operator_api() -> OpenApiRouter<Gateway> {
    use crate::routes::{health, operator};
    OpenApiRouter::new()
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(operator::create_tenant, operator::tenants))
        .routes(routes!(operator::tenant, operator::change_tenant, operator::delete_tenant))
        .routes(routes!(operator::create_key))
        .routes(routes!(operator::plans))
        .routes(routes!(operator::plan, operator::put_plan))
        .routes(routes!(operator::price_books, operator::publish_prices))
        .routes(routes!(operator::usage))
        .routes(routes!(operator::queues))
}

fn surrounded(router: Router<Gateway>, gateway: Gateway) -> Router {
    let entrance = limits::Entrance::new(gateway.clone());
    router
        .method_not_allowed_fallback(problem::method_not_allowed)
        .fallback(problem::no_route)
        // `limits::body` bounds every body, each by its own number.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(middleware::from_fn_with_state(entrance, limits::around))
        .with_state(gateway)
}
