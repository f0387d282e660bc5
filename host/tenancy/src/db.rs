//! The databases, and who may have how much of them under way.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use domain::{ExposeSecret, SecretString, TenantId};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    ConnectError, DbError, KeyHolder, Placement,
    connections::{ACQUIRE_TIMEOUT, Connections, Lent},
    lookups::Lookups,
    migrate,
    placement::{MAIN_DATABASE, SHARED_SCHEMA},
};

/// One tenant's open transactions hold this part of the connections at most, so that it never holds the pool, nor the
/// processors of a database that has two: a few at once use those up, and share their flushes. Who wants more waits behind
/// its own.
const TENANT_PART: usize = 8;
/// But four where there are few connections.
const TENANT_LEAST: usize = 4;
/// Tenants that are remembered with nothing open.
const IDLE_TENANTS_MAX: usize = 1024;
/// Set on every connection of the application: one statement, one wait for a lock, one idle transaction.
const SESSION: [(&str, &str); 3] =
    [("statement_timeout", "30s"), ("lock_timeout", "10s"), ("idle_in_transaction_session_timeout", "60s")];

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct DbSettings {
    /// Of the application role.
    pub url: SecretString,
    /// Connections at most, and one more that listens. 16 to 64 let commits share one flush.
    pub connections: u32,
}

/// The database, as the application role. Gives out transactions, never a connection.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    databases: HashMap<String, Connections>,
    options: PgConnectOptions,
    transactions: Transactions,
    key_holders: Lookups<[u8; 32], Option<KeyHolder>>,
}

/// What each tenant may open at once.
struct Transactions {
    most: usize,
    tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

impl Transactions {
    fn new(connections: u32) -> Self {
        Transactions { most: (connections as usize / TENANT_PART).max(TENANT_LEAST), tenants: Mutex::default() }
    }

    /// Waits for as long as for a connection.
    async fn place(&self, tenant: TenantId) -> Result<OwnedSemaphorePermit, DbError> {
        let places = self.of(tenant);
        let waited = tokio::time::timeout(ACQUIRE_TIMEOUT, places.acquire_owned()).await;
        // It is never closed.
        Ok(waited.map_err(|_| DbError::TenantBusy)?.map_err(|_| sqlx::Error::PoolClosed)?)
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        // The map stays whole whatever panicked while it was held.
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() > IDLE_TENANTS_MAX {
            // Whoever holds or awaits a place holds the semaphore.
            tenants.retain(|_, places| Arc::strong_count(places) > 1);
        }
        tenants.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.most))).clone()
    }
}

impl Db {
    /// Connects, and refuses a server, a role or a schema that would break a promise.
    pub async fn connect(settings: &DbSettings) -> Result<Db, ConnectError> {
        let options = PgConnectOptions::from_str(settings.url.expose_secret())
            .map_err(ConnectError::BadUrl)?
            .application_name("belljar")
            .options(SESSION);
        let connections = Connections::new(options.clone(), settings.connections);
        // Says why there is none.
        connections.lend().await.map_err(ConnectError::Unreachable)?.give_back();
        let databases = HashMap::from([(MAIN_DATABASE.to_owned(), connections)]);
        let transactions = Transactions::new(settings.connections);
        let db = Db(Arc::new(Inner { databases, options, transactions, key_holders: Lookups::default() }));
        db.check().await?;
        Ok(db)
    }

    async fn check(&self) -> Result<(), ConnectError> {
        let unreachable = |error: DbError| ConnectError::Unreachable(sqlx::Error::Configuration(Box::new(error)));
        let mut tx = self.global().await.map_err(unreachable)?;
        let row = sqlx::query!(
            r#"
            SELECT current_user::text AS "role!",
                   current_setting('server_version_num')::int AS "version!",
                   (r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolreplication
                    OR EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid)
                    OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)) AS "unsafe!"
            FROM pg_roles r WHERE r.rolname = current_user
            "#
        )
        .fetch_one(tx.conn())
        .await
        .map_err(ConnectError::Unreachable)?;
        if row.version < 150_000 {
            return Err(ConnectError::TooOld((row.version / 10_000).to_string()));
        }
        if row.r#unsafe {
            return Err(ConnectError::UnsafeRole(row.role));
        }
        let found = migrate::schema_version(tx.conn()).await;
        let needed = migrate::needed_version();
        if found < needed {
            return Err(ConnectError::SchemaBehind { found, needed });
        }
        Ok(())
    }

    pub(crate) async fn lend(&self, placement: &Placement) -> Result<Lent, DbError> {
        let missing = || sqlx::Error::Configuration(format!("no database `{}`", placement.database()).into());
        Ok(self.0.databases.get(placement.database()).ok_or_else(missing)?.lend().await?)
    }

    /// A connection of its own, on which notifications arrive.
    pub(crate) async fn listener(&self) -> Result<PgListener, DbError> {
        let one = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        Ok(PgListener::connect_with(&one.connect_lazy_with(self.0.options.clone())).await?)
    }

    /// A transaction over the tables that belong to no tenant. Row security shows it no tenant's row.
    pub async fn global(&self) -> Result<GlobalTx, DbError> {
        let statement = format!("BEGIN; SET LOCAL search_path = {SHARED_SCHEMA}");
        Ok(GlobalTx(self.lend(&Placement::shared()).await?.begin(statement).await?))
    }

    pub(crate) fn key_holders(&self) -> &Lookups<[u8; 32], Option<KeyHolder>> {
        &self.0.key_holders
    }

    /// One of the transactions that a tenant may have open. Held as long as it is.
    pub(crate) async fn place(&self, tenant: TenantId) -> Result<OwnedSemaphorePermit, DbError> {
        self.0.transactions.place(tenant).await
    }

    /// One round trip.
    pub async fn ready(&self) -> Result<(), DbError> {
        let mut tx = self.global().await?;
        sqlx::query_scalar!(r#"SELECT 1 AS "one!""#).fetch_one(tx.conn()).await?;
        Ok(())
    }
}

/// A transaction over plans and price books.
#[must_use = "a GlobalTx that is not committed rolls back"]
pub struct GlobalTx(Lent);

impl GlobalTx {
    pub fn conn(&mut self) -> &mut PgConnection {
        self.0.conn()
    }

    pub async fn commit(self) -> Result<(), DbError> {
        Ok(self.0.commit().await?)
    }
}
