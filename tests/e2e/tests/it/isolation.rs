//! Invariant 1 at the door: what is another tenant's is answered like what does not exist, on every route.

mod table;

use std::collections::{BTreeMap, BTreeSet};

use domain::{Ids, SystemIds};
use gateway::{operator_routes, tenant_routes};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, Client, TestApp, component},
    outside::NOBODY,
};
use table::{Route, Stranger, table};

pub(crate) use table::{Names, fill};

/// What an answer says, but for its id and for the names that the question held.
fn told(answer: &Answer, names: &Names) -> (u16, BTreeMap<String, String>, String) {
    let mut headers: BTreeMap<String, String> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    for own in ["date", "x-request-id", "content-length", "ratelimit"] {
        headers.remove(own);
    }
    let mut body = answer.text.clone();
    if let Ok(Value::Object(mut fields)) = serde_json::from_str(&body) {
        fields.remove("request_id");
        body = Value::Object(fields).to_string();
    }
    for name in names.values().filter(|name| name.len() > 1) {
        body = body.replace(name.as_str(), "NAME");
    }
    (answer.status, headers, body)
}

/// A tenant with one of everything.
struct Ada {
    client: Client,
    names: Names,
    /// Texts that only this tenant's answers may hold.
    canaries: Vec<String>,
}

