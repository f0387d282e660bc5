//! Notes that each end user keeps for themselves.

use belljar_tool::{Error, Result, kv, tool, toolbox};

/// One namespace a user: no note of one is seen by another.
const NAMESPACE: &str = "notes/{external_user_id}";
/// Holds how many notes were ever written. No note has this key: theirs begin with `note-`.
const COUNT: &str = "count";
/// Notes in one answer: a model reads no more.
const LISTED_MAX: usize = 50;
/// Values of the store that are looked through at once.
const PAGE: usize = 50;

#[derive(Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Note {
    id: String,
    text: String,
}

#[derive(Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Notes {
    /// The oldest first, 50 at most.
    notes: Vec<Note>,
}

/// Writes a note down for the user.
#[tool]
pub fn add(text: String) -> Result<Note> {
    let store = kv::open(NAMESPACE)?;
    if text.trim().is_empty() {
        return Err(Error::new("the note is empty; say what to write down"));
    }
    // The count may be behind when calls run at the same time; a key that is taken is one too far, never overwritten.
    let mut number = store.increment(COUNT, 1)?;
    while store.exists(&key(number))? {
        number += 1;
    }
    store.set(&key(number), &text)?;
    Ok(Note { id: key(number), text })
}

/// Lists the user's notes.
#[tool]
pub fn list() -> Result<Notes> {
    search(String::new())
}

/// Finds the user's notes that contain some words.
#[tool]
pub fn search(
    /// Looked for as it is, in small or capital letters.
    words: String,
) -> Result<Notes> {
    let (store, words, mut notes) = (kv::open(NAMESPACE)?, words.to_lowercase(), Vec::new());
    let keys = store.keys().filter(|key| key.as_ref().map_or(true, |key| key.starts_with("note-")));
    for page in keys.collect::<Result<Vec<_>, _>>()?.chunks(PAGE) {
        let values = store.get_many(&page.iter().map(String::as_str).collect::<Vec<_>>())?;
        let texts = values.into_iter().map(|value| String::from_utf8_lossy(&value.unwrap_or_default()).into_owned());
        let found = page.iter().zip(texts).filter(|(_, text)| text.to_lowercase().contains(&words));
        notes.extend(found.map(|(id, text)| Note { id: id.clone(), text }));
    }
    notes.truncate(LISTED_MAX);
    Ok(Notes { notes })
}

/// How many notes the user has ever written.
#[tool]
pub fn count() -> Result<u64> {
    Ok(kv::open(NAMESPACE)?.get_text(COUNT)?.and_then(|count| count.parse().ok()).unwrap_or(0))
}

fn key(number: u64) -> String {
    format!("note-{number:08}")
}

toolbox!(add, list, search, count; requires = {
    key_value: [{ namespace: "notes/{external_user_id}", access: "write", reason: "keeps each user's notes" }],
});
