//! What becomes of an upload: a tool, or a rejection that says what to do; and whose code runs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use tool_api::{ArtifactHash, InspectError, ToolInspector, Upload};
use tool_executor::compile::Compiler;

use crate::jar::{self, COMPILE_CHILD, Jar, guest, resident_bytes, status_bytes, wat};

#[tokio::test]
async fn an_upload_becomes_a_tool() {
    let jar = Jar::new();
    let component = guest("calc");
    let inspection = jar.inspect(component.clone()).await;
    assert_eq!(inspection.artifact, ArtifactHash::of(&component));
    assert_eq!(inspection.contract, "belljar:tool@1.0.0");
    let [function] = inspection.functions.as_slice() else { panic!("{inspection:?}") };
    assert_eq!(function.name.as_str(), "evaluate");
    assert!(function.description.starts_with("Evaluates"), "{}", function.description);
    assert_eq!(function.input_schema["properties"]["expression"]["type"], "string");
    assert!(inspection.requires.is_object());
}

#[tokio::test]
async fn an_upload_that_is_no_tool_is_told_why() {
    let jar = Jar::new();
    let elf = fs::read(COMPILE_CHILD).unwrap();
    for (component, code, words) in [
        (Bytes::from_static(b"(component)"), "component.not_wasm", "wasm-tools parse"),
        (elf[..4096].to_vec().into(), "component.not_wasm", "native"),
        (guest("calc").slice(..20_000), "component.not_wasm", "damaged"),
        (wat("core_module"), "component.core_module", "wasm32-wasip2"),
        (wat("no_toolbox"), "component.no_toolbox", "SDK"),
        (wat("unknown_import"), "component.unknown_import", "`acme:unknown/thing@1.0.0`"),
        (wat("bomb"), "component.too_complex", "256 instances"),
        (guest("bad_name"), "toolbox.bad_function", "run it__now!"),
        (guest("bad_schema"), "toolbox.bad_schema", "low"),
        (guest("schema_bomb"), "toolbox.bad_schema", "unfolds"),
        (guest("dup_names"), "toolbox.duplicate_function", "`run`"),
    ] {
        let rejection = jar.rejection(component).await;
        assert_eq!(rejection.code, code, "{rejection}");
        assert!(rejection.detail.contains(words), "{code}: {rejection}");
    }
}

/// What passes the structural check and is still no component: the compiler says so.
#[tokio::test]
async fn what_does_not_compile_is_told_why() {
    let mut component = guest("calc").to_vec();
    let at = component.windows(4).position(|bytes| bytes == b"\0asm").unwrap() + 100_000;
    component[at..at + 64].fill(0xff);
    let jar = Jar::at(tempfile::tempdir().unwrap().path().into());
    let rejection = jar.rejection(component).await;
    assert!(["component.compile_failed", "component.not_wasm"].contains(&rejection.code.as_str()), "{rejection}");
}

#[tokio::test]
async fn a_compile_bomb_is_refused_in_time_and_within_its_memory() {
    let (bomb, compiler) = (wat("bomb"), Compiler::new(vec![COMPILE_CHILD.into()]));
    let before = resident_bytes();
    let watch = Watch::children();
    let started = Instant::now();
    let refusal = compiler.compile(&bomb).await;
    let peak = watch.peak();
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let Err(InspectError::Rejected(rejection)) = refusal else { panic!("compiled: {refusal:?}") };
    assert_eq!(rejection.code, "component.compile_limit", "{rejection}");
    assert!(peak > 10 << 20 && peak <= 1 << 30, "the child took {} MiB", peak >> 20);
    assert!(resident_bytes().saturating_sub(before) < 32 << 20, "the host was moved");
}

#[tokio::test]
async fn the_same_component_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let jar = Jar::at(dir.path().into());
    let both = tokio::join!(jar.inspect(guest("fails")), jar.inspect(guest("fails")));
    assert_eq!(both.0.artifact, both.1.artifact);
    let inode = |path: &PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let files = files(dir.path());
    assert_eq!(files.len(), 2, "{files:?}");
    let inodes: Vec<_> = files.iter().map(inode).collect();
    // Another executor, as after a restart.
    Jar::at(dir.path().into()).inspect(guest("fails")).await;
    assert_eq!(files.iter().map(inode).collect::<Vec<_>>(), inodes, "written again");
    let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// Compiled code is native code: what the key does not vouch for is compiled again and never mapped.
