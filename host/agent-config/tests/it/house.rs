//! A platform as far as this crate goes: a database, an inspector, a clock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_config::{
    Admission, Agent, AgentError, AgentRef, AgentSpec, ToolError, ToolVersion, agents, secrets::NamingRight, tools,
};
use async_trait::async_trait;
use bytes::Bytes;
use domain::{Clock, SystemIds, Timestamp, ToolName, time::ManualClock};
use kit::{FakeInspector, TestDb};
use serde_json::{Value, json};
use tenancy::{
    Tenant,
    plans::Plan,
    tenants::{self, NewTenant},
};
use tokio::sync::Semaphore;
use tool_api::{ComponentSource, InspectError, Inspection, Manifest, ToolInspector, Upload};

pub(crate) struct House {
    pub(crate) db: TestDb,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) admission: Admission,
    pub(crate) inspector: Arc<Inspector>,
}

/// Components are texts: `functions=3` has three functions, `asks=unit` requires that config value, `requires={...}`
/// requires that JSON, `nul` describes itself with a NUL character, `once broken` breaks the host the first time, `slow...`
/// waits until the gate is opened. The rest is up to `kit`.
pub(crate) struct Inspector {
    seen: AtomicUsize,
    uploads: Mutex<Vec<Upload>>,
    gate: Semaphore,
}

impl Default for Inspector {
    fn default() -> Self {
        Self { seen: AtomicUsize::new(0), uploads: Mutex::default(), gate: Semaphore::new(0) }
    }
}

impl Inspector {
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    pub(crate) fn open_gate(&self) {
        self.gate.add_permits(100);
    }

    /// What it was given last.
    pub(crate) fn last(&self) -> Upload {
        self.uploads.lock().unwrap().last().unwrap().clone()
    }
}

#[async_trait]
impl ToolInspector for Inspector {
    async fn inspect(&self, upload: Upload, source: &dyn ComponentSource) -> Result<Inspection, InspectError> {
        let before = self.seen.fetch_add(1, Ordering::SeqCst);
        self.uploads.lock().unwrap().push(upload.clone());
        let component = source.component().await.map_err(|error| InspectError::Failed(error.into()))?;
        let text = String::from_utf8_lossy(&component.unwrap_or_default()).into_owned();
        if text == "once broken" && before == 0 {
            return Err(InspectError::Failed("the disk is full".into()));
        }
        if text.starts_with("slow") {
            self.gate.acquire().await.unwrap().forget();
        }
        let mut inspection = FakeInspector.inspect(upload, source).await?;
        if let Some(count) = text.strip_prefix("functions=") {
            inspection.functions =
                (0..count.parse().unwrap()).map(|number: u32| kit::function(&format!("f{number}"))).collect();
        }
        if let Some(key) = text.strip_prefix("asks=") {
            inspection.requires = json!({"config": {key: {"reason": "it is used"}}});
        }
        if let Some(requires) = text.strip_prefix("requires=") {
            inspection.requires = serde_json::from_str(requires).unwrap();
        }
        if text == "nul" {
            inspection.functions[0].description = "a\0b".into();
        }
        Ok(inspection)
    }
}

impl House {
    pub(crate) async fn build() -> House {
        let clock = Arc::new(ManualClock::at(Timestamp::parse("2026-11-24T12:00:00Z").unwrap()));
        let inspector = Arc::new(Inspector::default());
        let admission = Admission::new(inspector.clone(), clock.clone(), Arc::new(SystemIds));
        House { db: TestDb::start().await, clock, admission, inspector }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) async fn tenant_with(&self, overrides: Value) -> Tenant {
        let overrides = serde_json::from_value(overrides).unwrap();
        let new = NewTenant { name: "small".into(), plan: Some("pro".into()), overrides };
        tenants::create(&self.db.db, new, &SystemIds, self.now()).await.unwrap().0
    }

    pub(crate) async fn push(&self, tenant: &Tenant, tool: &str, component: &str) -> Result<ToolVersion, ToolError> {
        self.push_with(tenant, tool, component, None).await
    }

    pub(crate) async fn push_with(
        &self,
        tenant: &Tenant,
        tool: &str,
        component: &str,
        manifest: Option<Manifest>,
    ) -> Result<ToolVersion, ToolError> {
        let tool: ToolName = tool.parse().unwrap();
        let component = Bytes::from(component.to_owned());
        let accepted = self.admission.accept(tenant, &tool, component, None, manifest).await?;
        self.admission.finish(tenant, &tool, accepted.version.version).await
    }

    pub(crate) async fn create(&self, tenant: &Tenant, spec: Value) -> Result<Agent, AgentError> {
        self.create_as(tenant, spec, NamingRight::WithinHosts).await
    }

    pub(crate) async fn create_as(
        &self,
        tenant: &Tenant,
        spec: Value,
        right: NamingRight,
    ) -> Result<Agent, AgentError> {
        let mut tx = tenant.begin().await?;
        let plan = plan(tenant).await;
        let agent = agents::create(&mut tx, &plan, AgentSpec::parse(spec)?, right, &SystemIds, self.now()).await?;
        tx.commit().await?;
        Ok(agent)
    }

    pub(crate) async fn publish(&self, tenant: &Tenant, agent: &str, patch: Value) -> Result<Agent, AgentError> {
        let agent: AgentRef = agent.parse()?;
        let plan = plan(tenant).await;
        let mut tx = tenant.begin().await?;
        let agent = agents::publish(&mut tx, &plan, &agent, patch, NamingRight::WithinHosts, self.now()).await?;
        tx.commit().await?;
        Ok(agent)
    }

    pub(crate) async fn delete_version(&self, tenant: &Tenant, version: &ToolVersion) -> Result<(), ToolError> {
        let mut tx = tenant.begin().await?;
        tools::delete_version(&mut tx, &version.tool, version.version).await?;
        Ok(tx.commit().await?)
    }
}

async fn plan(tenant: &Tenant) -> Plan {
    let mut tx = tenant.begin().await.unwrap();
    tenants::get(&mut tx).await.unwrap().plan
}

/// An agent without tools, changed by a merge.
pub(crate) fn agent(extra: Value) -> Value {
    let mut agent = json!({"name": "clerk", "system_prompt": "Help.", "model": "demo"});
    for (key, value) in extra.as_object().unwrap() {
        agent[key] = value.clone();
    }
    agent
}

/// How many artifacts a tenant keeps.
pub(crate) async fn artifacts(tenant: &Tenant) -> i64 {
    let mut tx = tenant.begin().await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM artifact").fetch_one(tx.conn()).await.unwrap()
}
