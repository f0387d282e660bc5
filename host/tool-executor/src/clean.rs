//! The last thing that happens to a call: the secrets that were opened for it are taken out of everything that people
//! read of it. What it leaves in the tenant's store is the tool's own, and stays as it is.

use std::sync::Arc;

use domain::message::Part;
use serde_json::Value;
use tool_api::{Outcome, Receipt, Recording, recording::Base64};

use crate::redact::{Redaction, Redactor};

/// Also what the tool answered: a model and its provider read it.
pub(crate) fn outcome(outcome: &mut Outcome, opened: &Redactor) {
    for part in &mut outcome.content {
        if let Part::Text { text } = part {
            clean(text, opened);
        }
    }
    if let Some(value) = &mut outcome.structured {
        json(value, opened);
    }
    if let Some(trap) = &mut outcome.trap {
        clean(&mut trap.message, opened);
    }
}

pub(crate) fn receipt(receipt: &mut Receipt, opened: &Redactor) {
    for line in &mut receipt.logs {
        clean(&mut line.text, opened);
    }
    for call in &mut receipt.host_calls {
        for words in [&mut call.target, &mut call.error].into_iter().flatten() {
            clean(words, opened);
        }
    }
}

/// What HTTP gave is clean already.
pub(crate) fn recording(recording: &mut Recording, opened: &Arc<Redactor>) {
    for read in &mut recording.key_value {
        clean(&mut read.key, opened);
        if let Some(Base64(value)) = &mut read.value {
            let mut redaction = Redaction::new(Arc::clone(opened));
            let cleaned = [redaction.push(value.clone()), redaction.finish()].concat();
            *value = cleaned.into();
        }
    }
    for list in &mut recording.key_value_keys {
        list.keys.iter_mut().chain(&mut list.after).for_each(|key| clean(key, opened));
    }
}

fn json(value: &mut Value, opened: &Redactor) {
    match value {
        Value::String(text) => clean(text, opened),
        Value::Array(items) => items.iter_mut().for_each(|item| json(item, opened)),
        Value::Object(fields) => {
            let cleaned = std::mem::take(fields).into_iter().map(|(mut name, mut value)| {
                clean(&mut name, opened);
                json(&mut value, opened);
                (name, value)
            });
            *fields = cleaned.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn clean(text: &mut String, opened: &Redactor) {
    *text = opened.text(text);
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tool_api::{Status, recording::KeyValueRead};

    use super::*;

    const CANARY: &str = "canary-0001-of-a-tenant";

    #[test]
    fn no_secret_is_left_in_what_people_read() {
        let opened = Arc::new(Redactor::new([CANARY], []));
        let mut of_tool = Outcome {
            structured: Some(json!({"list": [1, CANARY], CANARY: {"deep": format!("a {CANARY} b")}})),
            ..Outcome::failed(Status::ToolError, "x", format!("it was {CANARY}"))
        };
        outcome(&mut of_tool, &opened);
        assert_eq!(of_tool.for_model(), "tool_error (x): it was [secret]");
        let clean = json!({"list": [1, "[secret]"], "[secret]": {"deep": "a [secret] b"}});
        assert_eq!(of_tool.structured, Some(clean));

        let value = Some(Base64([b"\xff ", CANARY.as_bytes(), b" \xff"].concat().into()));
        let read = KeyValueRead { namespace: "n".into(), key: CANARY.into(), value, failed: false };
        let mut kept = Recording { key_value: vec![read], ..Recording::default() };
        recording(&mut kept, &opened);
        let kept = &kept.key_value[0];
        assert_eq!(kept.key, "[secret]");
        let value = kept.value.as_ref().unwrap().0.to_vec();
        assert_eq!(value, [b"\xff ".as_slice(), &vec![b'*'; CANARY.len()], b" \xff"].concat());
    }
}
