//! A Postgres and processes of `belljar serve` on it, each of which can be ended and started again.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use private_postgres::{Cluster, Durability, Options, SUPERUSER};
use reqwest::Client as Http;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tokio::process::{Child, Command};

use crate::{Place, server::Tenant};

/// Longest start of a host: it connects and reserves its memory, on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Longest wait of a client for an answer: the product answers after 60 s at the latest.
const ANSWER_MAX: Duration = Duration::from_secs(90);
const OWNER_ROLE: &str = "belljar_owner";
const APPLICATION_ROLE: &str = "belljar_app";
const DATABASE: &str = "belljar";
const MASTER_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OPERATOR_TOKEN: &str = "the operator of the load programs";
/// The plan of those tenants whose plan is not what is looked at.
const PLAN: &str = "load";

/// What is started, and how.
pub(crate) struct Setup {
    pub(crate) hosts: usize,
    /// Of the fake model. A host's key ends in its number.
    pub(crate) openai_base_url: String,
    pub(crate) allow_egress: Vec<String>,
    /// Further settings of `serve`, name and value.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Setup {
    /// One host that reaches nothing but its model, and says little.
    pub(crate) fn one_host(openai_base_url: String) -> Setup {
        let settings = vec![("BELLJAR_LOG", "warn".to_owned())];
        Setup { hosts: 1, openai_base_url, allow_egress: Vec::new(), settings }
    }

    pub(crate) fn with(mut self, name: &'static str, value: usize) -> Setup {
        self.settings.push((name, value.to_string()));
        self
    }
}

pub(crate) struct Fleet {
    pub(crate) hosts: Vec<Host>,
    pub(crate) http: Http,
    /// `None` for the moment in which it is started again.
    cluster: Mutex<Option<Cluster>>,
    options: Options,
    superuser_url: String,
    _home: tempfile::TempDir,
}

/// One process of the product, or the place of one.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    operator: SocketAddr,
    program: PathBuf,
    environment: Vec<(String, String)>,
    log: PathBuf,
    http: Http,
}

