//! The READMEs, typed as they are written.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::process::{Dev, guests};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The `sh` blocks of a page, in order.
fn blocks(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Runs lines in `bash`, stops at the first that fails, with `belljar` on the path.
fn bash(home: &Path, lines: &str) -> Output {
    let belljar = Path::new(env!("CARGO_BIN_EXE_belljar")).parent().unwrap().display().to_string();
    let script = format!("set -euo pipefail\nPATH='{belljar}':$PATH\n{lines}");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(home)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("DATABASE_URL")
        // A tool's author builds with what the tools of this checkout were built with.
        .env("CARGO_NET_OFFLINE", "true")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{lines}\n--- stdout\n{out}\n--- stderr\n{err}");
    output
}

#[tokio::test]
async fn the_readme_ends_with_an_answer_a_receipt_and_a_price() {
    let home = tempfile::tempdir().unwrap();
    let dev = Dev::start(home.path()).await;
    fs::create_dir(home.path().join("target")).unwrap();
    symlink(guests(), home.path().join("target/guests")).unwrap();

    // The two commands that serve and test, and the release build, are what runs this test.
    let blocks: Vec<String> = blocks("README.md").into_iter().filter(|block| !block.contains("cargo ")).collect();
    let script =
        blocks.join("\n").replace("http://127.0.0.1:8080", dev.url()).replace("curl -s", "curl --fail-with-body -s");
    let said = String::from_utf8(bash(home.path(), &script).stdout).unwrap();
    for expected in [
        "41.7",
        "4.40",
        "\"fuel_used\":",
        "\"price\":{\"amount\":\"0.0",
        "event: run.completed",
        "\"kind\":\"tool_fuel\"",
        "\"secret\":\"weather_key\"",
        "\"target\":\"GET https://api.weather.example/v1/now\"",
        "\"key\":\"note-00000001\"",
        "buy milk",
        "on sha256:",
        "event: approval.requested",
        "\"decided_by\":\"me\"",
    ] {
        assert!(said.contains(expected), "no {expected} in:\n{said}");
    }
    assert!(!said.contains("\"fuel_used\":0,"), "{said}");
    assert!(!said.contains("the-key-of-the-service"), "{said}");
    assert_eq!(said.matches("event: run.").count(), 4, "of two streams a start and an end:\n{said}");
}

#[tokio::test]
async fn the_guest_sdks_walk_leads_from_new_to_an_answer() {
    let home = tempfile::tempdir().unwrap();
    let dev = Dev::start(home.path()).await;
    let walk: Vec<String> = blocks("guest-sdk/README.md");
    let last = walk.iter().position(|block| block.contains("greeter/chat")).unwrap();
    // What the tool is built from stays built between two runs of this test.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("walk");
    fs::create_dir_all(&kept).unwrap();
    let walk =
        walk[..=last].join("\n").replace("cd hello\n", &format!("cd hello\nln -s '{}' target\n", kept.display()));
    let said = String::from_utf8(bash(home.path(), &walk).stdout).unwrap();
    assert!(said.contains("\"content\":\"hello__greet says: Hello, Ada!\""), "{said}");
    drop(dev);
}

#[test]
fn every_command_explains_itself() {
    for arguments in [
        &["--help"][..],
        &["dev", "--help"],
        &["serve", "--help"],
        &["migrate", "--help"],
        &["keys", "rotate", "--help"],
        &["tool", "--help"],
        &["tool", "replay", "--help"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_belljar")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        assert!(output.stdout.len() > 100, "{arguments:?}");
    }
}

#[test]
fn serve_names_every_mistake_at_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_belljar"))
        .args(["serve", "--operator-listen", "0.0.0.0:8081"])
        .env_clear()
        .output()
        .unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8(output.stderr).unwrap();
    for mistake in ["BELLJAR_DATABASE_URL", "BELLJAR_MASTER_KEY", "BELLJAR_OPERATOR_TOKEN"] {
        assert!(words.contains(mistake), "{mistake} is missing in:\n{words}");
    }
}
