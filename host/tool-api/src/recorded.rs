//! A recorded call, whole, and what differs when it is run again. Pure.

use std::{collections::BTreeMap, sync::Arc};

use domain::{
    CallGrants, CallId, ConversationId, FunctionName, Limits, SecretName, SecretString, TenantId, ToolName,
    json::pointer_step,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ArtifactHash, CallContext, HostCall, OpenSecret, Outcome, Receipt, Recording, Replayed, Share, ToolCall};

/// Differences that are told of one comparison: the first ones say enough.
const DIFFERENCES_MAX: usize = 100;
/// Bytes of JSON of a value in a difference: the whole outcome stands beside it.
const SHOWN_BYTES_MAX: usize = 1000;
/// What a replayed call reads where the recorded one read a secret.
const SECRET: &str = "[secret]";

/// Everything that running a call again needs, but for the component. No secret is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RecordedCall {
    pub id: CallId,
    pub tool: ToolName,
    /// The build that ran.
    pub version: ArtifactHash,
    pub function: FunctionName,
    #[schema(value_type = Object)]
    pub arguments: Value,
    pub outcome: Outcome,
    pub receipt: Receipt,
    #[serde(flatten)]
    pub given: Given,
}

/// What was given to a recorded call besides its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Given {
    /// In the shape of a call's grants: namespaces and values are those of its user.
    #[schema(value_type = Object)]
    pub grants: CallGrants,
    pub limits: Limits,
    pub context: RecordedContext,
    /// Secrets that the call could read by name.
    pub readable: Vec<SecretName>,
    pub recording: Recording,
}

/// A call's context, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RecordedContext {
    pub idempotency_key: String,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<ConversationId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
    #[serde(default)]
    pub entries: BTreeMap<String, String>,
}

/// A recorded call beside its replay.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Replay {
    pub call: CallId,
    /// The build that was tried.
    pub version: ArtifactHash,
    /// Of the outcomes. Frames of a crash are not compared: they name the build's own functions. An outcome that the
    /// call's commit decided (`kv.*`) is not the tool's, so it differs.
    pub output: Comparison,
    pub fuel: FuelComparison,
    /// Of the uses of capabilities, in order: times are not compared.
    pub host_calls: Comparison,
    /// What the replayed call asked for and the recording does not hold.
    pub missing: Vec<String>,
    pub outcome: Outcome,
    pub receipt: Receipt,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Comparison {
    pub same: bool,
    /// The first 100.
    pub differences: Vec<Difference>,
}

/// One place at which the two are not the same. A side is absent where there is nothing.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Difference {
    /// A JSON pointer: into the outcome, `/n` for the n-th host call from 0, `/counts/NAME` for a count.
    pub at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FuelComparison {
    pub recorded: u64,
    pub replayed: u64,
}

impl Given {
    /// What a call was given, from the call.
    pub fn of(call: &ToolCall, recording: Recording) -> Given {
        let readable = call.grants.secrets.iter();
        let readable = readable.filter(|name| call.secrets.get(*name).is_some_and(|secret| secret.readable));
        Given {
            grants: CallGrants::clone(&call.grants),
            limits: call.limits,
            context: RecordedContext::from(&call.context),
            readable: readable.cloned().collect(),
            recording,
        }
    }
}

impl RecordedCall {
    /// The call to give to `ToolExecutor::replay`, for another build of the tool.
    pub fn again(&self, tenant: TenantId, artifact: ArtifactHash, share: Share) -> ToolCall {
        let names = self.given.grants.http.iter().flat_map(domain::grants::HttpGrant::secret_names);
        let secrets = names.chain(&self.given.grants.secrets).map(|name| {
            let readable = self.given.readable.contains(name);
            (name.clone(), OpenSecret { value: SecretString::from(SECRET), readable })
        });
        ToolCall {
            id: self.id,
            tenant,
            tool: self.tool.clone(),
            artifact,
            function: self.function.clone(),
            arguments: self.arguments.clone(),
            grants: Arc::new(self.given.grants.clone()),
            secrets: Arc::new(secrets.collect()),
            limits: self.given.limits,
            context: CallContext::from(&self.given.context),
            share,
            record: false,
        }
    }

    pub fn compare(&self, version: ArtifactHash, replayed: Replayed) -> Replay {
        let Replayed { finished, missing } = replayed;
        let mut output = Differences::default();
        output.values(String::new(), Some(&comparable(&self.outcome)), Some(&comparable(&finished.outcome)));
        Replay {
            call: self.id,
            version,
            output: output.compared(),
            fuel: FuelComparison { recorded: self.receipt.fuel_used, replayed: finished.receipt.fuel_used },
            host_calls: host_calls(&self.receipt, &finished.receipt),
            missing,
            outcome: finished.outcome,
            receipt: finished.receipt,
        }
    }
}

fn comparable(outcome: &Outcome) -> Value {
    let mut outcome = outcome.clone();
    outcome.trap.iter_mut().for_each(|trap| trap.frames.clear());
    json!(outcome)
}

