//! What the fake model says: a pure function of the conversation, so that a step that is asked twice is answered the same.
//!
//! The last message of the user names an operation and what is to be done, `op-12 calc`. The model asks for the tools that
//! this needs, then answers with the operation's name and what the tools said.

use serde_json::{Value, json};

/// What a model's answer is made of.
pub(crate) struct Script {
    /// As the user's message names it.
    pub(crate) op: String,
    /// 1 for the answer to the user, 2 for the one to the tools.
    pub(crate) step: usize,
    /// Words, each a chunk of its own.
    pub(crate) words: Vec<String>,
    pub(crate) calls: Vec<(&'static str, Value)>,
    pub(crate) tokens: Tokens,
    /// Falls silent after the first word, until it is told to go on.
    pub(crate) hangs: bool,
}

/// What an answer reports as used. Differs from operation to operation, so that no two bills are alike by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
}

/// What an operation of this number reports in this step.
pub(crate) fn tokens(number: u64, step: usize) -> Tokens {
    let step = step as u64;
    Tokens { input: 211 + number % 97 + 31 * step, cached: 17 + number % 13, output: 7 + number % 29 + step }
}

/// The number in `op-12`.
pub(crate) fn number(op: &str) -> Option<u64> {
    op.strip_prefix("op-")?.parse().ok()
}

/// The name of an operation in a text.
pub(crate) fn op_in(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| number(word).is_some())
}

/// `effects` is where tools with effects send to. `None`: nobody of ours asks this.
pub(crate) fn script(messages: &[Value], effects: &str) -> Option<Script> {
    let asked = messages.iter().rposition(|message| message["role"] == "user")?;
    let text = content(&messages[asked]);
    let op = op_in(&text)?.to_owned();
    let what = text.split_whitespace().skip_while(|word| *word != op).nth(1).unwrap_or("say").to_owned();
    let after = &messages[asked + 1..];
    let step = 1 + after.iter().filter(|message| message["role"] == "assistant").count();
    let number = number(&op)?;
    let calls = if step > 1 { Vec::new() } else { calls(&op, &what, number, effects) };
    let words = match calls.is_empty() {
        true => {
            let results = after.iter().filter(|message| message["role"] == "tool").map(content);
            let said = results.collect::<Vec<_>>().join(" ");
            answer(&op, &said)
        }
        false => Vec::new(),
    };
    Some(Script { tokens: tokens(number, step), op, step, words, calls, hangs: what == "hang" })
}

/// The words of a final answer: the operation's name first, then a little of what was read.
fn answer(op: &str, said: &str) -> Vec<String> {
    let said: String = said.chars().take(80).collect();
    format!("Done with {op}: {said} as it was asked.").split_inclusive(' ').map(str::to_owned).collect()
}

/// Where an operation's effect goes.
pub(crate) fn effect_arguments(op: &str, effects: &str) -> Value {
    json!({"asks": [{
        "scheme": "http", "authority": effects, "path": format!("/effects/{op}"), "method": "POST", "headers": [],
        "body": "once",
    }]})
}

fn calls(op: &str, what: &str, number: u64, effects: &str) -> Vec<(&'static str, Value)> {
    let calc = || ("calc__evaluate", json!({"expression": format!("{number} + 1")}));
    let effect = || ("effects__send", effect_arguments(op, effects));
    match what {
        "calc" | "approve" => vec![calc()],
        "effect" => vec![effect()],
        "note" => vec![("notes__add", json!({"text": op}))],
        "both" => vec![calc(), effect()],
        "spin" => vec![("spin__run", json!({}))],
        _ => Vec::new(),
    }
}

/// The text of a message, however it is written.
fn content(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_asked_twice_is_answered_the_same() {
        let user = json!({"role": "user", "content": "op-41 calc"});
        let old = [json!({"role": "user", "content": "op-40 say"}), json!({"role": "assistant", "content": "x"})];
        let first: Vec<Value> = old.into_iter().chain([user]).collect();
        let asked = script(&first, "127.0.0.1:9").unwrap();
        assert_eq!((asked.op.as_str(), asked.step, asked.calls.len()), ("op-41", 1, 1));
        assert_eq!(asked.calls[0], ("calc__evaluate", json!({"expression": "41 + 1"})));

        let called = json!({"role": "assistant", "tool_calls": []});
        let result = json!({"role": "tool", "content": "42"});
        let second: Vec<Value> = first.into_iter().chain([called, result]).collect();
        let answered = script(&second, "127.0.0.1:9").unwrap();
        assert_eq!((answered.step, answered.words.concat().as_str()), (2, "Done with op-41: 42 as it was asked."));
        assert_eq!(answered.tokens, tokens(41, 2));
        assert!(script(&[json!({"role": "user", "content": "hello"})], "").is_none());
    }
}
