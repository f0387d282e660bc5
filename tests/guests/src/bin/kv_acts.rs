//! Does to a namespace what it is told, and tells what each act gave.

use belljar_tool::__private::bindings::wasi::keyvalue::{atomics, batch, store};
use belljar_tool::{tool, toolbox};
use schemars::JsonSchema;
use serde::Deserialize;
use store::{Bucket, Error};

/// One act.
#[derive(Deserialize, JsonSchema)]
struct Act {
    act: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    delta: u64,
    #[serde(default)]
    keys: Vec<String>,
}

/// Does all acts.
#[tool]
fn run(namespace: String, acts: Vec<Act>) -> Result<Vec<String>, String> {
    Ok(perform(&namespace, &acts))
}

/// Does all acts, and answers with an error.
#[tool]
fn run_and_fail(namespace: String, acts: Vec<Act>) -> Result<String, String> {
    Err(perform(&namespace, &acts).join(", "))
}

/// Does all acts, and crashes.
#[tool]
fn run_and_panic(namespace: String, acts: Vec<Act>) -> Result<String, String> {
    panic!("{}", perform(&namespace, &acts).join(", "));
}

/// Does all acts, and spins.
#[tool]
fn run_and_spin(namespace: String, acts: Vec<Act>) -> Result<String, String> {
    let mut count = perform(&namespace, &acts).len();
    while count > 0 {
        count = std::hint::black_box(count.wrapping_mul(3) | 1);
    }
    Ok(String::new())
}

fn perform(namespace: &str, acts: &[Act]) -> Vec<String> {
    match store::open(namespace) {
        Ok(bucket) => acts.iter().map(|act| told(one(&bucket, act))).collect(),
        Err(error) => vec![told(Err(error))],
    }
}

fn told(given: Result<String, Error>) -> String {
    given.unwrap_or_else(|error| match error {
        Error::NoSuchStore => "no such store".into(),
        Error::AccessDenied => "denied".into(),
        Error::Other(words) => format!("error: {words}"),
    })
}

fn one(bucket: &Bucket, act: &Act) -> Result<String, Error> {
    let done = |()| "done".to_owned();
    let text = |value: Option<Vec<u8>>| match value {
        None => "none".to_owned(),
        Some(value) => format!("`{}`", String::from_utf8_lossy(&value)),
    };
    let pairs = || act.keys.iter().map(|key| (key.clone(), act.value.clone().into_bytes())).collect::<Vec<_>>();
    match act.act.as_str() {
        "get" => bucket.get(&act.key).map(text),
        "set" => bucket.set(&act.key, act.value.as_bytes()).map(done),
        "delete" => bucket.delete(&act.key).map(done),
        "exists" => bucket.exists(&act.key).map(|exists| exists.to_string()),
        "increment" => atomics::increment(bucket, &act.key, act.delta).map(|sum| sum.to_string()),
        "get_many" => batch::get_many(bucket, &act.keys).map(|found| {
            let pairs = found.into_iter().map(|pair| match pair {
                None => "none".to_owned(),
                Some((key, value)) => format!("{key}={}", String::from_utf8_lossy(&value)),
            });
            pairs.collect::<Vec<_>>().join(" ")
        }),
        "set_many" => batch::set_many(bucket, &pairs()).map(done),
        "delete_many" => batch::delete_many(bucket, &act.keys).map(done),
        "page" => bucket.list_keys((act.delta > 0).then_some(act.delta)).map(|page| page.keys.join(" ")),
        "list" => list(bucket),
        other => Err(Error::Other(format!("no act {other}"))),
    }
}

/// All keys: how many pages, and the keys.
fn list(bucket: &Bucket) -> Result<String, Error> {
    let (mut pages, mut keys, mut cursor) = (0, Vec::new(), None);
    loop {
        let page = bucket.list_keys(cursor)?;
        keys.extend(page.keys);
        pages += 1;
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(format!("{pages}: {}", keys.join(" ")));
        }
    }
}

toolbox!(run, run_and_fail, run_and_panic, run_and_spin);

fn main() {}
