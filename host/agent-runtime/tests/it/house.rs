//! A runtime over a database of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_config::{
    admission::Admission,
    agents::{self, AgentRef, AgentSpec},
    key_value::{self, KeyValueError},
    secrets::NamingRight,
    tools::VersionRef,
};
use agent_runtime::{AgentRuntime, DirectCall, EventCursor, Parts, RunEvent, Settings, StartRun, Started, Turn};
use billing_meter::{prices, usage};
use bytes::Bytes;
use domain::{Amount, Clock, RunId, SystemClock, SystemIds, Timestamp, message::Part};
use egress::Egress;
use futures::StreamExt;
use kit::{FakeInspector, TestDb};
use model_providers::{Endpoint, Providers};
use serde_json::{Value, json};
use tenancy::{Tenant, tenants};
use tool_api::{ArtifactHash, Change, Operation, Seen, ToolExecutor, ToolInspector};

use crate::puppet::Puppet;

pub(crate) struct House {
    pub(crate) db: TestDb,
    pub(crate) runtime: AgentRuntime,
    executor: Arc<dyn ToolExecutor>,
    inspector: Arc<dyn ToolInspector>,
    /// The operator's models, besides the demo model.
    platform: BTreeMap<String, Endpoint>,
}

impl House {
    pub(crate) async fn new(executor: impl ToolExecutor + 'static) -> House {
        House::with(executor, Settings::default()).await
    }

    pub(crate) async fn with(executor: impl ToolExecutor + 'static, settings: Settings) -> House {
        House::of(Arc::new(executor), Arc::new(FakeInspector), settings).await
    }

    /// With the provider `puppet`.
    pub(crate) async fn with_model(
        executor: impl ToolExecutor + 'static,
        settings: Settings,
        puppet: &Puppet,
    ) -> House {
        House::build(Arc::new(executor), Arc::new(FakeInspector), settings, puppet.platform()).await
    }

    pub(crate) async fn of(
        executor: Arc<dyn ToolExecutor>,
        inspector: Arc<dyn ToolInspector>,
        settings: Settings,
    ) -> House {
        House::build(executor, inspector, settings, BTreeMap::new()).await
    }

    async fn build(
        executor: Arc<dyn ToolExecutor>,
        inspector: Arc<dyn ToolInspector>,
        settings: Settings,
        platform: BTreeMap<String, Endpoint>,
    ) -> House {
        let db = TestDb::start().await;
        let mut tx = db.db.global().await.unwrap();
        prices::install_default(&mut tx, SystemClock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let runtime = runtime(&db, executor.clone(), inspector.clone(), settings, platform.clone());
        House { db, runtime, executor, inspector, platform }
    }

    /// Another process over the same database.
    pub(crate) fn second(&self) -> AgentRuntime {
        self.another(Settings::default())
    }

    pub(crate) fn another(&self, settings: Settings) -> AgentRuntime {
        runtime(&self.db, self.executor.clone(), self.inspector.clone(), settings, self.platform.clone())
    }

    /// Another process, with an executor of its own.
    pub(crate) fn process(&self, executor: Arc<dyn ToolExecutor>, settings: Settings) -> AgentRuntime {
        runtime(&self.db, executor, self.inspector.clone(), settings, self.platform.clone())
    }

    /// A tenant with an agent `clerk` on the demo model, to whom the tool `desk` with the function `run` is bound.
    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let tenant = self.db.tenant(name).await;
        self.push(&tenant, "a component").await;
        self.agent(
            &tenant,
            json!({"name": "clerk", "system_prompt": "You are {{role}}.", "model": "demo",
            "tools": [{"tool": "desk", "version": "latest"}]}),
        )
        .await;
        tenant
    }

