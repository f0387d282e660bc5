//! Postgres keeps no NUL character in text or jsonb. Whoever wrote one (a model, a tool, a file pasted into a chat) gets
//! U+FFFD in its place, so that nothing accepted is lost for one character.

use serde_json::{Map, Value};

const PLACE: &str = "\u{FFFD}";

pub fn replaced(text: String) -> String {
    if text.contains('\0') { text.replace('\0', PLACE) } else { text }
}

/// Replaces in strings and in keys, at every depth (the JSON parser bounds it); tells whether there was one.
pub fn replace(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.contains('\0') => {
            *text = text.replace('\0', PLACE);
            true
        }
        Value::Array(items) => items.iter_mut().fold(false, |found, item| replace(item) | found),
        Value::Object(map) => replace_in(map),
        _ => false,
    }
}

pub fn replace_in(map: &mut Map<String, Value>) -> bool {
    let mut found = map.values_mut().fold(false, |found, value| replace(value) | found);
    if map.keys().any(|key| key.contains('\0')) {
        *map = std::mem::take(map).into_iter().map(|(key, value)| (replaced(key), value)).collect();
        found = true;
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nul_becomes_the_replacement_character_at_every_depth() {
        let mut value = json!({"a\0": ["x\0y", {"k": "\0"}], "n": 1, "t": "plain"});
        assert!(replace(&mut value));
        assert_eq!(value, json!({"a\u{FFFD}": ["x\u{FFFD}y", {"k": "\u{FFFD}"}], "n": 1, "t": "plain"}));
        assert!(!replace(&mut value));
    }
}
