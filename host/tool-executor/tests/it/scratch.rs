//! The scratch directory: what was not granted, what does not fit, what is left afterwards.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{CallGrants, Limits};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tool_api::{CallHost, HostCall, HostError, Intent, Progress, Status, ToolCall, ToolExecutor};
use tool_executor::{Executor, Settings};

use crate::jar::{Jar, call, settings};

/// What a call is granted here.
const GRANTED: u64 = 1 << 20;
/// The executor's own bound of files and directories.
const INODES_MAX: usize = 1_000;
/// Block and name of a file, in bytes.
const INODE_BYTES_MAX: u64 = 8 << 10;

/// A jar whose scratch directories nobody else uses.
struct Home {
    dir: TempDir,
    jar: Jar,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let cache_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests");
        let settings = Settings { scratch_dir: dir.path().to_owned(), ..settings(cache_dir) };
        Home { dir, jar: Jar { executor: Executor::start(settings).unwrap() } }
    }

    async fn call(&self, guest: &str, function: &str, arguments: Value) -> ToolCall {
        with_scratch(call(self.jar.load(guest).await, function, arguments))
    }

    /// The directories of calls.
    fn directories(&self) -> Vec<PathBuf> {
        let rooms = list(self.dir.path()).into_iter().filter(|path| path.is_dir());
        rooms.flat_map(|room| list(&room)).filter(|path| path.is_dir()).collect()
    }

    async fn directories_are_gone(&self) {
        while !self.directories().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

fn with_scratch(mut call: ToolCall) -> ToolCall {
    call.grants = Arc::new(CallGrants { scratch_bytes: Some(GRANTED), ..CallGrants::default() });
    call
}

fn list(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// What stands in a directory, in the way the machine sees it.
#[derive(Debug, Default)]
struct Usage {
    inodes: usize,
    /// Sizes of files.
    bytes: u64,
    /// Blocks of everything.
    disk_bytes: u64,
}

impl Usage {
    /// With names or without: this process holds the latter open.
    fn of(dir: &Path) -> Usage {
        let mut usage = Usage::default();
        let dir = std::fs::File::open(dir).unwrap();
        usage.add_tree(dir);
        usage
    }

    fn add_unlinked(&mut self, dir: &Path) {
        for descriptor in list(Path::new("/proc/self/fd")) {
            let Ok(target) = std::fs::read_link(&descriptor) else { continue };
            if target.starts_with(dir) && target.to_string_lossy().ends_with(" (deleted)") {
                self.add(&std::fs::metadata(&descriptor).unwrap());
            }
        }
    }

    /// By descriptors: paths of deep trees are too long.
    fn add_tree(&mut self, dir: std::fs::File) {
        use std::os::fd::AsRawFd;
        for entry in list(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd()))) {
            let metadata = std::fs::symlink_metadata(&entry).unwrap();
            self.add(&metadata);
            if metadata.is_dir() {
                self.add_tree(std::fs::File::open(&entry).unwrap());
            }
        }
    }

    fn add(&mut self, metadata: &std::fs::Metadata) {
        self.inodes += 1;
        self.disk_bytes += metadata.blocks() * 512;
        if metadata.is_file() {
            self.bytes += metadata.len();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(metadata.nlink() <= 1, "a hard link");
        }
    }
}

/// Hears what a call says.
struct Follower(mpsc::UnboundedSender<String>);

#[async_trait]
impl CallHost for Follower {
    async fn get(&self, _: &str, _: &str) -> Result<Option<Bytes>, HostError> {
        Ok(None)
    }

    async fn keys(&self, _: &str, _: Option<&str>, _: u32) -> Result<Vec<String>, HostError> {
        Ok(Vec::new())
    }

    async fn sending(&self, _: Intent) -> Result<(), HostError> {
        Ok(())
    }

    fn progress(&self, progress: Progress) {
        let _ = self.0.send(progress.text);
    }
}

#[tokio::test]
async fn without_a_grant_there_is_no_directory() {
    let home = Home::new();
    let artifact = home.jar.load("scratch_use").await;
    let finished = home.jar.call(call(artifact, "leave", json!({"text": "x"}))).await;
    assert_eq!(finished.outcome.status, Status::ToolError);
    assert!(finished.receipt.host_calls.is_empty(), "{:?}", finished.receipt.host_calls);
    assert!(home.directories().is_empty());
}

#[tokio::test]
async fn nothing_leads_out_of_the_directory() {
    let home = Home::new();
    let outcome = home.jar.call(home.call("scratch_doors", "run", json!({})).await).await.outcome;
    let answers: BTreeMap<String, String> = serde_json::from_value(outcome.structured.unwrap()).unwrap();
    let expected = [
        ("absolute", "not-permitted"),
        ("create_outside", "not-permitted"),
        ("descriptors", "quota after 31"),
        ("directory_outside", "not-permitted"),
        ("empty_name", "no-entry"),
        ("hard_link", "not-permitted"),
        ("name_too_long", "name-too-long"),
        ("nul_in_a_name", "invalid"),
        ("parent", "not-permitted"),
        ("parent_of_a_directory", "not-permitted"),
        ("path_too_long", "name-too-long"),
        ("rename_outside", "not-permitted"),
        ("seen_as", "/scratch"),
        ("siblings", "not-permitted"),
        ("stat_outside", "not-permitted"),
        ("streams", "quota after 32"),
        ("symlink", "not-permitted"),
        ("symlink_inside", "not-permitted"),
    ];
    for (door, answer) in expected {
        let given = answers.get(door).map(String::as_str);
        assert_eq!(given, Some(answer), "{door}: {answers:?}");
    }
}

