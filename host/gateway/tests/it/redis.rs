//! A Redis of a test's own, where there is one.

use std::{process::Stdio, time::Duration};

use tokio::process::{Child, Command};

pub(crate) struct Redis {
    child: Child,
    dir: tempfile::TempDir,
}

impl Redis {
    /// `None`, with a line that says so, where `redis-server` is not installed.
    pub(crate) async fn start() -> Option<Redis> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("redis.sock");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: there is no `redis-server` on this machine");
            return None;
        };
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            pause.tick().await;
        }
        Some(Redis { child, dir })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("redis.sock").display())
    }

    pub(crate) async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}
