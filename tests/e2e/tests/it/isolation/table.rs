//! Every route of the tenants' listener: who may, and what a stranger gets.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{Answer, Client, component};

/// A path's names by the segment before each: `agents` is an agent's id or name, `runs` a run's id, `{namespace}` a key.
pub(crate) type Names = BTreeMap<&'static str, String>;

/// What a stranger gets for another tenant's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stranger {
    /// 404 with this code.
    NotFound(&'static str),
    /// An answer about the stranger's own, or about what is everybody's.
    Own,
    /// A thing of the same name, the stranger's own. Tried last: afterwards the name is not a stranger's any more.
    Makes,
}

#[derive(Clone, Copy)]
enum Body {
    None,
    Wasm,
    Json(fn(&Names) -> Value),
}

pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// `None`: any key may.
    pub(crate) scope: Option<&'static str>,
    pub(crate) stranger: Stranger,
    body: Body,
}

/// Every route of the tenants' listener.
pub(crate) fn table() -> Vec<Route> {
    use Body::{Json, None as Nothing, Wasm};
    use Stranger::{Makes, NotFound, Own};
    let any = None;
    let route = |method, path, scope, stranger, body| Route { method, path, scope, stranger, body };
    let (agent, revision) = (NotFound("agent.not_found"), NotFound("agent.not_found"));
    let (tool, call, run) = (NotFound("tool.not_found"), NotFound("tool_call.not_found"), NotFound("run.not_found"));
    let (conversation, entry) = (NotFound("conversation.not_found"), NotFound("kv.not_found"));
    let (agents_read, agents_write) = (Some("agents:read"), Some("agents:write"));
    let (tools_read, tools_write) = (Some("tools:read"), Some("tools:write"));
    let (conversations_read, conversations_write) = (Some("conversations:read"), Some("conversations:write"));
    let (keys, secrets, runs, usage) =
        (Some("keys:write"), Some("secrets:write"), Some("runs:read"), Some("usage:read"));
    let (budgets, budget) = (Some("budgets:write"), NotFound("budget.not_found"));
    let (admin, webhook) = (Some("admin"), NotFound("webhook.not_found"));
    vec![
        route("GET", "/v1/tenant", any, Own, Nothing),
        route("PATCH", "/v1/tenant", Some("admin"), Own, Json(|_| json!({"metadata": {"a": 1}}))),
        route("GET", "/v1/api-keys", keys, Own, Nothing),
        route("POST", "/v1/api-keys", keys, Own, Json(|_| json!({"name": "new", "scopes": []}))),
        route("DELETE", "/v1/api-keys/{id}", keys, NotFound("api_key.not_found"), Nothing),
        route("GET", "/v1/agents", agents_read, Own, Nothing),
        route("POST", "/v1/agents", agents_write, Own, Json(|_| new_agent("new-agent"))),
        route("GET", "/v1/agents/{agent}", agents_read, agent, Nothing),
        route("PATCH", "/v1/agents/{agent}", agents_write, agent, Json(|_| json!({"description": "stolen"}))),
        route("DELETE", "/v1/agents/{agent}", agents_write, agent, Nothing),
        route("POST", "/v1/agents/{agent}/chat", Some("chat"), agent, Json(|_| json!({"message": "hi"}))),
        route("GET", "/v1/agents/{agent}/revisions", agents_read, revision, Nothing),
        route("GET", "/v1/agents/{agent}/revisions/{revision}", agents_read, revision, Nothing),
        route("POST", "/v1/agents/{agent}/revisions/{revision}/activate", agents_write, revision, Nothing),
        route("GET", "/v1/tools", tools_read, Own, Nothing),
        route("GET", "/v1/tools/{tool}", tools_read, tool, Nothing),
        route("DELETE", "/v1/tools/{tool}", tools_write, tool, Nothing),
        route("GET", "/v1/tools/{tool}/versions", tools_read, tool, Nothing),
        route("POST", "/v1/tools/{tool}/versions", tools_write, Makes, Wasm),
        route("GET", "/v1/tools/{tool}/versions/{version}", tools_read, tool, Nothing),
        route("DELETE", "/v1/tools/{tool}/versions/{version}", tools_write, tool, Nothing),
        route("GET", "/v1/tools/{tool}/versions/{version}/wasm", tools_read, tool, Nothing),
        route(
            "POST",
            "/v1/tools/{tool}/versions/{version}/calls",
            Some("tools:call"),
            tool,
            Json(|_| json!({"function": "run", "arguments": {}})),
        ),
        route("GET", "/v1/tool-calls", runs, Own, Nothing),
        route("GET", "/v1/tool-calls/{id}", runs, call, Nothing),
        route("GET", "/v1/tool-calls/{id}/recording", runs, call, Nothing),
        route(
            "POST",
            "/v1/tool-calls/{id}/replay",
            Some("tools:call"),
            call,
            Json(|names| json!({"version": names["versions"]})),
        ),
        route("GET", "/v1/conversations", conversations_read, Own, Nothing),
        route("POST", "/v1/conversations", conversations_write, agent, Json(|names| json!({"agent": names["agents"]}))),
        route("GET", "/v1/conversations/{id}", conversations_read, conversation, Nothing),
        route("PATCH", "/v1/conversations/{id}", conversations_write, conversation, Json(|_| json!({"title": "mine"}))),
        route("DELETE", "/v1/conversations/{id}", conversations_write, conversation, Nothing),
        route("GET", "/v1/conversations/{id}/messages", conversations_read, conversation, Nothing),
        route("GET", "/v1/runs", runs, Own, Nothing),
        route("GET", "/v1/runs/{id}", runs, run, Nothing),
        route("GET", "/v1/runs/{id}/events", runs, run, Nothing),
        route("POST", "/v1/runs/{id}/cancel", Some("chat"), run, Nothing),
        route(
            "POST",
            "/v1/runs/{id}/tool-calls/{call}/decision",
            Some("approvals:write"),
            run,
            Json(|_| json!({"decision": "approve"})),
        ),
        route("GET", "/v1/provider-keys", secrets, Own, Nothing),
        route(
            "PUT",
            "/v1/provider-keys/{name}",
            secrets,
            Makes,
            Json(|_| json!({"kind": "openai", "api_key": "sk-strangers"})),
        ),
        route("DELETE", "/v1/provider-keys/{name}", secrets, NotFound("provider_key.not_found"), Nothing),
        route("GET", "/v1/secrets", secrets, Own, Nothing),
        route("PUT", "/v1/secrets/{name}", secrets, Makes, Json(|_| json!({"value": "strangers"}))),
        route("DELETE", "/v1/secrets/{name}", secrets, NotFound("secret.not_found"), Nothing),
        route("GET", "/v1/key-value", tools_read, Own, Nothing),
        route("GET", "/v1/key-value/{namespace}", tools_read, Own, Nothing),
        route("GET", "/v1/key-value/{namespace}/{key}", tools_read, entry, Nothing),
        route("PUT", "/v1/key-value/{namespace}/{key}", tools_write, Makes, Json(|_| json!("strangers"))),
        route("DELETE", "/v1/key-value/{namespace}/{key}", tools_write, entry, Nothing),
        route("GET", "/v1/models", any, Own, Nothing),
        // Prices are everybody's.
        route("GET", "/v1/price-books/{version}", any, Own, Nothing),
        route("GET", "/v1/budgets", budgets, Own, Nothing),
        route(
            "POST",
            "/v1/budgets",
            budgets,
            Own,
            Json(|_| json!({"scope": "tenant", "window": "day", "amount": "1"})),
        ),
        route("GET", "/v1/budgets/{id}", budgets, budget, Nothing),
        route("PATCH", "/v1/budgets/{id}", budgets, budget, Json(|_| json!({"amount": "0"}))),
        route("DELETE", "/v1/budgets/{id}", budgets, budget, Nothing),
        route("GET", "/v1/webhooks", admin, Own, Nothing),
        route(
            "POST",
            "/v1/webhooks",
            admin,
            Own,
            Json(|_| json!({"url": "https://stranger.example/hook", "events": ["run.failed"]})),
        ),
        route("GET", "/v1/webhooks/{id}", admin, webhook, Nothing),
        route("PATCH", "/v1/webhooks/{id}", admin, webhook, Json(|_| json!({"enabled": true}))),
        route("DELETE", "/v1/webhooks/{id}", admin, webhook, Nothing),
        route("POST", "/v1/webhooks/{id}/rotate-secret", admin, webhook, Nothing),
        route("GET", "/v1/webhooks/{id}/deliveries", admin, webhook, Nothing),
        route("GET", "/v1/webhooks/{id}/deliveries/{delivery}", admin, webhook, Nothing),
        route("POST", "/v1/webhooks/{id}/deliveries/{delivery}/redeliver", admin, webhook, Nothing),
        route("GET", "/v1/usage", usage, Own, Nothing),
        route("GET", "/v1/usage/events", usage, Own, Nothing),
    ]
}

fn new_agent(name: &str) -> Value {
    json!({"name": name, "system_prompt": "You help.", "model": "demo"})
}

/// A path with these names in the place of its parameters.
pub(crate) fn fill(path: &str, names: &Names) -> String {
    let mut filled = String::new();
    let mut before = "";
    for step in path.split('/').skip(1) {
        let text = if step.starts_with('{') { names[before].as_str() } else { step };
        filled.push('/');
        filled.push_str(text);
        before = step;
    }
    filled
}

impl Route {
    pub(crate) async fn ask(&self, client: &Client, names: &Names) -> Answer {
        let method: Method = self.method.parse().unwrap();
        let request = client.request(method, &fill(self.path, names));
        Answer::of(match self.body {
            Body::None => request,
            Body::Json(body) => request.json(&body(names)),
            Body::Wasm => request.header("content-type", "application/wasm").body(component("traps")),
        })
        .await
    }
}