impl Fleet {
    /// Starts Postgres, durable as in production, and brings the schema. No host runs yet.
    pub(crate) async fn start(place: &Place, setup: Setup) -> Result<Fleet> {
        let home = tempfile::tempdir()?;
        // A server that ends with us, but not one that forgets.
        let settings = [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            ("shared_buffers", "128MB"),
            ("max_connections", "300"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = Options { data_dir: home.path().join("postgres"), durability: Durability::Throwaway, settings };
        let cluster = start_cluster(options.clone()).await?;
        let (owner_url, application_url) = (cluster.url(OWNER_ROLE, DATABASE), cluster.url(APPLICATION_ROLE, DATABASE));
        create_database(&cluster.url(SUPERUSER, "postgres")).await.context("cannot create the database")?;
        let migrated = Command::new(&place.belljar)
            .args(["migrate", "--database-url", &owner_url])
            .stdin(Stdio::null())
            .output()
            .await
            .context("belljar does not start")?;
        ensure!(migrated.status.success(), "belljar migrate: {}", String::from_utf8_lossy(&migrated.stderr));

        #[expect(clippy::disallowed_methods, reason = "a client of the product is no way out of it")]
        let http = Http::builder().no_proxy().timeout(ANSWER_MAX).build()?;
        let mut hosts = Vec::new();
        for number in 0..setup.hosts {
            let folder = home.path().join(format!("host-{number}"));
            fs::create_dir(&folder)?;
            let (address, operator) = (free_address()?, free_address()?);
            let mut environment = vec![
                ("BELLJAR_DATABASE_URL".to_owned(), application_url.clone()),
                ("BELLJAR_MASTER_KEY".to_owned(), MASTER_KEY.to_owned()),
                ("BELLJAR_OPERATOR_TOKEN".to_owned(), OPERATOR_TOKEN.to_owned()),
                ("BELLJAR_CACHE_DIR".to_owned(), folder.join("compiled").to_string_lossy().into_owned()),
                ("BELLJAR_LISTEN".to_owned(), address.to_string()),
                ("BELLJAR_OPERATOR_LISTEN".to_owned(), operator.to_string()),
                ("BELLJAR_ALLOW_EGRESS".to_owned(), setup.allow_egress.join(",")),
                ("OPENAI_API_KEY".to_owned(), format!("sk-load-{number}")),
                ("OPENAI_BASE_URL".to_owned(), setup.openai_base_url.clone()),
            ];
            environment.extend(setup.settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            hosts.push(Host {
                address,
                operator,
                program: place.belljar.clone(),
                environment,
                log: folder.join("log"),
                http: http.clone(),
            });
        }
        let superuser_url = cluster.url(SUPERUSER, DATABASE);
        Ok(Fleet { hosts, http, cluster: Mutex::new(Some(cluster)), options, superuser_url, _home: home })
    }

    /// For looks past the walls. The same after Postgres was started again.
    pub(crate) fn superuser_url(&self) -> &str {
        &self.superuser_url
    }

    /// The postmaster, and the folder of its data.
    pub(crate) fn postgres(&self) -> Result<(i32, PathBuf)> {
        let cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = cluster.as_ref().context("Postgres is being started again")?;
        Ok((cluster.pid(), cluster.home().to_owned()))
    }

    /// `kill -9` of the postmaster; its helpers notice and end. Then a new one on the same data.
    pub(crate) async fn crash_postgres(&self) -> Result<()> {
        let old = self.cluster.lock().unwrap_or_else(PoisonError::into_inner).take();
        let old = old.context("Postgres is being started again")?;
        kill(old.pid())?;
        let new = start_cluster(self.options.clone()).await?;
        // Dropped after the new one was entered, so that its users are not taken for the last to leave.
        tokio::task::spawn_blocking(move || drop(old)).await?;
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
        Ok(())
    }

    pub(crate) fn operator(&self) -> Tenant {
        let url = format!("http://{}", self.hosts[0].operator);
        Tenant::new(self.http.clone(), url, OPERATOR_TOKEN.to_owned())
    }

    /// A new tenant that no plan holds back.
    pub(crate) async fn tenant(&self, name: &str) -> Result<Tenant> {
        let operator = self.operator();
        let mut plan = operator.get("/operator/v1/plans/pro").await?.made()?;
        plan["name"] = json!(PLAN);
        plan["requests_per_minute"] = json!(100_000_000);
        plan["concurrent_runs"] = json!(10_000);
        plan["concurrent_tool_calls"] = json!(1_000);
        operator.put(&format!("/operator/v1/plans/{PLAN}"), plan).await?.made()?;
        let made = operator.post("/operator/v1/tenants", json!({"name": name, "plan": PLAN})).await?.made()?;
        let path = format!("/operator/v1/tenants/{}/api-keys", text(&made, "id"));
        let key = operator.post(&path, json!({"name": "load", "scopes": ["admin"]})).await?.made()?;
        Ok(Tenant::new(self.http.clone(), self.hosts[0].url(), text(&key, "key")))
    }

    /// Stops Postgres and removes its data, which may be outside of our folder.
    pub(crate) async fn end(self) -> Result<()> {
        let cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(cluster) = cluster {
            let home = cluster.home().to_owned();
            tokio::task::spawn_blocking(move || cluster.stop()).await??;
            fs::remove_dir_all(&home).with_context(|| format!("cannot remove `{}`", home.display()))?;
        }
        Ok(())
    }
}

impl Host {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts the process. `fault` is where it ends itself.
    pub(crate) fn start(&self, fault: Option<&str>) -> Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("serve").envs(self.environment.iter().map(|(name, value)| (name, value)));
        for name in ["BELLJAR_CONFIG", "BELLJAR_FAULT", "DATABASE_URL"] {
            command.env_remove(name);
        }
        if let Some(fault) = fault {
            command.env("BELLJAR_FAULT", fault);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.spawn().context("belljar does not start")
    }

    /// Waits until it is ready. `false`: it has ended before.
    pub(crate) async fn ready(&self, child: &mut Child) -> Result<bool> {
        let (began, url) = (Instant::now(), format!("http://{}/readyz", self.operator));
        loop {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            if self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(true);
            }
            if began.elapsed() > START_MAX {
                bail!("a host is not ready after {START_MAX:?}:\n{}", self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts it where it must not fail.
    pub(crate) async fn started(&self) -> Result<Child> {
        let mut child = self.start(None)?;
        ensure!(self.ready(&mut child).await?, "a host ended at its start:\n{}", self.log_tail());
        Ok(child)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// `kill -9` of a process that is ours.
pub(crate) fn kill(pid: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("a process id")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// SIGTERM, and the end of the process.
pub(crate) async fn stop(mut child: Child) -> Result<()> {
    let pid = child.id().context("the host has ended")?;
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("a process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status =
        tokio::time::timeout(Duration::from_secs(60), child.wait()).await.context("a host does not stop")??;
    ensure!(status.success(), "a host ended with {status}");
    Ok(())
}

async fn start_cluster(options: Options) -> Result<Cluster> {
    Ok(tokio::task::spawn_blocking(move || Cluster::start(options)).await??)
}

async fn create_database(superuser_url: &str) -> Result<(), sqlx::Error> {
    let mut superuser = PgConnection::connect(superuser_url).await?;
    superuser.execute("CREATE ROLE belljar_owner LOGIN CREATEROLE").await?;
    superuser.execute("CREATE DATABASE belljar OWNER belljar_owner").await?;
    superuser.close().await
}

/// An address that is free now, and that a host takes again and again.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}
