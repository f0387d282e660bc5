//! What a fresh installation begins with: a tenant, a key, tools and agents. Doing it again changes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use agent_config::{AgentError, AgentSpec, VersionStatus, agents, secrets::NamingRight};
use anyhow::Context;
use domain::{Clock as _, ExposeSecret, Limits, LimitsRequest, SystemClock, SystemIds, ToolName, page::PageRequest};
use futures::future::join_all;
use serde_json::{Value, json};
use tenancy::{
    Tenant,
    keys::{self, KeyKind, NewKey, Scope},
    tenants::{self, NewTenant},
};

use crate::{config::Platform, dev::state::DevFile, wire::App};

const TENANT: &str = "demo";
const PLAN: &str = "pro";
/// Instead of the plan's: nobody is protected from anybody here, and a developer's own tests come as fast as they can.
const REQUESTS_PER_MINUTE: u32 = 600_000;
const TOOLS: [&str; 4] = ["calc", "clock", "table", "notes"];
/// The model of the agents where the environment has a key for its provider: the first that fits.
const PLATFORM_MODELS: [(&str, PlatformModel); 3] = [
    ("openai", PlatformModel { model: "openai/gpt-4o-mini", variable: "OPENAI_API_KEY" }),
    ("anthropic", PlatformModel { model: "anthropic/claude-haiku-4-5", variable: "ANTHROPIC_API_KEY" }),
    ("gemini", PlatformModel { model: "gemini/gemini-2.5-flash", variable: "GEMINI_API_KEY" }),
];
/// Tenants that are looked through for the demo one: a development database has a few.
const TENANTS_LOOKED_THROUGH: u32 = 100;

#[derive(Clone, Copy)]
pub(crate) struct PlatformModel {
    pub(crate) model: &'static str,
    /// Where its key comes from.
    pub(crate) variable: &'static str,
}

/// The real model that the agents are made with; without any it is the demo one.
pub(crate) fn platform_model(platform: &Platform) -> Option<PlatformModel> {
    PLATFORM_MODELS.into_iter().find(|(provider, _)| platform.contains_key(*provider)).map(|(_, model)| model)
}

/// The tenant and a key of it with every scope.
pub(crate) struct SeededTenant {
    pub(crate) tenant: Tenant,
    pub(crate) key: String,
    /// What a tool call of it may use when nobody says.
    pub(crate) limits: Limits,
}

/// What is there now.
#[derive(Default)]
pub(crate) struct Seeded {
    pub(crate) agents: Vec<String>,
    /// For the person who started it.
    pub(crate) notes: Vec<String>,
}

/// The tenant and the key of the last start, or new ones.
pub(crate) async fn tenant(app: &App, previous: Option<&DevFile>) -> anyhow::Result<SeededTenant> {
    let known = match previous {
        Some(file) => app.db.operator(file.tenant_id).await?,
        None => None,
    };
    let tenant = match known {
        Some(tenant) => tenant,
        None => match find_by_name(app).await? {
            Some(tenant) => tenant,
            None => {
                let overrides = [("requests_per_minute".to_owned(), json!(REQUESTS_PER_MINUTE))].into_iter().collect();
                let new = NewTenant { name: TENANT.into(), plan: Some(PLAN.into()), overrides };
                tenants::create(&app.db, new, &SystemIds, SystemClock.now()).await?.0
            }
        },
    };
    let key = match previous {
        Some(file) if key_works(app, &tenant, &file.api_key).await? => file.api_key.clone(),
        _ => mint_key(app, &tenant).await?,
    };
    let mut tx = tenant.begin().await?;
    let limits = LimitsRequest::default().resolve(tenants::get(&mut tx).await?.plan.tool_limits)?;
    drop(tx);
    Ok(SeededTenant { tenant, key, limits })
}

async fn find_by_name(app: &App) -> anyhow::Result<Option<Tenant>> {
    for tenant in app.db.tenants(PageRequest { limit: TENANTS_LOOKED_THROUGH, after: None }).await? {
        let mut tx = tenant.begin().await?;
        if tenants::get(&mut tx).await?.name == TENANT {
            return Ok(Some(tenant));
        }
    }
    Ok(None)
}

async fn key_works(app: &App, tenant: &Tenant, key: &str) -> anyhow::Result<bool> {
    let holder = app.db.resolve_api_key(&app.key_hasher, key).await?;
    Ok(holder.is_some_and(|holder| holder.tenant.id() == tenant.id() && holder.revoked_at.is_none()))
}

async fn mint_key(app: &App, tenant: &Tenant) -> anyhow::Result<String> {
    let new = NewKey {
        name: "belljar dev".into(),
        scopes: Scope::ALL.to_vec(),
        agents: None,
        external_user_id: None,
        expires_at: None,
    };
    let mut tx = tenant.begin().await?;
    let (_, key) = keys::mint(&mut tx, &app.key_hasher, KeyKind::Test, new, &SystemIds, SystemClock.now()).await?;
    tx.commit().await?;
    Ok(key.expose_secret().to_owned())
}

