//! `record_inputs` as its author has changed it: it asks for less, and for some things that the old one never asked for.

use belljar_tool::{http, kv, tool, toolbox};
use std::time::SystemTime;

/// `url` is asked with GET more often than before, and with DELETE.
#[tool]
fn run(url: String) -> Result<Vec<String>, String> {
    let store = kv::open("notes").map_err(|error| error.to_string())?;
    let get = |key| store.get_text(key).unwrap_or_else(|error| Some(format!("failed: {error}")));
    let mut saw = vec![format!("{:?}", get("a")), format!("{:?}", get("a")), format!("{:?}", get("a"))];
    saw.push(get("new").unwrap_or_default());
    for _ in 0..3 {
        saw.push(http::get(&*url).map_or_else(|error| error.to_string(), |page| page.status().to_string()));
    }
    let deleted = http::Request::delete(&*url).send();
    saw.push(deleted.map_or_else(|error| error.to_string(), |page| page.status().to_string()));
    let mut times: Vec<_> = (0..5).map(|_| SystemTime::now()).collect();
    times.dedup();
    saw.push(format!("{} times", times.len()));
    Ok(saw)
}

toolbox!(run);
fn main() {}
