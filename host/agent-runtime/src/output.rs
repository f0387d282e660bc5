//! An answer that must fit the agent's `output_schema`: how the model is told, how its answer is read. Pure.

use conversation_store::messages;
use domain::{
    RunId,
    message::{Part, Role},
    nul,
};
use serde_json::Value;
use tool_api::schema::Schema;

use crate::{
    load::Loaded,
    runs::{End, StopReason},
};

/// Bytes of what is told of a wrong answer: the first errors say enough.
const ERRORS_BYTES_MAX: usize = 2 * 1024;
/// Longest answer that is read as JSON, in bytes: parsed, it takes a hundred times as much memory.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What comes of an answer.
#[derive(Debug, PartialEq)]
enum Judged {
    /// It fits.
    Output(Value),
    /// It does not, and the model is asked once more, with these words.
    Again(String),
    /// It does not, and the run fails, with these words.
    Fails(String),
}

/// Tells the model of the schema, at the end of its system prompt: not every provider can be told otherwise.
pub(crate) fn instruct(system: &mut String, schema: &Value) {
    if !system.is_empty() {
        system.push_str("\n\n");
    }
    system.push_str(
        "Your final answer is one JSON object and nothing else: no words around it, no code fence. It fits this JSON \
         Schema:\n",
    );
    system.push_str(&schema.to_string());
}

/// What comes of a run's answer. `None`: the model is asked again, which it is once. `has_more`: the run has a step and
/// money left for that.
pub(crate) fn answered(turn: &mut Loaded, text: &str, has_more: bool) -> Option<End> {
    let Some(schema) = &turn.agent.spec.output_schema else { return Some(End::completed(StopReason::Done)) };
    match judge(schema, text, has_more && turn.correction.is_none()) {
        Judged::Output(mut output) => {
            nul::replace(&mut output);
            Some(End { output: Some(output), ..End::completed(StopReason::Done) })
        }
        Judged::Again(words) => {
            turn.correction = Some(words);
            None
        }
        Judged::Fails(words) => Some(End::failed(StopReason::Error, "output.invalid", words)),
    }
}

/// The correction that a process before this one made: an answer of a run that goes on did not fit.
pub(crate) fn correction_of(schema: &Value, window: &[messages::Message], run: RunId) -> Option<String> {
    let is_call = |part: &Part| matches!(part, Part::ToolCall { .. });
    let mut answers = window.iter().filter(|message| message.run_id == Some(run) && message.role == Role::Assistant);
    let answer = answers.rfind(|message| !message.parts.iter().any(is_call))?;
    read(schema, &answer.content).err().map(|wrong| correction(&wrong))
}

fn judge(schema: &Value, text: &str, may_ask: bool) -> Judged {
    let wrong = match read(schema, text) {
        Ok(output) => return Judged::Output(output),
        Err(wrong) => wrong,
    };
    if may_ask {
        Judged::Again(correction(&wrong))
    } else {
        Judged::Fails(format!(
            "the model's last answer does not fit the agent's `output_schema`; describe more in the prompt, ask less of \
             the schema, or choose another model. {wrong}"
        ))
    }
}

fn correction(wrong: &str) -> String {
    format!(
        "Your answer does not fit the JSON Schema. {wrong}\nAnswer again: one JSON object that fits, and nothing else."
    )
}

fn read(schema: &Value, text: &str) -> Result<Value, String> {
    if text.len() > ANSWER_BYTES_MAX {
        return Err(format!("It is longer than {ANSWER_BYTES_MAX} bytes."));
    }
    let value: Value = serde_json::from_str(unfenced(text)).map_err(|error| format!("It is not JSON: {error}."))?;
    let errors = match Schema::parse(schema) {
        Ok(schema) => schema.check(&value),
        Err(error) => return Err(format!("The schema cannot be used: {error}.")),
    };
    if errors.is_empty() {
        return Ok(value);
    }
    let place = |pointer: &str| if pointer.is_empty() { "the answer".to_owned() } else { pointer.to_owned() };
    let lines: Vec<String> =
        errors.iter().map(|error| format!("{}: {}", place(&error.pointer), error.detail)).collect();
    let mut words = format!("What is wrong:\n{}", lines.join("\n"));
    words.truncate(words.floor_char_boundary(ERRORS_BYTES_MAX));
    Err(words)
}

/// Models like to put JSON into a code fence, whatever they are told.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")).and_then(|rest| {
        let (language, body) = rest.split_once('\n')?;
        language.trim().chars().all(char::is_alphanumeric).then_some(body)
    });
    inside.map_or(text, str::trim)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_judged_by_the_schema() {
        let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
        let fits = json!({"n": 1});
        for (text, fits_as, wrong) in [
            ("", None, "It is not JSON"),
            ("the number is 1", None, "It is not JSON"),
            ("{\"n\": 1} as you asked", None, "It is not JSON"),
            ("{\"n\": \"1\"}", None, "/n: "),
            ("{}", None, "the answer: "),
            ("[1]", None, "the answer: "),
            ("```json\n{\"m\": 1}\n```", None, "\"n\" is a required property"),
            ("{\"n\": 1}", Some(&fits), ""),
            (" \n{\"n\": 1}\n", Some(&fits), ""),
            ("```json\n{\"n\": 1}\n```", Some(&fits), ""),
            ("```\n{\"n\": 1}```\n", Some(&fits), ""),
        ] {
            let told = match (judge(&schema, text, true), judge(&schema, text, false)) {
                (Judged::Output(first), Judged::Output(last)) => {
                    assert_eq!((Some(&first), Some(&last)), (fits_as, fits_as), "{text}");
                    continue;
                }
                (Judged::Again(again), Judged::Fails(words)) => {
                    assert!(words.contains(wrong), "{text}: {words}");
                    again
                }
                other => panic!("{text}: {other:?}"),
            };
            assert!(fits_as.is_none() && told.contains(wrong), "{text}: {told}");
        }
        let many = json!({"type": "object", "additionalProperties": false});
        let text = json!({"x".repeat(10_000): 1}).to_string();
        assert!(matches!(judge(&many, &text, true), Judged::Again(words) if words.len() < 2 * ERRORS_BYTES_MAX));
    }
}