pub(crate) async fn tools_and_agents(
    app: &App,
    tenant: &Tenant,
    tools_dirs: &[PathBuf],
    platform: &Platform,
) -> anyhow::Result<Seeded> {
    let mut seeded = Seeded::default();
    let mut missing = Vec::new();
    // Together: the first time each is compiled.
    let uploads = TOOLS.map(|name| async move {
        match find_component(tools_dirs, name)? {
            Some(component) => upload(app, tenant, name.parse()?, component).await.map(|()| true),
            None => Ok(false),
        }
    });
    for (name, uploaded) in TOOLS.into_iter().zip(join_all(uploads).await) {
        match uploaded {
            Ok(true) => {}
            Ok(false) => missing.push(name),
            Err(error) => {
                missing.push(name);
                seeded.notes.push(format!("the example tool `{name}` is not ready: {error:#}"));
            }
        }
    }
    let model = platform_model(platform).map_or("demo", |found| found.model);
    for (name, tools, spec) in agent_specs(model) {
        if tools.iter().any(|tool| missing.contains(tool)) {
            continue;
        }
        create_agent(tenant, spec).await.with_context(|| format!("cannot make the agent `{name}`"))?;
        seeded.agents.push(name.to_owned());
    }
    if !missing.is_empty() {
        let dirs: Vec<String> = tools_dirs.iter().map(|dir| format!("`{}`", dir.display())).collect();
        seeded.notes.push(format!(
            "without the example tools {} there are fewer agents; build them with `cargo xtask guests`, which puts them \
             into a folder where this looks ({}), then start again",
            missing.join(", "),
            dirs.join(", ")
        ));
    }
    Ok(seeded)
}

fn find_component(tools_dirs: &[PathBuf], name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    for path in tools_dirs.iter().map(|dir: &PathBuf| dir.join(format!("{name}.wasm"))) {
        match fs::read(&path) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| cannot_read(&path)),
        }
    }
    Ok(None)
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read `{}`", path.display())
}

/// A version that is ready already is inspected again all the same: its compiled code may be gone from this machine.
async fn upload(app: &App, tenant: &Tenant, name: ToolName, component: Vec<u8>) -> anyhow::Result<()> {
    use tool_api::{ToolInspector as _, Upload};
    let component: bytes::Bytes = component.into();
    let mut version = app.admission.accept(tenant, &name, component.clone(), None, None).await?.version;
    if version.status == VersionStatus::Compiling {
        version = app.admission.finish(tenant, &name, version.version).await?;
    } else {
        let upload = Upload { tenant: tenant.id(), artifact: version.version, manifest: None, first: false };
        app.executor.inspect(upload, &component).await?;
    }
    match version.rejection {
        Some(rejection) => anyhow::bail!("{rejection}"),
        None => Ok(()),
    }
}

/// An agent of this name that is there already stays as it is: it may have been changed since.
async fn create_agent(tenant: &Tenant, spec: Value) -> anyhow::Result<()> {
    let spec: AgentSpec = serde_json::from_value(spec)?;
    let mut tx = tenant.begin().await?;
    let plan = tenants::get(&mut tx).await?.plan;
    match agents::create(&mut tx, &plan, spec, NamingRight::Anywhere, &SystemIds, SystemClock.now()).await {
        Ok(_) => Ok(tx.commit().await?),
        Err(AgentError::NameTaken(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Name, tools and description of each agent, as the API takes it.
fn agent_specs(model: &str) -> [(&'static str, &'static [&'static str], Value); 3] {
    let bind = |tools: &[&str]| -> Vec<Value> {
        tools.iter().map(|tool| json!({"tool": tool, "version": "latest", "grants": "as_requested"})).collect()
    };
    const ASSISTANT_TOOLS: &[&str] = &["calc", "clock", "table"];
    const ACCOUNTANT_TOOLS: &[&str] = &["calc", "table"];
    const SECRETARY_TOOLS: &[&str] = &["notes"];
    [
        (
            "assistant",
            ASSISTANT_TOOLS,
            json!({
                "name": "assistant",
                "display_name": "Assistant",
                "description": "Answers with the help of tools for arithmetic, dates and tables.",
                "system_prompt": "You are a helpful assistant. Use your tools for arithmetic, dates and tables instead \
                                  of guessing, and say briefly how you came to the answer.",
                "model": model,
                "tools": bind(ASSISTANT_TOOLS),
            }),
        ),
        (
            "accountant",
            ACCOUNTANT_TOOLS,
            json!({
                "name": "accountant",
                "display_name": "Accountant",
                "description": "Adds up what is in a table.",
                "system_prompt": "You are a careful accountant. Every number in your answers comes from a tool: query \
                                  tables with `table`, compute with `calc`. Name the rows you used.",
                "model": model,
                "tools": bind(ACCOUNTANT_TOOLS),
            }),
        ),
        (
            "secretary",
            SECRETARY_TOOLS,
            json!({
                "name": "secretary",
                "display_name": "Secretary",
                "description": "Keeps notes, for each end user their own.",
                "system_prompt": "You are a secretary. Write down what you are asked to remember, and look into the \
                                  notes before you answer.",
                "model": model,
                "tools": bind(SECRETARY_TOOLS),
            }),
        ),
    ]
}