#[tokio::test]
async fn code_that_was_tampered_with_never_runs() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = Jar::at(dir.path().into()).load("fails").await;
    let [code, mac] = &files(dir.path())[..] else { panic!() };
    assert!(code.extension().unwrap() == "cwasm" && mac.extension().unwrap() == "mac");
    let (good_code, good_mac) = (fs::read(code).unwrap(), fs::read(mac).unwrap());
    let middle = good_code.len() / 2;
    let mut bad_code = good_code.clone();
    bad_code[middle] ^= 1;
    let other = ArtifactHash::of(b"another component");
    for (what, tamper) in [
        ("a flipped bit", (bad_code, good_mac.clone())),
        ("an empty mac", (good_code.clone(), Vec::new())),
        ("a longer mac", (good_code.clone(), [good_mac.clone(), vec![0]].concat())),
        ("a truncated file", (good_code[..middle].to_vec(), good_mac.clone())),
    ] {
        fs::write(code, tamper.0).unwrap();
        fs::write(mac, tamper.1).unwrap();
        let jar = Jar::at(dir.path().into());
        let answer = jar.try_call(crate::jar::call(artifact, "run", json!({}))).await;
        assert!(matches!(answer, Err(tool_api::CallError::NotCompiled(_))), "{what}: {answer:?}");
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new(), "{what}: removed");
        jar.load("fails").await;
        assert_eq!(jar.outcome(artifact, "knock", json!({"word": "please"})).await.for_model(), "come in", "{what}");
    }
    // Good code of one component under the name of another.
    let renamed = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().replace(&artifact.hex(), &other.hex());
        fs::copy(path, path.with_file_name(name)).unwrap();
    };
    renamed(code);
    renamed(mac);
    let jar = Jar::at(dir.path().into());
    let answer = jar.try_call(crate::jar::call(other, "run", json!({}))).await;
    assert!(matches!(answer, Err(tool_api::CallError::NotCompiled(_))), "{answer:?}");
    // Good code by another key.
    let settings = tool_executor::Settings { mac_key: [8; 32].into(), ..crate::jar::settings(dir.path().into()) };
    let stranger = Jar { executor: tool_executor::Executor::start(settings).unwrap() };
    let answer = stranger.try_call(crate::jar::call(artifact, "run", json!({}))).await;
    assert!(matches!(answer, Err(tool_api::CallError::NotCompiled(_))), "{answer:?}");
}

/// The files of a cache directory, sorted: code before its MAC.
/// Compiled code and its sidecars. Scratch lies beside them, in a folder of its own.
fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Watches how much memory the children of this process take.
struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn children() -> Watch {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
                    let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                    for pid in children.split_whitespace() {
                        // Before it becomes the compiler, a child looks like this process.
                        let is_compiler = fs::read_link(format!("/proc/{pid}/exe"))
                            .is_ok_and(|exe| exe.ends_with("compile-component"));
                        if is_compiler && let Some(bytes) = status_bytes(pid, "VmHWM:") {
                            seen.fetch_max(bytes, Ordering::Relaxed);
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Watch { stop, peak, thread }
    }

    fn peak(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.peak.load(Ordering::Relaxed)
    }
}

/// A clock that stands still but for sleeps: what passes on it is what was waited.
fn on_a_still_clock<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let began = tokio::time::Instant::now();
        (work.await, began.elapsed())
    })
}

#[test]
fn a_known_component_does_not_tell_a_stranger_that_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // One is a tool; the other compiles, and its types are refused then.
    for component in [guest("fails"), wat("typed_resource")] {
        let jar = Jar::at(dir.path().into());
        let began = Instant::now();
        let compiled = runtime.block_on(jar.try_inspect(component.clone())).is_ok();
        let took = began.elapsed();
        let ask = |first| {
            let upload = Upload { first, ..jar::upload(&component) };
            on_a_still_clock(async { jar.executor.inspect(upload, &component).await.is_ok() })
        };
        let ((known, at_once), (first, waited)) = (ask(false), ask(true));
        assert_eq!((known, first), (compiled, compiled), "the same answer");
        assert_eq!(at_once, Duration::ZERO);
        assert!(!waited.is_zero() && waited <= took, "waited {waited:?}, the compilation took {took:?}");
    }
}