fn host_calls(recorded: &Receipt, replayed: &Receipt) -> Comparison {
    let mut found = Differences::default();
    let shown = |calls: &[HostCall]| calls.iter().map(host_call).collect::<Vec<_>>();
    let (left, right) = (shown(&recorded.host_calls), shown(&replayed.host_calls));
    // One call more or less in the middle is one difference, not one of each call after it.
    let shorter = left.len().min(right.len());
    let head = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let tail = left.iter().rev().zip(right.iter().rev()).take(shorter - head).take_while(|(a, b)| a == b).count();
    let (left, right) = (&left[head..left.len() - tail], &right[head..right.len() - tail]);
    for at in 0..left.len().max(right.len()) {
        found.values(format!("/{}", head + at), left.get(at), right.get(at));
    }
    let (left, right) = (&recorded.host_call_counts, &replayed.host_call_counts);
    let names = left.keys().chain(right.keys().filter(|name| !left.contains_key(*name)));
    for name in names {
        let count = |counts: &BTreeMap<String, u64>| counts.get(name).map(|count| json!(count));
        found.values(format!("/counts{}", pointer_step(name)), count(left).as_ref(), count(right).as_ref());
    }
    found.compared()
}

/// A host call as a text: what was done, without how long it took.
fn host_call(call: &HostCall) -> Value {
    let HostCall { interface, function, target, bytes_in, bytes_out, error, .. } = call;
    let target = target.as_ref().map(|target| format!(" {target}")).unwrap_or_default();
    let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    json!(format!("{interface}.{function}{target} ({bytes_in} bytes in, {bytes_out} bytes out){error}"))
}

#[derive(Default)]
struct Differences {
    found: Vec<Difference>,
    more: bool,
}

impl Differences {
    fn values(&mut self, at: String, recorded: Option<&Value>, replayed: Option<&Value>) {
        if recorded == replayed {
            return;
        }
        if self.found.len() == DIFFERENCES_MAX {
            self.more = true;
            return;
        }
        match (recorded, replayed) {
            (Some(Value::Object(left)), Some(Value::Object(right))) => {
                for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
                    self.values(format!("{at}{}", pointer_step(key)), left.get(key), right.get(key));
                }
            }
            (Some(Value::Array(left)), Some(Value::Array(right))) => {
                for index in 0..left.len().max(right.len()) {
                    self.values(format!("{at}/{index}"), left.get(index), right.get(index));
                }
            }
            _ => self.found.push(Difference { at, recorded: recorded.map(shown), replayed: replayed.map(shown) }),
        }
    }

    fn compared(self) -> Comparison {
        Comparison { same: self.found.is_empty() && !self.more, differences: self.found }
    }
}

/// A value, or the begin of its text when it is long.
fn shown(value: &Value) -> Value {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.len() <= SHOWN_BYTES_MAX {
        return value.clone();
    }
    json!(format!("{}... ({} bytes)", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)], text.len()))
}

impl From<&CallContext> for RecordedContext {
    fn from(context: &CallContext) -> Self {
        let CallContext { idempotency_key, attempt, agent, conversation, external_user_id, entries } = context.clone();
        let entries = BTreeMap::clone(&entries);
        RecordedContext { idempotency_key, attempt, agent, conversation, external_user_id, entries }
    }
}

impl From<&RecordedContext> for CallContext {
    fn from(context: &RecordedContext) -> Self {
        let RecordedContext { idempotency_key, attempt, agent, conversation, external_user_id, entries } =
            context.clone();
        CallContext { idempotency_key, attempt, agent, conversation, external_user_id, entries: Arc::new(entries) }
    }
}

#[cfg(test)]
mod tests {
    use domain::{ExposeSecret, Ids, SystemIds, message::Part};

    use super::*;
    use crate::{Finished, Status, Trap};

    fn host(target: &str, duration_us: u64) -> HostCall {
        HostCall {
            interface: "wasi:http".into(),
            function: "handle".into(),
            target: Some(target.into()),
            bytes_in: 1,
            bytes_out: 2,
            duration_us,
            grant: None,
            error: None,
        }
    }

    fn finished(fuel_used: u64, structured: Value, hosts: &[&str]) -> Finished {
        Finished {
            outcome: Outcome {
                status: Status::Ok,
                code: None,
                content: vec![Part::text("answer")],
                structured: Some(structured),
                trap: None,
            },
            receipt: Receipt {
                artifact: ArtifactHash::of(b"a"),
                contract: "belljar:tool@1.0.0".into(),
                fuel_used,
                memory_peak_bytes: 0,
                instantiate_us: 0,
                total_us: fuel_used,
                host_call_count: 0,
                host_calls: hosts.iter().map(|target| host(target, fuel_used)).collect(),
                host_call_counts: [("wasi:http.handle".to_owned(), hosts.len() as u64)].into(),
                secrets_used: Vec::new(),
                denied: Vec::new(),
                logs: Vec::new(),
                logs_truncated: false,
                attempt: 1,
                idempotency_key: String::new(),
            },
            changes: Vec::new(),
            recording: None,
        }
    }