async fn ada(app: &TestApp) -> Ada {
    let client = app.tenant("ada-and-sons").await;
    let hook = json!({"url": format!("http://{NOBODY}/adas-hook"), "events": ["tool_version.ready"]});
    let webhook = client.post("/v1/webhooks", hook).await.created();
    let webhook = webhook["id"].as_str().unwrap().to_owned();
    let version = client.upload("adas-tool", component("echo")).await.created();
    let agent = client
        .post(
            "/v1/agents",
            json!({
                "name": "adas-agent", "system_prompt": "adas-prompt", "model": "demo",
                "tools": [{"tool": "adas-tool", "version": "latest", "grants": {"config": {"adas-config": "x"}}}],
            }),
        )
        .await
        .created();
    client.patch("/v1/agents/adas-agent", json!({"description": "adas-description"})).await.ok();
    let said = json!({"message": "/adas-tool__run {\"x\": \"adas-words\"}", "external_user_id": "adas-user"});
    let turn = client.post("/v1/agents/adas-agent/chat", said).await.ok();
    assert_eq!(turn["tool_calls"][0]["outcome"]["status"], "ok", "{turn}");
    let path = "/v1/tools/adas-tool/versions/latest/calls";
    let call = json!({"function": "run", "arguments": {"x": "adas-argument"}, "record": true});
    let call = client.post(path, call).await.ok();
    let conversation = json!({"agent": "adas-agent", "title": "adas-title"});
    client.post("/v1/conversations", conversation).await.created();
    let key = client.post("/v1/api-keys", json!({"name": "adas-key", "scopes": ["chat"]})).await.created();
    let provider = json!({"kind": "openai", "api_key": "sk-adas"});
    client.put("/v1/provider-keys/adas-provider", provider).await.created();
    client.secret("adas-secret", "adas-secret-value").await;
    client.put("/v1/key-value/adas-namespace/adas-key", json!("adas-value")).await.created();
    let budget = json!({"scope": "external_user", "subject": "adas-user", "window": "total", "amount": "10"});
    let budget = client.post("/v1/budgets", budget).await.created();
    client.patch("/v1/tenant", json!({"metadata": {"adas-metadata": 1}})).await.ok();

    // Its attempt has failed, and no other follows: its deliveries stay as they are.
    client.patch(&format!("/v1/webhooks/{webhook}"), json!({"enabled": false})).await.ok();
    let delivery = loop {
        let deliveries = client.get(&format!("/v1/webhooks/{webhook}/deliveries")).await.ok();
        let newest = &deliveries["data"][0];
        if newest["attempts"] == 0 || newest["last_attempt"].is_object() {
            break newest["id"].as_str().unwrap().to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };

    let id = |value: &Value| value.as_str().unwrap().to_owned();
    let names = Names::from([
        ("agents", id(&agent["id"])),
        ("revisions", "2".into()),
        ("tools", "adas-tool".into()),
        ("versions", id(&version["version"])),
        ("tool-calls", id(&call["id"])),
        ("conversations", id(&turn["conversation_id"])),
        ("runs", id(&turn["run"]["id"])),
        ("api-keys", id(&key["id"])),
        ("provider-keys", "adas-provider".into()),
        ("secrets", "adas-secret".into()),
        ("key-value", "adas-namespace".into()),
        ("{namespace}", "adas-key".into()),
        ("budgets", id(&budget["id"])),
        ("price-books", "1".into()),
        ("deliveries", delivery),
        ("webhooks", webhook),
    ]);
    let mut canaries: Vec<String> = names.values().filter(|name| name.len() > 1).cloned().collect();
    canaries.extend(["adas-", "ada-and-sons"].map(String::from));
    canaries.extend([client.tenant.clone(), client.key.clone(), id(&turn["tool_calls"][0]["id"])]);
    Ada { client, names, canaries }
}

impl Ada {
    /// The same things, by id and by name.
    fn known_as(&self) -> [Names; 2] {
        let mut by_name = self.names.clone();
        by_name.insert("agents", "adas-agent".into());
        [self.names.clone(), by_name]
    }

    /// Everything that the tenant can read, as it reads it.
    async fn sees(&self) -> Vec<(String, u16, String)> {
        let mut seen = Vec::new();
        for route in table().iter().filter(|route| route.method == "GET") {
            let answer = route.ask(&self.client, &self.names).await;
            seen.push((fill(route.path, &self.names), answer.status, answer.text));
        }
        seen
    }

    #[track_caller]
    fn is_not_in(&self, answer: &Answer, asked: &str) {
        let said = format!("{:?} {}", answer.headers, answer.text);
        for canary in self.canaries.iter().filter(|canary| !asked.contains(canary.as_str())) {
            assert!(!said.contains(canary.as_str()), "{asked} tells `{canary}`: {said}");
        }
    }
}

/// Names of the same form that nobody has.
fn of_nobody(like: &Names) -> Names {
    let mut nobody = like.clone();
    let id = |prefix: &str| format!("{prefix}{}", SystemIds.uuid().simple());
    for (noun, name) in &mut nobody {
        *name = match *noun {
            "agents" if !name.starts_with("agt_") => "no-agent-of-anybody".into(),
            "agents" => id("agt_"),
            "tools" => "no-tool-of-anybody".into(),
            "versions" => format!("sha256:{}{}", SystemIds.uuid().simple(), SystemIds.uuid().simple()),
            "tool-calls" => id("call_"),
            "conversations" => id("conv_"),
            "runs" => id("run_"),
            "api-keys" => id("key_"),
            "webhooks" => id("whk_"),
            "deliveries" => id("evt_"),
            "budgets" => id("bud_"),
            "provider-keys" => "no-key-of-anybody".into(),
            "secrets" => "no-secret-of-anybody".into(),
            "key-value" => "no-namespace-of-anybody".into(),
            "{namespace}" => "no-entry-of-anybody".into(),
            _ => continue,
        };
    }
    nobody
}

#[test]
fn no_route_is_missing_from_the_table() {
    let known: BTreeSet<String> = table().iter().map(|route| format!("{} {}", route.path, route.method)).collect();
    let served: BTreeSet<String> =
        tenant_routes().into_iter().map(|(method, path)| format!("{path} {method}")).collect();
    assert_eq!(known, served, "name every route in `table`, and say what a stranger gets there");
}

#[tokio::test]
async fn a_stranger_gets_the_same_404_as_for_what_nobody_has() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let (ada, stranger) = (ada(&app).await, app.tenant("stranger").await);
    let before = ada.sees().await;
    for (path, status, text) in &before {
        assert_eq!(*status, 200, "the names are ada's: {path}: {text}");
    }
    let mut routes = table();
    routes.sort_by_key(|route| route.stranger == Stranger::Makes);
    for route in routes {
        for theirs in ada.known_as() {
            let nobodys = of_nobody(&theirs);
            let asked = format!("{} {}", route.method, fill(route.path, &theirs));
            let (answer, expected) = (route.ask(&stranger, &theirs).await, route.ask(&stranger, &nobodys).await);
            match route.stranger {
                Stranger::NotFound(code) => {
                    assert_eq!(told(&answer, &theirs), told(&expected, &nobodys), "{asked}");
                    answer.problem(404, code);
                }
                Stranger::Own | Stranger::Makes => {
                    // A thing that was made a question ago is there already.
                    assert!(matches!(answer.status, 200 | 201 | 409), "{asked}: {}", answer.text);
                    ada.is_not_in(&answer, &asked);
                }
            }
        }
    }
    assert_eq!(ada.sees().await, before, "a stranger changed nothing");
    app.stop().await;
}

