//! Takes something from every host input there is, and lets each shape what it does next.

use belljar_tool::{http, kv, secrets, tool, toolbox};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};
use wasip2::random::{insecure, insecure_seed, random};

#[derive(Serialize, JsonSchema)]
struct Report {
    times: Vec<u128>,
    /// Readings of the clock until 5 ms had passed.
    readings: u64,
    slept_ms: u128,
    chance: Vec<String>,
    /// Of a hash map with a seed of its own.
    order: Vec<u32>,
    entries: Vec<String>,
    keys: Vec<String>,
    pages: Vec<String>,
    secret: String,
    files: Vec<String>,
}

/// Takes them all. `url` is asked with GET, twice, and with POST.
#[tool]
fn run(url: String) -> Result<Report, String> {
    let begin = SystemTime::now();
    Ok(Report {
        readings: readings(Duration::from_millis(5)),
        slept_ms: slept(Duration::from_millis(20)).as_millis(),
        chance: chance(),
        order: order(),
        entries: entries()?,
        keys: keys()?,
        pages: pages(&url),
        secret: secrets::get("readable").unwrap_or_else(|error| error.to_string()),
        files: files().map_err(|error| error.to_string())?,
        times: [begin, SystemTime::now()].map(unix_ms).into(),
    })
}

/// As many reads of entries as it is told to, of 100 KB or so each.
#[tool]
fn read_much(times: u32) -> Result<u64, String> {
    let store = kv::open("notes").map_err(|error| error.to_string())?;
    let mut bytes = 0;
    for time in 0..times {
        let value = store.get(&format!("big-{time}")).map_err(|error| error.to_string())?;
        bytes += value.map_or(0, |value| value.len() as u64);
    }
    Ok(bytes)
}

fn readings(time: Duration) -> u64 {
    let begin = Instant::now();
    (1..).find(|_| begin.elapsed() >= time).unwrap_or(0)
}

fn slept(time: Duration) -> Duration {
    let begin = Instant::now();
    std::thread::sleep(time);
    begin.elapsed()
}

fn chance() -> Vec<String> {
    let bytes = random::get_random_bytes(8);
    // How long this takes depends on what was drawn.
    let drawn = (0..10_000).find(|_| random::get_random_u64() % 64 == 0);
    vec![
        format!("{bytes:?}"),
        format!("{drawn:?}"),
        format!("{:?}", insecure::get_insecure_random_bytes(8)),
        format!("{:?}", insecure::get_insecure_random_u64()),
        format!("{:?}", insecure_seed::insecure_seed()),
    ]
}

fn order() -> Vec<u32> {
    let set: HashSet<u32> = (0..50).collect();
    set.into_iter().collect()
}

fn entries() -> Result<Vec<String>, String> {
    let store = kv::open("notes").map_err(|error| error.to_string())?;
    let mut entries = Vec::new();
    for key in ["a", "none", "a", "secret"] {
        let value = store.get_text(key).map_err(|error| error.to_string())?;
        entries.push(format!("{key}: {value:?}"));
    }
    store.set("written", "here").map_err(|error| error.to_string())?;
    entries.push(format!("{:?}", store.increment("count", 3).map_err(|error| error.to_string())?));
    Ok(entries)
}

fn keys() -> Result<Vec<String>, String> {
    let store = kv::open("notes").map_err(|error| error.to_string())?;
    store.keys().collect::<Result<_, _>>().map_err(|error| error.to_string())
}

fn pages(url: &str) -> Vec<String> {
    let get = || http::get(url);
    let post = http::Request::post(url).body(vec![b'b'; 10_000]).send();
    [get(), get(), post, http::get(format!("{url}broken"))].map(page).into()
}

fn page(response: Result<http::Response, http::Error>) -> String {
    let response = match response {
        Ok(response) => response,
        Err(error) => return error.to_string(),
    };
    let (status, header) = (response.status(), response.header("x-count").map(str::to_owned));
    match response.text() {
        // Words are counted, so that what came shapes what is done.
        Ok(text) => {
            let mut words: HashMap<&str, u32> = HashMap::new();
            text.split(' ').for_each(|word| *words.entry(word).or_default() += 1);
            format!("{status} {header:?} {} bytes {} words", text.len(), words.len())
        }
        Err(error) => format!("{status} {header:?} {error}"),
    }
}

fn files() -> std::io::Result<Vec<String>> {
    for name in ["z", "y", "a", "b"] {
        std::fs::write(format!("/scratch/{name}"), name)?;
    }
    let entries = std::fs::read_dir("/scratch")?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn unix_ms(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis())
}

toolbox!(run, read_much);
fn main() {}