    fn recorded(finished: Finished) -> RecordedCall {
        let context = RecordedContext::from(&CallContext { attempt: 2, ..CallContext::default() });
        RecordedCall {
            id: CallId::from(SystemIds.uuid()),
            tool: "desk".parse().unwrap(),
            version: finished.receipt.artifact,
            function: "run".parse().unwrap(),
            arguments: json!({}),
            outcome: finished.outcome,
            receipt: finished.receipt,
            given: Given {
                grants: CallGrants { secrets: vec!["open".parse().unwrap()], ..CallGrants::default() },
                limits: Limits::DEFAULT,
                context,
                readable: vec!["open".parse().unwrap()],
                recording: Recording::default(),
            },
        }
    }

    fn places(comparison: &Comparison) -> Vec<&str> {
        comparison.differences.iter().map(|difference| difference.at.as_str()).collect()
    }

    #[test]
    fn what_differs_is_told_by_its_place() {
        let call = recorded(finished(10, json!({"n": 1, "list": [1, 2]}), &["a", "b", "c"]));
        let compare = |finished| call.compare(ArtifactHash::of(b"b"), Replayed { finished, missing: vec!["x".into()] });
        let same = compare(finished(10, json!({"n": 1, "list": [1, 2]}), &["a", "b", "c"]));
        assert!(same.output.same && same.host_calls.same, "{same:?}");
        let slower = compare(finished(12, json!({"n": 1, "list": [1, 2]}), &["a", "b", "c"]));
        assert!(slower.output.same && slower.host_calls.same, "times are not compared: {slower:?}");
        assert_eq!(slower.fuel, FuelComparison { recorded: 10, replayed: 12 });
        assert_eq!(slower.missing, ["x"]);

        for (structured, hosts, output, host_calls) in [
            (json!({"n": 2, "list": [1, 2]}), &["a", "b", "c"][..], &["/structured/n"][..], &[][..]),
            (
                json!({"list": [1], "m/": 0}),
                &["a", "b", "c"],
                &["/structured/list/1", "/structured/n", "/structured/m~1"],
                &[],
            ),
            (json!({"n": 1, "list": [1, 2]}), &["a", "x", "c"], &[], &["/1"]),
            (json!({"n": 1, "list": [1, 2]}), &["a", "c"], &[], &["/1", "/counts/wasi:http.handle"]),
            (json!({"n": 1, "list": [1, 2]}), &["a", "a", "b", "c"], &[], &["/1", "/counts/wasi:http.handle"]),
            (json!({"n": 1, "list": [1, 2]}), &[], &[], &["/0", "/1", "/2", "/counts/wasi:http.handle"]),
        ] {
            let replay = compare(finished(10, structured.clone(), hosts));
            assert_eq!(places(&replay.output), output, "{structured}");
            assert_eq!(places(&replay.host_calls), host_calls, "{hosts:?}");
            assert_eq!((replay.output.same, replay.host_calls.same), (output.is_empty(), host_calls.is_empty()));
        }
    }

    #[test]
    fn a_comparison_is_bounded() {
        let call = recorded(finished(1, json!((0..1000).collect::<Vec<_>>()), &[]));
        let other = finished(1, json!((1..1001).collect::<Vec<_>>()), &[]);
        let replay = call.compare(ArtifactHash::of(b"b"), Replayed { finished: other, missing: Vec::new() });
        assert_eq!((replay.output.differences.len(), replay.output.same), (DIFFERENCES_MAX, false));
        let call = recorded(finished(1, json!("é".repeat(5000)), &[]));
        let other = finished(1, json!("short"), &[]);
        let replay = call.compare(ArtifactHash::of(b"b"), Replayed { finished: other, missing: Vec::new() });
        let shown = replay.output.differences[0].recorded.as_ref().and_then(Value::as_str).unwrap_or_default();
        assert!(shown.ends_with("... (10000 bytes)") && shown.len() < 1100, "{shown}");
    }

    #[test]
    fn frames_of_a_crash_are_the_builds_own() {
        let crash = |kind: &str, frame: &str| {
            let mut crashed = finished(1, json!(null), &[]);
            let (kind, frames) = (kind.to_owned(), vec![frame.to_owned()]);
            crashed.outcome.trap = Some(Trap { kind, message: String::new(), frames });
            crashed
        };
        let call = recorded(crash("unreachable", "f"));
        let compare = |finished| call.compare(ArtifactHash::of(b"b"), Replayed { finished, missing: Vec::new() });
        assert!(compare(crash("unreachable", "g")).output.same);
        assert_eq!(places(&compare(crash("exit", "f")).output), ["/trap/kind"]);
    }

    #[test]
    fn a_recorded_call_survives_as_json_and_holds_no_secret() {
        let call = recorded(finished(10, json!({"n": 1}), &["a"]));
        let again: RecordedCall = serde_json::from_value(json!(call)).unwrap();
        assert_eq!(again, call);
        let replay = again.again(TenantId::from(SystemIds.uuid()), ArtifactHash::of(b"b"), Share::default());
        assert_eq!((replay.context.attempt, replay.record), (2, false));
        let secret = &replay.secrets[&"open".parse().unwrap()];
        assert_eq!((secret.value.expose_secret(), secret.readable), ("[secret]", true));
    }
}
