//! A runtime over a database of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_config::{
    admission::Admission,
    agents::{self, AgentRef, AgentSpec},
};
use agent_runtime::{AgentRuntime, EventCursor, Parts, RunEvent, Settings, StartRun, Started, Turn};
use billing_meter::{prices, usage};
use bytes::Bytes;
use domain::{Amount, Clock, RunId, SystemClock, SystemIds, Timestamp, message::Part};
use egress::Egress;
use futures::StreamExt;
use kit::{FakeInspector, TestDb};
use model_providers::Providers;
use serde_json::{Value, json};
use tenancy::{Tenant, tenants};
use tool_api::ToolExecutor;

pub(crate) struct House {
    pub(crate) db: TestDb,
    pub(crate) runtime: AgentRuntime,
    executor: Arc<dyn ToolExecutor>,
}

impl House {
    pub(crate) async fn new(executor: impl ToolExecutor + 'static) -> House {
        House::with(executor, Settings::default()).await
    }

    pub(crate) async fn with(executor: impl ToolExecutor + 'static, settings: Settings) -> House {
        let db = TestDb::start().await;
        let mut tx = db.db.global().await.unwrap();
        prices::install_default(&mut tx, SystemClock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let executor: Arc<dyn ToolExecutor> = Arc::new(executor);
        let runtime = runtime(&db, executor.clone(), settings);
        House { db, runtime, executor }
    }

    /// Another process over the same database.
    pub(crate) fn second(&self) -> AgentRuntime {
        runtime(&self.db, self.executor.clone(), Settings::default())
    }

    /// A tenant with an agent `clerk` on the demo model, to whom the tool `desk` with the function `run` is bound.
    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let tenant = self.db.tenant(name).await;
        let admission = Admission::new(Arc::new(FakeInspector), Arc::new(SystemClock), Arc::new(SystemIds));
        let tool = "desk".parse().unwrap();
        let component = Bytes::from_static(b"a component");
        let accepted = admission.accept(&tenant, &tool, component, None).await.unwrap();
        admission.finish(&tenant, &tool, accepted.version.version).await.unwrap();
        self.agent(
            &tenant,
            json!({"name": "clerk", "system_prompt": "You are {{role}}.", "model": "demo",
            "tools": [{"tool": "desk", "version": "latest"}]}),
        )
        .await;
        tenant
    }

    pub(crate) async fn agent(&self, tenant: &Tenant, spec: Value) {
        let mut tx = tenant.begin().await.unwrap();
        let plan = tenants::get(&mut tx).await.unwrap().plan;
        let spec = AgentSpec::parse(spec).unwrap();
        agents::create(&mut tx, &plan, spec, &SystemIds, SystemClock.now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn start(&self, tenant: &Tenant, text: &str) -> Started {
        self.runtime.start(tenant, say(text)).await.unwrap()
    }

    /// Says something and waits for the end.
    pub(crate) async fn chat(&self, tenant: &Tenant, text: &str) -> Turn {
        let started = self.start(tenant, text).await;
        self.runtime.wait(tenant, started.run, Duration::from_secs(30)).await.unwrap()
    }

    pub(crate) async fn events(&self, tenant: &Tenant, run: RunId, after: &str) -> Vec<RunEvent> {
        let after: EventCursor = after.parse().unwrap();
        let events = self.runtime.follow(tenant, run, after).await.unwrap();
        events.map(|event| event.unwrap()).collect().await
    }

    /// What the tenant owes, by its usage events.
    pub(crate) async fn owed(&self, tenant: &Tenant) -> Amount {
        let mut tx = tenant.begin().await.unwrap();
        let (from, to) = (Timestamp::from_unix_us(0), SystemClock.now().plus(Duration::from_secs(60)));
        let page = domain::page::PageRequest { limit: 100, after: None };
        usage::events(&mut tx, from, to, page).await.unwrap().data.iter().map(|event| event.amount.amount).sum()
    }
}

fn runtime(db: &TestDb, executor: Arc<dyn ToolExecutor>, settings: Settings) -> AgentRuntime {
    AgentRuntime::new(Parts {
        db: db.db.clone(),
        executor,
        inspector: Arc::new(FakeInspector),
        providers: Arc::new(Providers::new(Egress::new(Vec::new()).unwrap(), BTreeMap::new())),
        master_key: kit::master_key(),
        clock: Arc::new(SystemClock),
        ids: Arc::new(SystemIds),
        settings,
    })
}

pub(crate) fn say(text: &str) -> StartRun {
    StartRun {
        agent: AgentRef::Name("clerk".parse().unwrap()),
        revision: None,
        conversation: None,
        history: Vec::new(),
        messages: vec![vec![Part::text(text)]],
        external_user_id: None,
        context: BTreeMap::new(),
        metadata: Default::default(),
        api_key: None,
        allowed_agents: None,
    }
}
