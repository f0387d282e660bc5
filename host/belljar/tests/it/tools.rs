//! `belljar tool` beside a server and without one.

use std::{fs, path::Path, process::Output};

use serde_json::{Value, json};

use crate::process::{Dev, belljar, guests};

fn tool(home: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = belljar(home).arg("tool").args(arguments).output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

fn guest(name: &str) -> String {
    guests().join(format!("{name}.wasm")).display().to_string()
}

#[tokio::test]
async fn a_recorded_call_is_tried_on_another_build_without_the_server() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let dev = Dev::start(home).await;
    let body = json!({"function": "now", "arguments": {}, "record": true});
    let answer = dev.post("/v1/tools/clock/versions/latest/calls", body).send().await.unwrap();
    let row: Value = answer.json().await.unwrap();
    assert_eq!(row["recorded"], true, "{row}");
    let call = row["id"].as_str().unwrap();
    let (clock, calc) = (guest("clock"), guest("calc"));

    let (code, words) = tool(home, &["replay", call, "--wasm", &clock]);
    assert_eq!(code, Some(0), "the clock says what it said: {words}");
    for line in ["the same", "fuel", "output", "host calls"] {
        assert!(words.contains(line), "{words}");
    }
    let recording = dev.get(&format!("/v1/tool-calls/{call}/recording")).await;
    let unknown = format!("call_{}", "0".repeat(32));
    let (code, words) = tool(home, &["replay", &unknown, "--wasm", &clock]);
    assert!(code == Some(1) && words.contains("tool_call.not_found"), "{words}");
    assert_eq!(dev.stop(), Some(0));

    // From a file, with no server at all.
    let file = home.join("recording.json");
    fs::write(&file, recording.to_string()).unwrap();
    let file = file.display().to_string();
    let (code, words) = tool(home, &["replay", "--recording", &file, "--wasm", &clock, "--json"]);
    let replay: Value = serde_json::from_str(&words).unwrap();
    assert_eq!((code, &replay["output"]["same"]), (Some(0), &json!(true)), "{words}");
    assert_eq!(replay["fuel"]["recorded"], replay["fuel"]["replayed"], "{words}");
    assert_eq!(replay["outcome"], recording["outcome"], "{words}");
    let (code, words) = tool(home, &["replay", "--recording", &file, "--wasm", &calc]);
    assert!(code == Some(1) && words.contains("no function `now`; it has evaluate"), "{words}");
    let mut cut = recording.clone();
    cut["recording"]["truncated"] = true.into();
    fs::write(&file, cut.to_string()).unwrap();
    let (code, words) = tool(home, &["replay", "--recording", &file, "--wasm", &clock]);
    assert!(code == Some(1) && words.contains("is not whole"), "{words}");
    // Another answer is a difference, and shown.
    let mut other = recording;
    other["outcome"]["structured"] = json!({"never": "said"});
    fs::write(&file, other.to_string()).unwrap();
    let (code, words) = tool(home, &["replay", "--recording", &file, "--wasm", &clock]);
    assert!(code == Some(1) && words.contains("different") && words.contains("/structured"), "{words}");
}

#[test]
fn a_tool_is_tried_with_grants_and_entries() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let notes = guest("notes");
    let add = |more: &[&str]| {
        let arguments = [&["run", &notes, "add", "{\"text\": \"milk\"}", "--external-user-id", "ada"], more].concat();
        tool(home, &arguments)
    };
    let (code, words) = add(&[]);
    assert!(code == Some(1) && words.contains("denied.key_value"), "{words}");
    let grants = json!({"key_value": [{"namespace": "notes/{external_user_id}", "access": "write"}]});
    fs::write(home.join("grants.json"), grants.to_string()).unwrap();
    let (code, words) = add(&["--grants", "grants.json", "--entry", "notes/ada/count=6"]);
    assert_eq!(code, Some(0), "{words}");
    for line in ["notes/ada/note-00000007 = milk (4 B)", "notes/ada/count", "host     wasi:keyvalue"] {
        assert!(words.contains(line), "{line}: {words}");
    }
    for (given, mistake) in [
        (&["--grants", "absent.json"][..], "cannot read `absent.json`"),
        (&["--entry", "count=6"], "use NAMESPACE/KEY=VALUE"),
        (&["--secret", "token"], "use NAME=VARIABLE"),
        (&["--secret", "token=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
    ] {
        let (code, words) = add(given);
        assert!(code == Some(1) && words.contains(mistake), "{given:?}: {words}");
    }
    fs::write(home.join("grants.json"), json!({"secrets": ["token"]}).to_string()).unwrap();
    let (code, words) = add(&["--grants", "grants.json"]);
    assert!(code == Some(1) && words.contains("--secret token=VARIABLE"), "{words}");
}
