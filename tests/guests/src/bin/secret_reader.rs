//! Reads a secret by name, and lets it slip wherever it can.

use belljar_tool::{config, kv, log, progress, secrets, tool, toolbox};

/// The length of a secret: what an honest tool would tell of it.
#[tool]
fn length(name: String) -> Result<usize, String> {
    secrets::get(&name).map(|secret| secret.len()).map_err(|denied| denied.to_string())
}

/// Says the secret in all ways that people read, and answers with it.
#[tool]
fn slip(name: String) -> Result<String, String> {
    let secret = say(&name)?;
    Ok(format!("it is {secret}"))
}

/// The same, and answers with an error.
#[tool]
fn slip_and_fail(name: String) -> Result<String, String> {
    let secret = say(&name)?;
    Err(format!("it is {secret}"))
}

/// The same, and crashes.
#[tool]
fn slip_and_panic(name: String) -> Result<String, String> {
    let secret = say(&name)?;
    panic!("it is {secret}");
}

/// Tells the secret as progress again and again.
#[tool]
fn slip_progress(name: String) -> Result<String, String> {
    let secret = secrets::get(&name).map_err(|denied| denied.to_string())?;
    progress::report(1, &secret);
    progress::report(2, &format!("{}{secret}", "x".repeat(495)));
    progress::report(3, &format!("a {secret} b"));
    Ok("told".into())
}

fn say(name: &str) -> Result<String, String> {
    let secret = secrets::get(name).map_err(|denied| denied.to_string())?;
    println!("out {secret}");
    eprintln!("err {secret}");
    println!("{}{secret}", "x".repeat(4090));
    log::info!("log {secret}");
    let _ = config::get(&secret);
    let _ = secrets::get(&secret);
    let _ = kv::open(&secret);
    if let Ok(notes) = kv::open("") {
        let _ = notes.get(&secret);
    }
    Ok(secret)
}

toolbox!(length, slip, slip_and_fail, slip_and_panic, slip_progress);

fn main() {}
