//! A database for `dev`: a private cluster, or the owner's of `DATABASE_URL`.

use std::path::PathBuf;

use anyhow::Context;
use domain::{ExposeSecret, SecretString};
use private_postgres::{Cluster, Durability, Options, SUPERUSER};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tenancy::{APPLICATION_ROLE, seal::MasterKey};
use url::Url;

use crate::config::Dev;

/// Owns the private database. Not a superuser: it migrates as an operator's owner does.
const OWNER_ROLE: &str = "belljar_owner";
const DATABASE: &str = "belljar";

/// A Postgres that answers.
pub(crate) enum Database {
    /// `None` once it was stopped.
    Private(Option<Cluster>),
    Given {
        owner_url: SecretString,
    },
}

/// Who connects how.
pub(crate) struct Urls {
    pub(crate) application: SecretString,
    pub(crate) owner: SecretString,
    pub(crate) superuser: Option<SecretString>,
}

pub(crate) async fn start(config: &Dev) -> anyhow::Result<Database> {
    if let Some(owner_url) = config.owner_database_url.clone() {
        return Ok(Database::Given { owner_url });
    }
    let data_dir = config.data_dir.join("postgres");
    let cluster = tokio::task::spawn_blocking(move || start_cluster(data_dir)).await??;
    Ok(Database::Private(Some(cluster)))
}

fn start_cluster(data_dir: PathBuf) -> anyhow::Result<Cluster> {
    Ok(Cluster::start(Options { data_dir, durability: Durability::Durable, settings: Vec::new() })?)
}

impl Database {
    /// Brings the schema to this program's version.
    pub(crate) async fn migrate(&self, master_key: &MasterKey) -> anyhow::Result<Urls> {
        let urls = match self {
            Database::Private(Some(cluster)) => {
                create_database(&cluster.url(SUPERUSER, "postgres")).await.context("cannot create the database")?;
                let url = |role: &str| SecretString::from(cluster.url(role, DATABASE));
                // The socket is ours alone, and whoever reaches it is trusted: no passwords.
                Urls { application: url(APPLICATION_ROLE), owner: url(OWNER_ROLE), superuser: Some(url(SUPERUSER)) }
            }
            Database::Private(None) => anyhow::bail!("Postgres was stopped"),
            Database::Given { owner_url } => given_urls(owner_url, master_key)?.0,
        };
        let done = tenancy::migrate(urls.owner.expose_secret()).await?;
        if done.from != done.to {
            tracing::info!(from = done.from, to = done.to, "the schema was migrated");
        }
        if let Database::Given { owner_url } = self {
            let (_, password) = given_urls(owner_url, master_key)?;
            if let Err(error) = set_application_password(owner_url, &password).await {
                // Where connections are trusted no password is needed, and where they are not the next step says so.
                tracing::warn!(%error, role = APPLICATION_ROLE, "the application role's password was not set");
            }
        }
        Ok(urls)
    }

    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Database::Private(cluster) = self
            && let Some(cluster) = cluster.take()
        {
            tokio::task::spawn_blocking(|| cluster.stop()).await??;
        }
        Ok(())
    }
}

/// The URLs of a given database, and the password that the application role gets there.
fn given_urls(owner_url: &SecretString, master_key: &MasterKey) -> anyhow::Result<(Urls, SecretString)> {
    let owner = Url::parse(owner_url.expose_secret()).context("DATABASE_URL cannot be read")?;
    let parameters: Vec<(String, String)> = owner.query_pairs().into_owned().collect();
    let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    // From the owner's password, so that every machine that works with this database finds the same.
    let key = match owner.password().map(str::to_owned).or_else(|| parameter("password")) {
        Some(password) => MasterKey::new(Sha256::digest(password.as_bytes()).into()),
        None => master_key.clone(),
    };
    let password = hex::encode(&key.derive("belljar dev application role 1")[..]);
    let mut application = owner;
    let no_authority =
        |()| anyhow::anyhow!("DATABASE_URL has no host: use postgres://OWNER:PASSWORD@HOST:PORT/DATABASE");
    application.set_username(APPLICATION_ROLE).map_err(no_authority)?;
    application.set_password(Some(&password)).map_err(no_authority)?;
    application.set_query(None);
    for (name, value) in parameters.iter().filter(|(name, _)| !["user", "password"].contains(&name.as_str())) {
        application.query_pairs_mut().append_pair(name, value);
    }
    let urls =
        Urls { application: SecretString::from(application.as_str()), owner: owner_url.clone(), superuser: None };
    Ok((urls, SecretString::from(password)))
}

/// Role and database of the owner, where they are missing.
async fn create_database(superuser_url: &str) -> Result<(), sqlx::Error> {
    let mut superuser = PgConnection::connect(superuser_url).await?;
    let role: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(OWNER_ROLE)
        .fetch_one(&mut superuser)
        .await?;
    if !role {
        superuser.execute(AssertSqlSafe(format!("CREATE ROLE {OWNER_ROLE} LOGIN CREATEROLE"))).await?;
    }
    let database: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(DATABASE)
        .fetch_one(&mut superuser)
        .await?;
    if !database {
        superuser.execute(AssertSqlSafe(format!("CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}"))).await?;
    }
    superuser.close().await
}

async fn set_application_password(owner_url: &SecretString, password: &SecretString) -> Result<(), sqlx::Error> {
    let mut owner = PgConnection::connect(owner_url.expose_secret()).await?;
    // Hex digits: nothing to escape.
    let statement = format!("ALTER ROLE {APPLICATION_ROLE} PASSWORD '{}'", password.expose_secret());
    owner.execute(AssertSqlSafe(statement)).await?;
    owner.close().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_role_of_a_given_database_is_derived_from_its_owner() {
        let master_key = MasterKey::new([7; 32]);
        let derive = |url: &str| {
            let (urls, password) = given_urls(&SecretString::from(url), &master_key).unwrap();
            (urls.application.expose_secret().to_owned(), password.expose_secret().to_owned())
        };
        let (url, password) = derive("postgres://ada:secret@db.example:6432/jar?sslmode=require");
        assert_eq!(url, format!("postgres://belljar_app:{password}@db.example:6432/jar?sslmode=require"));
        assert_eq!(derive("postgres://db.example/jar?user=ada&password=secret").1, password);
        let (url, other) = derive("postgres://ada@localhost/jar?host=/run/pg");
        assert_ne!(other, password);
        assert_eq!(url, format!("postgres://belljar_app:{other}@localhost/jar?host=%2Frun%2Fpg"));
    }
}
