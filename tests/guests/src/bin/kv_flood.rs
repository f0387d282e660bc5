//! Asks more of the key-value store than a call may have, and tells how far it came.

use belljar_tool::__private::bindings::wasi::keyvalue::{atomics, batch, store};
use belljar_tool::{tool, toolbox};
use store::{Bucket, Error};

fn open() -> Result<Bucket, String> {
    store::open("").map_err(|error| format!("{error:?}"))
}

/// Does something until it is refused: how often it went well, and the refusal.
fn until_refused(mut act: impl FnMut(u32) -> Result<(), Error>) -> String {
    for time in 0..u32::MAX {
        match act(time) {
            Ok(()) => {}
            Err(Error::Other(words)) => return format!("{time}: {words}"),
            Err(other) => return format!("{time}: {other:?}"),
        }
    }
    String::new()
}

/// Writes small values under new keys.
#[tool]
fn keys() -> Result<String, String> {
    let bucket = open()?;
    Ok(until_refused(|time| bucket.set(&format!("key-{time}"), b"x")))
}

/// Deletes keys that are not there.
#[tool]
fn deletes() -> Result<String, String> {
    let bucket = open()?;
    Ok(until_refused(|time| bucket.delete(&format!("key-{time}"))))
}

/// Writes the largest values.
#[tool]
fn values() -> Result<String, String> {
    let (bucket, value) = (open()?, vec![b'x'; 256 << 10]);
    Ok(until_refused(|time| bucket.set(&format!("key-{time}"), &value)))
}

/// Writes the same key for ever, so that only the fuel or the host calls end it.
#[tool]
fn same_key() -> Result<String, String> {
    let (bucket, value) = (open()?, vec![b'x'; 64 << 10]);
    Ok(until_refused(|_| bucket.set("key", &value)))
}

/// Reads new keys.
#[tool]
fn reads() -> Result<String, String> {
    let bucket = open()?;
    Ok(until_refused(|time| bucket.get(&format!("key-{time}")).map(drop)))
}

/// Writes one value of a size.
#[tool]
fn one_value(bytes: usize) -> Result<String, String> {
    open()?.set("key", &vec![b'x'; bytes]).map(|()| "written".into()).map_err(|error| format!("{error:?}"))
}

/// Uses keys of a size.
#[tool]
fn one_key(bytes: usize) -> Result<Vec<String>, String> {
    let (bucket, key) = (open()?, "k".repeat(bytes));
    let all = [
        bucket.get(&key).map(drop),
        bucket.set(&key, b"1"),
        bucket.delete(&key),
        bucket.exists(&key).map(drop),
        atomics::increment(&bucket, &key, 1).map(drop),
        batch::get_many(&bucket, &[key.clone()]).map(drop),
        batch::set_many(&bucket, &[(key.clone(), b"1".to_vec())]),
        batch::delete_many(&bucket, &[key]),
    ];
    Ok(all.iter().map(|given| format!("{given:?}")).collect())
}

/// Reads many keys at once.
#[tool]
fn one_batch(keys: usize) -> Result<String, String> {
    let keys: Vec<_> = (0..keys).map(|key| format!("key-{key}")).collect();
    let found = batch::get_many(&open()?, &keys).map_err(|error| format!("{error:?}"))?;
    Ok(format!("{} keys", found.len()))
}

/// Opens the store and keeps it open.
#[tool]
fn buckets() -> Result<String, String> {
    let mut open = Vec::new();
    Ok(until_refused(|_| store::open("").map(|bucket| open.push(bucket))))
}

/// Lists from places that it made up, and lists for ever.
#[tool]
fn cursors() -> Result<String, String> {
    let bucket = open()?;
    for made_up in [0, 1, 2, 1 << 32, u64::MAX] {
        if bucket.list_keys(Some(made_up)).is_ok() {
            return Err(format!("{made_up} is a place"));
        }
    }
    Ok(until_refused(|_| bucket.list_keys(None).map(drop)))
}

/// Counts for ever.
#[tool]
fn counts() -> Result<String, String> {
    let bucket = open()?;
    Ok(until_refused(|_| atomics::increment(&bucket, "count", u64::MAX / 8).map(drop)))
}

toolbox!(keys, deletes, values, same_key, reads, one_value, one_key, one_batch, buckets, cursors, counts);

fn main() {}