#[tokio::test]
async fn no_trick_takes_more_than_the_grant() {
    let home = Home::new();
    let tricks = home.jar.outcome(home.jar.load("scratch_torture").await, "tricks", json!({})).await;
    let tricks: Vec<String> = serde_json::from_value(tricks.structured.unwrap()).unwrap();
    assert!(tricks.len() >= 19, "{tricks:?}");
    for trick in tricks {
        let call = home.call("scratch_torture", "run", json!({"trick": trick})).await;
        let call = ToolCall { limits: Limits { fuel: Limits::CEILING.fuel, ..call.limits }, ..call };
        let (said, mut hears) = mpsc::unbounded_channel();
        let mut running = home.jar.executor.call(call, Arc::new(Follower(said)));
        let words = tokio::select! {
            finished = &mut running => panic!("{trick} ended: {finished:?}"),
            words = hears.recv() => words.unwrap(),
        };
        assert_eq!(words, "quota", "{trick}");
        let directory = home.directories().pop().unwrap();
        let mut usage = Usage::of(&directory);
        usage.add_unlinked(&directory);
        assert!(usage.inodes <= INODES_MAX, "{trick}: {usage:?}");
        assert!(usage.bytes <= GRANTED, "{trick}: {usage:?}");
        assert!(usage.disk_bytes <= GRANTED + usage.inodes as u64 * INODE_BYTES_MAX, "{trick}: {usage:?}");
        assert!(
            usage.inodes > 0 || trick == "far_offset" || trick.starts_with("set_size"),
            "{trick}: nothing was tried"
        );
        drop(running);
        home.directories_are_gone().await;
    }
}

#[tokio::test]
async fn a_program_uses_it_as_a_directory() {
    let home = Home::new();
    let finished = home.jar.call(home.call("scratch_use", "work", json!({})).await).await;
    assert_eq!(
        finished.outcome.structured,
        Some(json!(["hello, world", "xmid", "c.txt z.txt", "100003 bytes, a file: true", "times: false", "0 left"])),
        "{finished:?}"
    );
    let told = finished.receipt.host_calls;
    let shown: Vec<String> = told.iter().map(shown).collect();
    assert!(shown.contains(&"open-at a/b/c.txt 200000 in 0 out".to_owned()), "{shown:#?}");
    assert!(shown.contains(&"rename-at a/b -> moved 0 in 0 out".to_owned()), "{shown:#?}");
    assert!(told.iter().all(|call| call.interface == "wasi:filesystem" && call.grant.as_deref() == Some("scratch")));
    home.directories_are_gone().await;
}

fn shown(call: &HostCall) -> String {
    let error = call.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let (function, target) = (&call.function, call.target.as_deref().unwrap_or_default());
    format!("{function} {target} {} in {} out{error}", call.bytes_in, call.bytes_out)
}

#[tokio::test]
async fn a_refused_write_stands_on_the_receipt() {
    let home = Home::new();
    let fits = home.jar.call(home.call("scratch_use", "write", json!({"bytes": GRANTED})).await).await;
    assert_eq!(fits.outcome.status, Status::Ok, "{fits:?}");
    let finished = home.jar.call(home.call("scratch_use", "write", json!({"bytes": GRANTED + 1})).await).await;
    assert_eq!(finished.outcome.status, Status::ToolError);
    let calls = finished.receipt.host_calls;
    assert_eq!(calls.last().and_then(|call| call.error.as_deref()), Some("quota"), "{calls:?}");
}

#[tokio::test]
async fn what_is_freed_can_be_used_again() {
    let home = Home::new();
    let arguments = json!({"bytes": GRANTED, "times": 40});
    let finished = home.jar.call(home.call("scratch_use", "churn", arguments).await).await;
    assert_eq!(finished.outcome.status, Status::Ok, "{finished:?}");
}

#[tokio::test]
async fn no_call_sees_what_another_left() {
    let home = Home::new();
    let artifact = home.jar.load("scratch_use").await;
    for text in ["mine", "yours"] {
        let outcome = home.jar.call(with_scratch(call(artifact, "leave", json!({"text": text})))).await.outcome;
        assert_eq!(outcome.structured, Some(json!([])), "{outcome:?}");
        home.directories_are_gone().await;
    }
    let both = (0..2).map(|n| home.jar.call(with_scratch(call(artifact, "leave", json!({"text": n.to_string()})))));
    for finished in futures::future::join_all(both).await {
        assert_eq!(finished.outcome.structured, Some(json!([])));
    }
}

#[tokio::test]
async fn a_killed_executor_leaves_nothing_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("room-left/call-1/deep");
    std::fs::create_dir_all(&left).unwrap();
    let cache_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests");
    let settings = Settings { scratch_dir: dir.path().to_owned(), ..settings(cache_dir) };
    let executor = Executor::start(settings).unwrap();
    assert!(!left.exists());
    assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    drop(executor);
    assert!(list(dir.path()).iter().all(|path| path.is_file()), "only the lock is left");
}