/// Names do not only stand in paths.
#[tokio::test]
async fn a_stranger_learns_nothing_by_names_in_queries_and_bodies() {
    type Question = (&'static str, fn(&Names) -> String, fn(&Names) -> Value);
    let questions: [Question; 15] = [
        ("GET", |n| format!("/v1/runs?agent={}", n["agents"]), |_| Value::Null),
        ("GET", |n| format!("/v1/runs?conversation_id={}", n["conversations"]), |_| Value::Null),
        ("GET", |n| format!("/v1/tool-calls?agent={}", n["agents"]), |_| Value::Null),
        ("GET", |n| format!("/v1/tool-calls?run={}", n["runs"]), |_| Value::Null),
        ("GET", |n| format!("/v1/tool-calls?tool={}", n["tools"]), |_| Value::Null),
        ("GET", |n| format!("/v1/tool-calls?version={}", n["versions"]), |_| Value::Null),
        ("GET", |n| format!("/v1/conversations?agent={}", n["agents"]), |_| Value::Null),
        ("GET", |n| format!("/v1/tools/own/versions/{}", n["versions"]), |_| Value::Null),
        ("GET", |n| format!("/v1/tools/own/versions/{}/wasm", n["versions"]), |_| Value::Null),
        (
            "POST",
            |n| format!("/v1/tools/own/versions/{}/calls", n["versions"]),
            |_| json!({"function": "run", "arguments": {}}),
        ),
        (
            "POST",
            |_| "/v1/tools/own/versions/latest/calls".into(),
            |n| json!({"function": "now", "arguments": {}, "grants": {"secrets": [n["secrets"]]}}),
        ),
        (
            "PATCH",
            |_| "/v1/agents/own".into(),
            |n| json!({"tools": [{"tool": "own", "version": "latest", "grants": {"secrets": [n["secrets"]]}}]}),
        ),
        ("POST", |_| "/v1/agents/own/chat".into(), |n| json!({"message": "hi", "conversation_id": n["conversations"]})),
        ("PATCH", |_| "/v1/agents/own".into(), |n| json!({"tools": [{"tool": n["tools"], "version": "latest"}]})),
        ("PATCH", |_| "/v1/agents/own".into(), |n| json!({"tools": [{"tool": "own", "version": n["versions"]}]})),
    ];
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let (ada, stranger) = (ada(&app).await, app.tenant("stranger").await);
    stranger.upload("own", component("clock")).await.created();
    stranger.agent("own", &["own"]).await;
    for (method, path, body) in questions {
        for theirs in ada.known_as() {
            let nobodys = of_nobody(&theirs);
            let ask = async |names: &Names| {
                let request = stranger.request(method.parse().unwrap(), &path(names));
                match body(names) {
                    Value::Null => Answer::of(request).await,
                    body => Answer::of(request.json(&body)).await,
                }
            };
            let (answer, expected) = (ask(&theirs).await, ask(&nobodys).await);
            let asked = format!("{method} {} {}", path(&theirs), body(&theirs));
            assert_eq!(told(&answer, &theirs), told(&expected, &nobodys), "{asked}");
            match answer.status {
                200 => assert_eq!(answer.json(), json!({"data": [], "next_cursor": null}), "{asked}"),
                404 | 422 => {}
                other => panic!("{asked}: {other} {}", answer.text),
            }
        }
    }

    // A cursor is the tenant's that it was given to.
    let page = ada.client.get("/v1/conversations?limit=1").await.ok();
    let cursor = page["next_cursor"].as_str().unwrap();
    stranger.get(&format!("/v1/conversations?limit=1&cursor={cursor}")).await.problem(422, "page.bad_cursor");

    // A key for a provider is the tenant's that stored it.
    for provider in ["adas-provider", "no-key-of-anybody"] {
        stranger.patch("/v1/agents/own", json!({"model": {"provider": provider, "name": "gpt"}})).await.ok();
        assert_eq!(stranger.chat("own", "hi").await["run"]["error"]["code"], "provider.unknown", "{provider}");
    }
    app.stop().await;
}

#[tokio::test]
async fn without_a_key_there_is_nothing() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let ada = ada(&app).await;
    let mut mistyped = ada.client.key.clone();
    let last = if mistyped.pop() == Some('a') { 'b' } else { 'a' };
    mistyped.push(last);
    let anonymous = |route: &Route| {
        let method: Method = route.method.parse().unwrap();
        app.http.request(method, format!("{}{}", app.tenant_url, fill(route.path, &ada.names)))
    };
    for route in table() {
        let answer = Answer::of(anonymous(&route)).await;
        assert!(answer.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"), "{}", route.path);
        answer.problem(401, "api_key.missing");
        for wrong in ["x", mistyped.as_str(), ada.client.tenant.as_str()] {
            Answer::of(anonymous(&route).bearer_auth(wrong)).await.problem(401, "api_key.unknown");
        }
        // The operator's token is no tenant's key.
        Answer::of(anonymous(&route).bearer_auth(&app.operator().key)).await.problem(401, "api_key.unknown");
    }
    app.stop().await;
}

#[tokio::test]
async fn the_operators_routes_take_only_the_operators_token() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let ada = ada(&app).await;
    let mut names = ada.names.clone();
    names.extend([("tenants", ada.client.tenant.clone()), ("plans", "free".to_owned())]);
    let mut guarded = 0;
    for (method, path) in operator_routes() {
        let path = fill(&path, &names);
        let at = |url: &str| app.http.request(method.clone(), format!("{url}{path}"));
        // Not on the tenants' listener, whatever the key.
        for key in [&app.operator().key, &ada.client.key] {
            Answer::of(at(&app.tenant_url).bearer_auth(key)).await.problem(404, "route.not_found");
        }
        if ["/healthz", "/readyz", "/metrics"].contains(&path.as_str()) {
            assert_eq!(Answer::of(at(&app.operator_url)).await.status, 200, "{path}");
            continue;
        }
        guarded += 1;
        Answer::of(at(&app.operator_url)).await.problem(401, "operator.unauthenticated");
        for wrong in ["", "x", ada.client.key.as_str()] {
            let answer = Answer::of(at(&app.operator_url).bearer_auth(wrong)).await;
            answer.problem(401, "operator.unauthenticated");
        }
        let in_the_other_header = at(&app.operator_url).header("x-api-key", &app.operator().key);
        Answer::of(in_the_other_header).await.problem(401, "operator.unauthenticated");
    }
    assert!(guarded > 10);
    ada.client.get("/v1/tenant").await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_key_needs_the_scope_that_the_contract_names() {
    let app = TestApp::with_egress(vec![NOBODY]).await;
    let ada = ada(&app).await;
    let mut with = BTreeMap::new();
    let scopes: BTreeSet<Option<&str>> = table().iter().map(|route| route.scope).collect();
    for scope in scopes {
        let scopes: Vec<&str> = scope.into_iter().collect();
        let minted = ada.client.post("/v1/api-keys", json!({"name": "scoped", "scopes": scopes})).await.created();
        with.insert(scope, app.client(minted["key"].as_str().unwrap()));
    }
    for route in table() {
        let asked = format!("{} {}", route.method, route.path);
        for (held, client) in &with {
            // Only what reads: whether a key may write is tried with the keys that may not.
            let may = route.scope.is_none() || *held == route.scope || *held == Some("admin");
            if may {
                if route.method == "GET" {
                    let answer = route.ask(client, &ada.names).await;
                    assert_eq!(answer.status, 200, "{asked} with {held:?}: {}", answer.text);
                }
                continue;
            }
            let problem = route.ask(client, &ada.names).await.problem(403, "api_key.missing_scope");
            let scope = format!("`{}`", route.scope.unwrap());
            assert!(problem["detail"].as_str().unwrap().contains(&scope), "{asked} with {held:?}: {problem}");
        }
    }
    app.stop().await;
}