    /// A version of the tool `desk`.
    pub(crate) async fn push(&self, tenant: &Tenant, component: &'static str) -> ArtifactHash {
        let admission = Admission::new(Arc::new(FakeInspector), Arc::new(SystemClock), Arc::new(SystemIds));
        let tool = "desk".parse().unwrap();
        let component = Bytes::from_static(component.as_bytes());
        let accepted = admission.accept(tenant, &tool, component, None, None).await.unwrap();
        admission.finish(tenant, &tool, accepted.version.version).await.unwrap().version
    }

    /// An agent on the demo model to whom `desk` is bound with more.
    pub(crate) async fn bind(&self, tenant: &Tenant, name: &str, more: Value) -> AgentRef {
        let mut binding = json!({"tool": "desk", "version": "latest"});
        more.as_object().unwrap().iter().for_each(|(field, value)| binding[field] = value.clone());
        self.agent(tenant, json!({"name": name, "system_prompt": "", "model": "demo", "tools": [binding]})).await;
        AgentRef::Name(name.parse().unwrap())
    }

    pub(crate) async fn agent(&self, tenant: &Tenant, spec: Value) {
        let mut tx = tenant.begin().await.unwrap();
        let plan = tenants::get(&mut tx).await.unwrap().plan;
        let spec = AgentSpec::parse(spec).unwrap();
        agents::create(&mut tx, &plan, spec, NamingRight::Anywhere, &SystemIds, SystemClock.now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn start(&self, tenant: &Tenant, text: &str) -> Started {
        self.runtime.start(tenant, say(text)).await.unwrap()
    }

    /// Says something and waits for the end.
    pub(crate) async fn chat(&self, tenant: &Tenant, text: &str) -> Turn {
        self.talk(tenant, say(text)).await
    }

    pub(crate) async fn talk(&self, tenant: &Tenant, turn: StartRun) -> Turn {
        let started = self.runtime.start(tenant, turn).await.unwrap();
        self.runtime.wait(tenant, started.run, Duration::from_secs(30)).await.unwrap()
    }

    /// An entry of the tenant's store.
    pub(crate) async fn entry(&self, tenant: &Tenant, namespace: &str, key: &str) -> Option<String> {
        let mut tx = tenant.begin().await.unwrap();
        match key_value::get(&mut tx, namespace, key).await {
            Ok(stored) => Some(String::from_utf8(stored.value.to_vec()).unwrap()),
            Err(KeyValueError::NotFound) => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn put_entry(tenant: &Tenant, namespace: &str, key: &str, value: &str) {
        let mut tx = tenant.begin().await.unwrap();
        let value = Bytes::from(value.to_owned());
        key_value::put(&mut tx, 1 << 20, namespace, key, value, SystemClock.now()).await.unwrap();
        tx.commit().await.unwrap();
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

fn runtime(
    db: &TestDb,
    executor: Arc<dyn ToolExecutor>,
    inspector: Arc<dyn ToolInspector>,
    settings: Settings,
    platform: BTreeMap<String, Endpoint>,
) -> AgentRuntime {
    AgentRuntime::new(Parts {
        db: db.db.clone(),
        executor,
        inspector,
        providers: Arc::new(Providers::new(Egress::new(Vec::new()).unwrap(), platform)),
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
        queue: false,
        api_key: None,
        allowed_agents: None,
        configuration: None,
        once: None,
        provider_key: None,
    }
}

/// A call of `desk` without an agent.
pub(crate) fn direct(arguments: Value) -> DirectCall {
    DirectCall {
        tool: "desk".parse().unwrap(),
        version: VersionRef::Latest,
        function: "run".parse().unwrap(),
        arguments,
        grants: Default::default(),
        limits: Default::default(),
        external_user_id: None,
        context: BTreeMap::new(),
        record: false,
        api_key: None,
    }
}

pub(crate) fn set(namespace: &str, key: &str, value: &str, seen: Option<Seen>) -> Change {
    let operation = Operation::Set(Bytes::from(value.to_owned()));
    Change { namespace: namespace.into(), key: key.into(), operation, seen }
}
