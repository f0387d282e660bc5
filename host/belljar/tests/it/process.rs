//! A `belljar dev` of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A start may wait for a cluster that has to be made first, on a busy machine.
const START_SECONDS_MAX: u64 = 120;

/// A running server. Dropped, it is stopped as by Ctrl-C.
pub(crate) struct Dev {
    child: Child,
    pub(crate) state: Value,
    http: reqwest::Client,
}

/// The workspace's built components.
pub(crate) fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests").canonicalize().unwrap()
}

impl Dev {
    /// Starts in `home`, on free ports, and waits until it is ready.
    pub(crate) async fn start(home: &Path) -> Dev {
        let ready = home.join(".belljar/dev.json");
        let before = fs::metadata(&ready).and_then(|file| file.modified()).ok();
        let log = File::create(home.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_belljar"))
            .args(["dev", "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--tools-dir"])
            .arg(guests())
            .current_dir(home)
            .env_remove("DATABASE_URL")
            .env_remove("OPENAI_API_KEY")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let began = Instant::now();
        let written = || fs::metadata(&ready).and_then(|file| file.modified()).ok();
        while written() == before {
            let log = fs::read_to_string(home.join("log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(START_SECONDS_MAX), "not ready: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let state = serde_json::from_str(&fs::read_to_string(&ready).unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test's client is no way out of the product")]
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        let dev = Dev { child, state, http };
        let health = format!("{}/readyz", dev.state["operator_url"].as_str().unwrap());
        while dev.http.get(&health).send().await.map(|answer| answer.status().as_u16()).ok() != Some(200) {
            assert!(began.elapsed() < Duration::from_secs(START_SECONDS_MAX), "never ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        dev
    }

    pub(crate) fn url(&self) -> &str {
        self.state["base_url"].as_str().unwrap()
    }

    fn key(&self) -> &str {
        self.state["api_key"].as_str().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url())).bearer_auth(self.key()).send().await.unwrap();
        answer.json().await.unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url())).bearer_auth(self.key()).json(&body)
    }

    pub(crate) async fn upload(&self, tool: &str) {
        let component = fs::read(guests().join(format!("{tool}.wasm"))).unwrap();
        let name = tool.replace('_', "-");
        let upload = self
            .http
            .post(format!("{}/v1/tools/{name}/versions", self.url()))
            .bearer_auth(self.key())
            .header("content-type", "application/wasm")
            .body(component);
        assert!(upload.send().await.unwrap().status().is_success());
    }

    pub(crate) async fn agent(&self, name: &str, tools: &[&str]) {
        let tools: Vec<Value> = tools.iter().map(|tool| json!({"tool": tool, "version": "latest"})).collect();
        let agent = json!({"name": name, "system_prompt": "", "model": "demo", "tools": tools});
        assert_eq!(self.post("/v1/agents", agent).send().await.unwrap().status().as_u16(), 201);
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; answers the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.terminate()
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
        }
    }
}
