//! A platform as far as this crate goes: a database, an inspector, a clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_config::{Admission, Agent, AgentError, AgentRef, AgentSpec, ToolError, ToolVersion, agents, tools};
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
use tool_api::{InspectError, Inspection, ToolInspector};

pub(crate) struct House {
    pub(crate) db: TestDb,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) admission: Admission,
    pub(crate) inspector: Arc<Inspector>,
}

/// Components are texts: `functions=3` has three functions, `asks=unit` requires that config value, `nul` describes
/// itself with a NUL character, `once broken` breaks the host the first time, `slow...` takes a while. The rest is up to `kit`.
#[derive(Default)]
pub(crate) struct Inspector {
    seen: AtomicUsize,
    at_once: AtomicUsize,
    peak: AtomicUsize,
}

impl Inspector {
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    /// Inspections at the same time.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl ToolInspector for Inspector {
    async fn inspect(&self, component: Bytes) -> Result<Inspection, InspectError> {
        let before = self.seen.fetch_add(1, Ordering::SeqCst);
        let text = String::from_utf8_lossy(&component).into_owned();
        if text == "once broken" && before == 0 {
            return Err(InspectError::Failed("the disk is full".into()));
        }
        if text.starts_with("slow") {
            self.peak.fetch_max(1 + self.at_once.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.at_once.fetch_sub(1, Ordering::SeqCst);
        }
        let mut inspection = FakeInspector.inspect(component).await?;
        if let Some(count) = text.strip_prefix("functions=") {
            inspection.functions =
                (0..count.parse().unwrap()).map(|number: u32| kit::function(&format!("f{number}"))).collect();
        }
        if let Some(key) = text.strip_prefix("asks=") {
            inspection.requires = json!({"config": {key: {"reason": "it is used"}}});
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
        let tool: ToolName = tool.parse().unwrap();
        let component = Bytes::from(component.to_owned());
        let accepted = self.admission.accept(tenant, &tool, component, None).await?;
        self.admission.finish(tenant, &tool, accepted.version.version).await
    }

    pub(crate) async fn create(&self, tenant: &Tenant, spec: Value) -> Result<Agent, AgentError> {
        let mut tx = tenant.begin().await?;
        let plan = plan(tenant).await;
        let agent = agents::create(&mut tx, &plan, AgentSpec::parse(spec)?, &SystemIds, self.now()).await?;
        tx.commit().await?;
        Ok(agent)
    }

    pub(crate) async fn publish(&self, tenant: &Tenant, agent: &str, patch: Value) -> Result<Agent, AgentError> {
        let agent: AgentRef = agent.parse()?;
        let mut tx = tenant.begin().await?;
        let plan = plan(tenant).await;
        let agent = agents::publish(&mut tx, &plan, &agent, patch, self.now()).await?;
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
