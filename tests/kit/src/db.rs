//! A database of its own for every test, used as the application role.
//!
//! One private cluster serves all test processes of a checkout: each joins it, the last to leave stops it. A template is
//! migrated once; a test gets a copy.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use domain::{AgentId, Clock as _, SecretString, SystemClock, SystemIds};
use private_postgres::{Cluster, Options};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tenancy::{
    Db, DbSettings, Tenant,
    seal::MasterKey,
    tenants::{self, NewTenant},
};

/// Not a superuser: it migrates as an operator's owner does.
const OWNER: &str = "belljar_owner";
/// Held while the template is made: one process makes it.
const TEMPLATE_LOCK: i64 = 0x62656c6c;

static COPIES: AtomicU32 = AtomicU32::new(0);

/// A master key for tests.
pub fn master_key() -> MasterKey {
    MasterKey::new([42; 32])
}

/// A migrated, empty database. The server is stopped with the last test process.
pub struct TestDb {
    pub db: Db,
    name: String,
    cluster: Cluster,
}

impl TestDb {
    pub async fn start() -> TestDb {
        let cluster = tokio::task::spawn_blocking(join_cluster).await.unwrap();
        let name = copy_template(&cluster).await;
        let settings = DbSettings { url: SecretString::from(cluster.url("belljar_app", &name)), connections: 8 };
        let db = Db::connect(&settings).await.unwrap();
        TestDb { db, name, cluster }
    }

    /// The application role's.
    pub fn url(&self) -> String {
        self.cluster.url("belljar_app", &self.name)
    }

    pub fn owner_url(&self) -> String {
        self.cluster.url(OWNER, &self.name)
    }

    /// For tests that look past the walls.
    pub async fn superuser(&self) -> PgConnection {
        PgConnection::connect(&self.cluster.url(private_postgres::SUPERUSER, &self.name)).await.unwrap()
    }

    /// A tenant on the plan `pro`.
    pub async fn tenant(&self, name: &str) -> Tenant {
        let new = NewTenant { name: name.into(), plan: Some("pro".into()), overrides: Default::default() };
        tenants::create(&self.db, new, &SystemIds, SystemClock.now()).await.unwrap().0
    }

    /// The bare rows of an agent with one revision, for foreign keys.
    pub async fn agent(&self, tenant: &Tenant) -> AgentId {
        let id = AgentId::new(&SystemIds);
        let mut tx = tenant.begin().await.unwrap();
        for statement in [
            "INSERT INTO agent (tenant_id, agent_id, name, active_revision, created_at, updated_at)
             VALUES ($1, $2, 'agent-' || left($2::text, 8) || right($2::text, 8), 1, now(), now())",
            "INSERT INTO agent_revision (tenant_id, agent_id, revision, body, created_at) VALUES ($1, $2, 1, '{}', now())",
        ] {
            sqlx::query(statement).bind(tenant.id().uuid()).bind(id.uuid()).execute(tx.conn()).await.unwrap();
        }
        tx.commit().await.unwrap();
        id
    }
}

fn join_cluster() -> Cluster {
    let data_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/test-postgres");
    std::fs::create_dir_all(&data_dir).unwrap();
    Cluster::start(Options::for_tests(data_dir)).unwrap()
}

/// Makes a copy of the template, and the template first where it is missing. Returns the copy's name.
async fn copy_template(cluster: &Cluster) -> String {
    let template = format!("template_{}", tenancy::fingerprint());
    let mut superuser = PgConnection::connect(&cluster.url(private_postgres::SUPERUSER, "postgres")).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut superuser).await.unwrap();
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(&template)
        .fetch_one(&mut superuser)
        .await
        .unwrap();
    if !exists {
        make_template(cluster, &mut superuser, &template).await;
    }
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(TEMPLATE_LOCK).execute(&mut superuser).await.unwrap();
    drop_orphans(&mut superuser).await;
    let name = format!("test_{}_{}", std::process::id(), COPIES.fetch_add(1, Ordering::SeqCst));
    run(&mut superuser, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
    run(&mut superuser, format!("CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER}")).await;
    name
}

async fn make_template(cluster: &Cluster, superuser: &mut PgConnection, template: &str) {
    let role: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(OWNER)
        .fetch_one(&mut *superuser)
        .await
        .unwrap();
    if !role {
        run(superuser, format!("CREATE ROLE {OWNER} LOGIN CREATEROLE")).await;
    }
    let making = format!("{template}_making");
    run(superuser, format!("DROP DATABASE IF EXISTS {making} WITH (FORCE)")).await;
    run(superuser, format!("CREATE DATABASE {making} OWNER {OWNER}")).await;
    tenancy::migrate(&cluster.url(OWNER, &making)).await.unwrap();
    run(superuser, format!("ALTER DATABASE {making} RENAME TO {template}")).await;
}

/// Databases whose test process is gone. A few at a time: dropping one takes a while.
async fn drop_orphans(superuser: &mut PgConnection) {
    let names: Vec<String> = sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE datname LIKE 'test\\_%'")
        .fetch_all(&mut *superuser)
        .await
        .unwrap();
    let orphan = |name: &&String| {
        let pid = name.split('_').nth(1).unwrap_or_default();
        !std::path::Path::new("/proc").join(pid).exists()
    };
    for name in names.iter().filter(orphan).take(4) {
        // Another test process may be dropping the same one.
        let _ = superuser.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).await;
    }
}

async fn run(connection: &mut PgConnection, statement: String) {
    connection.execute(AssertSqlSafe(statement)).await.unwrap();
}
