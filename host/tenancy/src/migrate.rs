//! Migrations, run by the owner.

use std::str::FromStr;

use sha2::{Digest, Sha256};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, migrate::Migrator, postgres::PgConnectOptions,
};

use crate::{ConnectError, placement::SHARED_SCHEMA};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// The role that `serve` connects as.
pub const APPLICATION_ROLE: &str = "belljar_app";

/// What `migrate` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    pub from: i64,
    pub to: i64,
}

/// Brings the database to this program's version. `owner_url` names a role that owns the database and may create roles;
/// it need not be a superuser.
pub async fn migrate(owner_url: &str) -> Result<Migrated, ConnectError> {
    let mut owner = connect(owner_url).await?;
    let version = owner.server_version_num().unwrap_or_default();
    if version < 150_000 {
        return Err(ConnectError::TooOld((version / 10_000).to_string()));
    }
    let unreachable = ConnectError::Unreachable;
    for statement in
        [format!("CREATE SCHEMA IF NOT EXISTS {SHARED_SCHEMA}"), format!("SET search_path = {SHARED_SCHEMA}")]
    {
        owner.execute(AssertSqlSafe(statement)).await.map_err(unreachable)?;
    }
    let from = schema_version(&mut owner).await;
    MIGRATIONS.run(&mut owner).await?;
    let grant = format!("GRANT SELECT ON {SHARED_SCHEMA}._sqlx_migrations TO {APPLICATION_ROLE}");
    owner.execute(AssertSqlSafe(grant)).await.map_err(unreachable)?;
    let to = schema_version(&mut owner).await;
    owner.close().await.map_err(unreachable)?;
    Ok(Migrated { from, to })
}

/// Names this program's migrations: another text where one of them differs.
pub fn fingerprint() -> String {
    let mut hasher = Sha256::new();
    MIGRATIONS.iter().for_each(|migration| hasher.update(&migration.checksum));
    hex::encode(&hasher.finalize()[..8])
}

/// How many migrations are missing.
pub async fn pending(owner_url: &str) -> Result<usize, ConnectError> {
    let mut owner = connect(owner_url).await?;
    let found = schema_version(&mut owner).await;
    Ok(MIGRATIONS.iter().filter(|migration| migration.version > found).count())
}

async fn connect(owner_url: &str) -> Result<PgConnection, ConnectError> {
    let options = PgConnectOptions::from_str(owner_url).map_err(ConnectError::BadUrl)?;
    options.application_name("belljar migrate").connect().await.map_err(ConnectError::Unreachable)
}

/// 0 where nothing was migrated yet.
pub(crate) async fn schema_version(connection: &mut PgConnection) -> i64 {
    let statement = format!("SELECT coalesce(max(version), 0) FROM {SHARED_SCHEMA}._sqlx_migrations WHERE success");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await.unwrap_or(0)
}

pub(crate) fn needed_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}
