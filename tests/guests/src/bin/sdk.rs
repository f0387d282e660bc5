//! Uses what the SDK makes of the host, where it takes more than one call of the host.

use belljar_tool::{Result, http::Request, kv, tool, toolbox};
use std::io::Read as _;

/// Posts so many bytes, and answers with the status and the text that comes back.
#[tool]
fn post(url: String, bytes: usize) -> Result<String> {
    let response = Request::post(url).header("x-part", "a").header("x-part", "b").body(vec![b'x'; bytes]).send()?;
    let (status, kind) = (response.status(), response.header("content-type").unwrap_or("none").to_owned());
    Ok(format!("{status} {kind} {}", response.text()?))
}

/// The first bytes of a body, and how many more there are.
#[tool]
fn head(url: String, bytes: usize) -> Result<String> {
    let mut response = Request::get(url).query("a b", "c&d").send()?;
    let mut first = vec![0; bytes];
    response.read_exact(&mut first)?;
    Ok(format!("{} {}", String::from_utf8_lossy(&first), response.bytes()?.len()))
}

/// Sets so many keys, and lists them.
#[tool]
fn keys(count: usize) -> Result<String> {
    let store = kv::open("")?;
    for number in 0..count {
        store.set(&format!("key-{number:04}"), number.to_string())?;
    }
    let keys = store.keys().collect::<Result<Vec<_>, _>>()?;
    let names: Vec<&str> = keys.iter().map(String::as_str).take(2).chain(["absent"]).collect();
    let values = store.get_many(&names)?;
    Ok(format!("{} {} {} {values:?}", keys.len(), keys.is_sorted(), keys[count - 1]))
}

toolbox!(post, head, keys);
fn main() {}
