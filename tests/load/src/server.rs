//! `belljar dev` with a data directory of its own, and clients of it.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client as Http, Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::Place;

/// Longest start: a cluster is made, migrated and seeded.
const START_MAX: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    child: Child,
    home: tempfile::TempDir,
    http: Http,
    about: Value,
}

/// A tenant's client.
#[derive(Clone)]
pub(crate) struct Tenant {
    http: Http,
    url: String,
    key: String,
}

/// A status and a body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Zero when the server said none.
    pub(crate) retry_after: Duration,
    pub(crate) body: Value,
}

impl Server {
    pub(crate) async fn start(place: &Place, more: &[&str]) -> Result<Server> {
        let home = tempfile::tempdir()?;
        let log = File::create(home.path().join("log"))?;
        let mut child = Command::new(&place.belljar)
            .args(["dev", "--no-seed", "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--data-dir"])
            .arg(home.path().join("data"))
            .args(more)
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .context("belljar does not start")?;
        #[expect(clippy::disallowed_methods, reason = "a client of the product is no way out of it")]
        let http = Http::builder().no_proxy().timeout(Duration::from_secs(180)).build()?;
        let (file, started) = (home.path().join("data/dev.json"), Instant::now());
        let about = loop {
            if let Some(status) = child.try_wait()? {
                bail!("belljar ended: {status}\n{}", fs::read_to_string(home.path().join("log"))?);
            }
            ensure!(started.elapsed() < START_MAX, "belljar is not ready after {START_MAX:?}");
            let about = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if let Some(about) = about
                && http
                    .get(format!("{}/readyz", text(&about, "operator_url")))
                    .send()
                    .await
                    .is_ok_and(|a| a.status().is_success())
            {
                break about;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        Ok(Server { child, home, http, about })
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("the server has ended")
    }

    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home.path().join("log"))?)
    }

    pub(crate) fn operator(&self) -> Tenant {
        let (url, key) = (text(&self.about, "operator_url"), text(&self.about, "operator_token"));
        Tenant { http: self.http.clone(), url, key }
    }

    /// A new tenant on the plan `pro`.
    pub(crate) async fn tenant(&self, name: &str) -> Result<Tenant> {
        let operator = self.operator();
        let made = operator.post("/operator/v1/tenants", json!({"name": name, "plan": "pro"})).await?.made()?;
        let path = format!("/operator/v1/tenants/{}/api-keys", text(&made, "id"));
        let key = operator.post(&path, json!({"name": "load", "scopes": ["admin"]})).await?.made()?;
        Ok(Tenant { http: self.http.clone(), url: text(&self.about, "base_url"), key: text(&key, "key") })
    }

    /// Ends the server as Ctrl-C does. It stops its Postgres.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = self.pid()?.to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await?;
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await??;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Tenant {
    pub(crate) fn new(http: Http, url: String, key: String) -> Tenant {
        Tenant { http, url, key }
    }

    /// The same one, who asks another host.
    pub(crate) fn at(&self, url: String) -> Tenant {
        Tenant { url, ..self.clone() }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    fn ask(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(&self.key)
    }

    /// A request that is yet to be sent.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.ask(self.http.request(method, format!("{}{path}", self.url)))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Result<Answer> {
        Answer::of(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        Answer::of(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn upload(&self, tool: &str, component: Vec<u8>) -> Result<Answer> {
        let request = self.http.post(format!("{}/v1/tools/{tool}/versions", self.url));
        Answer::of(self.ask(request).header("content-type", "application/wasm").body(component)).await
    }

    /// Calls a function of a tool's newest version.
    pub(crate) async fn call(&self, tool: &str, body: Value) -> Result<Answer> {
        self.post(&format!("/v1/tools/{tool}/versions/latest/calls"), body).await
    }
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Result<Answer> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = Duration::from_secs(seconds.unwrap_or_default());
        let bytes = response.bytes().await?;
        Ok(Answer { status, retry_after, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    pub(crate) fn made(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "{}: {}", self.status, self.body);
        Ok(self.body)
    }
}

/// A component in the folder.
pub(crate) fn component(place: &Place, name: &str) -> Result<Vec<u8>> {
    let path = place.guests.join(format!("{name}.wasm"));
    fs::read(&path).with_context(|| format!("{name}.wasm; `cargo xtask guests` makes it"))
}

/// Components in the folder, by name.
pub(crate) fn components(place: &Place) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(&place.guests).context("the folder of components; `cargo xtask guests` makes it")?;
    for entry in entries {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
            found.push((name, fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}
