//! A call of a guest, and what it must come to.

use std::sync::Arc;

use domain::{CallGrants, Limits};
use serde_json::{Value, json};
use tool_api::{ArtifactHash, Finished, Status, ToolCall};

use crate::jar::call;

/// What is known of a guest.
pub(super) enum Row {
    /// Each of its calls ends as it must.
    Calls(Vec<Case>),
    /// It is no tool; the rejection's code, and words of it.
    Refused(&'static str, &'static str),
    /// It has tests of its own, in this file beside.
    In(&'static str),
}

/// One call.
pub(super) struct Case {
    pub(super) function: &'static str,
    arguments: Value,
    pub(super) limits: Limits,
    grants: CallGrants,
    end: End,
    /// What the receipt says was denied.
    denied: Vec<&'static str>,
}

/// How a call ends.
enum End {
    /// With an answer whose text contains this.
    Answer(&'static str),
    /// With an error of its own, in words that contain this.
    Fails(&'static str),
    /// With a code.
    Code(&'static str),
    /// With a crash of this kind.
    Crash(&'static str),
}

fn case(function: &'static str, end: End) -> Case {
    Case {
        function,
        arguments: json!({}),
        limits: Limits { deadline_ms: 60_000, ..Limits::DEFAULT },
        grants: CallGrants::default(),
        end,
        denied: Vec::new(),
    }
}

pub(super) fn answers(function: &'static str, words: &'static str) -> Case {
    case(function, End::Answer(words))
}

pub(super) fn errs(function: &'static str, words: &'static str) -> Case {
    case(function, End::Fails(words))
}

/// `limit.*` or `tool.*`.
pub(super) fn ends(function: &'static str, code: &'static str) -> Case {
    case(function, End::Code(code))
}

/// `code` is `denied.<grant>`, and the receipt names that grant.
pub(super) fn denied(function: &'static str, code: &'static str) -> Case {
    case(function, End::Code(code)).noting(&[code.strip_prefix("denied.").unwrap()])
}

pub(super) fn crashes(function: &'static str, kind: &'static str) -> Case {
    case(function, End::Crash(kind))
}

pub(super) fn refused(code: &'static str, words: &'static str) -> Row {
    Row::Refused(code, words)
}

impl Case {
    pub(super) fn given(self, arguments: Value) -> Case {
        Case { arguments, ..self }
    }

    pub(super) fn within(mut self, change: impl FnOnce(&mut Limits)) -> Case {
        change(&mut self.limits);
        self
    }

    pub(super) fn noting(self, denied: &[&'static str]) -> Case {
        Case { denied: denied.into(), ..self }
    }

    pub(super) fn config(mut self, key: &str, value: impl Into<String>) -> Case {
        self.grants.config.insert(key.into(), value.into());
        self
    }

    pub(super) fn call(&self, artifact: ArtifactHash) -> ToolCall {
        ToolCall {
            limits: self.limits,
            grants: Arc::new(self.grants.clone()),
            ..call(artifact, self.function, self.arguments.clone())
        }
    }

    pub(super) fn name(&self, guest: &str) -> String {
        let end = match &self.end {
            End::Answer(words) | End::Fails(words) | End::Code(words) | End::Crash(words) => words,
        };
        format!("{guest}.{}{} -> {end}", self.function, self.arguments)
    }

    /// The outcome is the expected one, and the receipt says no more than the call was allowed.
    pub(super) fn check(&self, name: &str, finished: &Finished) {
        let Finished { outcome, receipt, changes, .. } = finished;
        let (status, code) = (outcome.status, outcome.code.as_deref());
        match self.end {
            End::Answer(words) => {
                assert_eq!((status, code), (Status::Ok, None), "{name}: {outcome:?}");
                assert!(outcome.for_model().contains(words), "{name}: {outcome:?}");
            }
            End::Fails(words) => {
                assert_eq!((status, code), (Status::ToolError, None), "{name}: {outcome:?}");
                assert!(outcome.for_model().contains(words), "{name}: {outcome:?}");
            }
            End::Code(expected) => {
                let of_code = match expected.split_once('.').unwrap().0 {
                    "limit" => Status::Limit,
                    "denied" => Status::Denied,
                    _ => Status::ToolError,
                };
                assert_eq!((status, code), (of_code, Some(expected)), "{name}: {outcome:?}");
            }
            End::Crash(kind) => {
                let trap = outcome.trap.as_ref().map(|trap| trap.kind.as_str());
                assert_eq!((status, code, trap), (Status::Trap, None, Some(kind)), "{name}: {outcome:?}");
            }
        }
        let Limits { fuel, memory_bytes, deadline_ms, log_bytes, host_calls, .. } = self.limits;
        assert!(receipt.fuel_used > 0 && receipt.fuel_used <= fuel, "{name}: {receipt:?}");
        assert!(receipt.memory_peak_bytes <= memory_bytes, "{name}: {receipt:?}");
        assert!(receipt.total_us < 1_000 * deadline_ms + 500_000, "{name}: {receipt:?}");
        assert!(receipt.host_call_count <= host_calls + 1, "{name}: {receipt:?}");
        let logged: usize = receipt.logs.iter().map(|line| line.text.len()).sum();
        assert!(logged as u64 <= log_bytes, "{name}: {logged} bytes of logs");
        assert_eq!(receipt.denied, self.denied, "{name}");
        assert!(status == Status::Ok || status == Status::ToolError || changes.is_empty(), "{name}: {changes:?}");
    }
}
