//! The program, running: any command, and a `belljar dev` of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A start may wait for a cluster that has to be made first, on a busy machine.
const START_SECONDS_MAX: u64 = 120;

/// A running process of this program. Dropped, it is stopped as by Ctrl-C.
pub(crate) struct Running(Child);

/// A running `belljar dev`.
pub(crate) struct Dev {
    process: Running,
    pub(crate) state: Value,
    http: reqwest::Client,
}

/// The program, with none of the caller's settings.
pub(crate) fn belljar(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
    command.current_dir(home).stdin(Stdio::null());
    for name in [
        "DATABASE_URL",
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "GEMINI_API_KEY",
        "BELLJAR_LOG",
        "BELLJAR_LOG_FORMAT",
        "BELLJAR_CONFIG",
        "BELLJAR_URL",
        "BELLJAR_API_KEY",
    ] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn client() -> reqwest::Client {
    #[expect(clippy::disallowed_methods, reason = "a test's client is no way out of the product")]
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap()
}

impl Running {
    /// Starts it, with everything that it says in `home/log`.
    pub(crate) fn start(command: &mut Command, home: &Path) -> Running {
        let log = File::create(home.join("log")).unwrap();
        Running(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// Looks until `found` has something; `home/log` is what a failure shows.
    pub(crate) async fn wait<T>(&mut self, home: &Path, mut found: impl AsyncFnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = found().await {
                return found;
            }
            let log = || fs::read_to_string(home.join("log")).unwrap();
            assert!(self.0.try_wait().unwrap().is_none(), "it ended: {}", log());
            assert!(began.elapsed() < Duration::from_secs(START_SECONDS_MAX), "not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGTERM; answers the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.terminate()
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
        }
    }
}

/// The workspace's built components.
pub(crate) fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests").canonicalize().unwrap()
}

impl Dev {
    /// Starts in `home`, on free ports, and waits until it is ready.
    pub(crate) async fn start(home: &Path) -> Dev {
        Dev::start_with(home, |command| command).await
    }

    /// The same, with further flags or variables.
    pub(crate) async fn start_with(home: &Path, more: impl FnOnce(&mut Command) -> &mut Command) -> Dev {
        let path = home.join(".belljar/dev.json");
        let written = || fs::metadata(&path).and_then(|file| file.modified()).ok();
        let before = written();
        let mut command = belljar(home);
        command
            .args(["dev", "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--tools-dir"])
            .arg(guests());
        let mut process = Running::start(more(&mut command), home);
        process.wait(home, async || (written() != before).then_some(())).await;
        let state: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let http = client();
        let health = format!("{}/readyz", state["operator_url"].as_str().unwrap());
        process
            .wait(home, async || http.get(&health).send().await.ok().filter(|answer| answer.status().is_success()))
            .await;
        Dev { process, state, http }
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

    pub(crate) async fn put(&self, path: &str, body: Value) {
        let request = self.http.put(format!("{}{path}", self.url())).bearer_auth(self.key()).json(&body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// SIGTERM; answers the exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        self.process.stop()
    }
}
