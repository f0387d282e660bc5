//! Executors without an engine.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::{Value, json};
use tool_api::{
    CallError, CallHost, Change, ComponentSource, Finished, Function, InspectError, Inspection, Outcome, Receipt,
    Recording, Rejection, Replayed, Status, ToolCall, ToolExecutor, ToolInspector, Upload,
};

/// A function that takes any object.
pub fn function(name: &str) -> Function {
    Function {
        name: name.parse().unwrap(),
        description: format!("does {name}"),
        input_schema: json!({"type": "object"}),
        output_schema: None,
    }
}

/// Takes all bytes for a component with one function `run`, but bytes that begin with `bad`.
#[derive(Debug, Default, Clone, Copy)]
pub struct FakeInspector;

#[async_trait]
impl ToolInspector for FakeInspector {
    async fn inspect(&self, upload: Upload, component: &dyn ComponentSource) -> Result<Inspection, InspectError> {
        let component = component.component().await.map_err(|error| InspectError::Failed(error.into()))?;
        let component = component.ok_or_else(|| InspectError::Failed("the component is gone".into()))?;
        if component.starts_with(b"broken host") {
            return Err(InspectError::Failed("the disk is full".into()));
        }
        if component.starts_with(b"bad") {
            return Err(Rejection::new("component.not_wasm", "not a component; build one").into());
        }
        Ok(Inspection {
            artifact: upload.artifact,
            functions: vec![function("run")],
            requires: json!({}),
            contract: "belljar:tool@1.0.0".into(),
        })
    }
}

type Answer = dyn Fn(&ToolCall) -> Outcome + Send + Sync;
type Writes = dyn Fn(&ToolCall) -> Vec<Change> + Send + Sync;

/// Answers calls with a closure and remembers them. Every call costs 1000 fuel and 64 KiB for a millisecond.
#[derive(Clone)]
pub struct FakeExecutor {
    answer: Arc<Answer>,
    writes: Arc<Writes>,
    calls: Arc<Mutex<Vec<ToolCall>>>,
}

impl FakeExecutor {
    pub fn new(answer: impl Fn(&ToolCall) -> Outcome + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(answer), writes: Arc::new(|_| Vec::new()), calls: Arc::default() }
    }

    /// What each call leaves in the tenant's key-value store.
    pub fn writing(self, writes: impl Fn(&ToolCall) -> Vec<Change> + Send + Sync + 'static) -> Self {
        Self { writes: Arc::new(writes), ..self }
    }

    /// Answers with the arguments it was given.
    pub fn echo() -> Self {
        Self::new(|call| Outcome {
            status: Status::Ok,
            code: None,
            content: vec![domain::message::Part::text(call.arguments.to_string())],
            structured: Some(call.arguments.clone()),
            trap: None,
        })
    }

    pub fn calls(&self) -> Vec<ToolCall> {
        self.calls.lock().unwrap().clone()
    }

    pub fn arguments(&self) -> Vec<Value> {
        self.calls().into_iter().map(|call| call.arguments).collect()
    }
}

#[async_trait]
impl ToolExecutor for FakeExecutor {
    async fn call(&self, call: ToolCall, _host: Arc<dyn CallHost>) -> Result<Finished, CallError> {
        let outcome = (self.answer)(&call);
        let receipt = Receipt {
            artifact: call.artifact,
            contract: "belljar:tool@1.0.0".into(),
            fuel_used: 1000,
            memory_peak_bytes: 65536,
            instantiate_us: 10,
            total_us: 1000,
            host_call_count: 0,
            host_calls: Vec::new(),
            host_call_counts: Default::default(),
            secrets_used: Vec::new(),
            denied: Vec::new(),
            logs: Vec::new(),
            logs_truncated: false,
            attempt: call.context.attempt,
            idempotency_key: call.context.idempotency_key.clone(),
        };
        let (changes, recording) = ((self.writes)(&call), call.record.then(Recording::default));
        self.calls.lock().unwrap().push(call);
        Ok(Finished { outcome, receipt, changes, recording })
    }

    async fn replay(&self, call: ToolCall, _recording: Arc<Recording>) -> Result<Replayed, CallError> {
        let finished = self.call(call, Arc::new(tool_api::NoHost)).await?;
        Ok(Replayed { finished, missing: Vec::new() })
    }
}
