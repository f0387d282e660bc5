//! A step's tool calls: checked against their schemas, run side by side, outcomes turned into results.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_config::{artifacts, bindings::BoundFunction};
use bytes::Bytes;
use domain::{CallId, Limits, message::Part, names, nul};
use serde_json::Value;
use tenancy::Tenant;
use tool_api::{
    ArtifactHash, CallContext, CallError, Finished, InspectError, Outcome, Receipt, Status, ToolCall, schema::Schema,
};

use crate::{AgentRuntime, step::AskedCall};

/// Calls of one step that run at the same moment: a step may ask for more, they wait.
pub(crate) const CALLS_AT_ONCE: usize = 8;

/// The functions of a run, by the name the model sees. A schema is made usable once a run, when it is first needed.
pub(crate) struct Functions(HashMap<String, Bound>);

struct Bound {
    function: BoundFunction,
    schema: std::sync::OnceLock<Result<Schema, String>>,
}

/// A call that is to be made: its id and how it is named in rows and events.
#[derive(Debug, Clone)]
pub(crate) struct NamedCall {
    pub(crate) id: CallId,
    pub(crate) asked: AskedCall,
    pub(crate) tool: String,
    pub(crate) function: String,
    pub(crate) artifact: Option<ArtifactHash>,
}

/// A call and what it came to. `receipt` is absent when it did not begin.
#[derive(Debug, Clone)]
pub(crate) struct CallResult {
    pub(crate) call: NamedCall,
    pub(crate) outcome: Outcome,
    pub(crate) receipt: Option<Receipt>,
}

impl Functions {
    pub(crate) fn new(functions: Vec<BoundFunction>) -> Self {
        let bound = functions
            .into_iter()
            .map(|function| (function.spec.model_name.clone(), Bound { function, schema: std::sync::OnceLock::new() }));
        Self(bound.collect())
    }

    /// How a call the model asked for is named, also when nothing is bound under that name.
    pub(crate) fn name(&self, id: CallId, mut asked: AskedCall) -> NamedCall {
        nul::replace(&mut asked.arguments);
        asked.name = nul::replaced(asked.name);
        asked.provider_id = nul::replaced(asked.provider_id);
        match self.0.get(&asked.name) {
            Some(Bound { function, .. }) => NamedCall {
                id,
                tool: function.spec.tool.to_string(),
                function: function.spec.function.to_string(),
                artifact: Some(function.artifact),
                asked,
            },
            None => {
                let (tool, function) = match names::split_model_name(&asked.name) {
                    Some((tool, function)) => (tool.to_string(), function.to_string()),
                    None => (asked.name.chars().take(100).collect(), String::new()),
                };
                NamedCall { id, tool, function, artifact: None, asked }
            }
        }
    }

    /// The bound function and its checked arguments, or what the model is told instead.
    fn checked(&self, call: &NamedCall) -> Result<&BoundFunction, Box<Outcome>> {
        let refuse = |code: &str, words: String| Err(Box::new(Outcome::failed(Status::ToolError, code, words)));
        let Some(Bound { function, schema }) = self.0.get(&call.asked.name) else {
            let mut known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            known.sort_unstable();
            return refuse(
                "tool.unknown_function",
                format!("there is no such function; there are: {}", known.join(", ")),
            );
        };
        if let Value::String(text) = &call.asked.arguments {
            let shown: String = text.chars().take(200).collect();
            return refuse("tool.bad_arguments", format!("the arguments are not a JSON object: {shown}"));
        }
        let schema =
            schema.get_or_init(|| Schema::of_arguments(&function.spec.input_schema).map_err(|error| error.to_string()));
        let errors = match schema {
            Ok(schema) => schema.check(&call.asked.arguments),
            Err(error) => return refuse("tool.bad_schema", error.clone()),
        };
        if errors.is_empty() {
            return Ok(function);
        }
        let lines: Vec<String> = errors.iter().map(|error| format!("{} {}", error.pointer, error.detail)).collect();
        refuse("tool.bad_arguments", format!("the arguments do not fit the schema:\n{}", lines.join("\n")))
    }
}

impl AgentRuntime {
    /// Runs one call of a run that has `left` until its deadline. `context.idempotency_key` and `attempt` are set here.
    pub(crate) async fn run_call(
        &self,
        tenant: &Tenant,
        functions: &Functions,
        call: NamedCall,
        context: CallContext,
        left: Duration,
    ) -> CallResult {
        let function = match functions.checked(&call) {
            Ok(function) => function,
            Err(outcome) => return CallResult { call, outcome: *outcome, receipt: None },
        };
        let Some(grants) = function.grants.for_call(context.external_user_id.as_deref()) else {
            let words = "a config value is for an end user, and this call has no external_user_id";
            let outcome = Outcome::failed(Status::Denied, "denied.config", words);
            return CallResult { call, outcome, receipt: None };
        };
        let tool_call = ToolCall {
            id: call.id,
            tenant: tenant.id(),
            tool: function.spec.tool.clone(),
            artifact: function.artifact,
            function: function.spec.function.clone(),
            arguments: call.asked.arguments.clone(),
            grants: Arc::new(grants),
            limits: Limits {
                deadline_ms: function.limits.deadline_ms.min(left.as_millis().max(1) as u64),
                ..function.limits
            },
            context: CallContext { idempotency_key: call.id.to_string(), attempt: 1, ..context },
        };
        match self.execute(tenant, tool_call).await {
            Ok(Finished { outcome, receipt }) => CallResult { call, outcome, receipt: Some(receipt) },
            Err(error) => {
                if let CallError::Internal(cause) = &error {
                    tracing::error!(tool_call.id = %call.id, error = %cause, "a tool call could not be made");
                }
                let outcome = Outcome::failed(Status::ToolError, domain::Problem::code(&error), error.to_string());
                CallResult { call, outcome, receipt: None }
            }
        }
    }

    /// Gives a call to the executor. Code that is not on that host is brought there first, and its time is not the call's.
    pub(crate) async fn execute(&self, tenant: &Tenant, call: ToolCall) -> Result<Finished, CallError> {
        let executor = &self.0.parts.executor;
        let finished = match executor.call(call.clone()).await {
            Err(CallError::NotCompiled(artifact)) => {
                let began = Instant::now();
                let internal = |error: Box<dyn std::error::Error + Send + Sync>| CallError::Internal(error);
                let component = self.component(tenant, artifact).await?;
                match self.0.parts.inspector.inspect(component).await {
                    Ok(_) => {}
                    Err(InspectError::Rejected(rejection)) => return Err(internal(rejection.into())),
                    Err(InspectError::Failed(cause)) => return Err(internal(cause)),
                }
                let duration_ms = began.elapsed().as_millis();
                tracing::info!(artifact = %artifact, duration_ms, "a tool's code was brought to this host");
                executor.call(call).await
            }
            finished => finished,
        };
        finished.map(clean)
    }

    async fn component(&self, tenant: &Tenant, artifact: ArtifactHash) -> Result<Bytes, CallError> {
        let mut tx = tenant.begin().await.map_err(|error| CallError::Internal(error.into()))?;
        let found = artifacts::component_by_hash(&mut tx, artifact).await;
        let found = found.map_err(|error| CallError::Internal(error.into()))?;
        found.ok_or_else(|| CallError::Internal("the tool's component is not stored any more".into()))
    }
}

/// A tool may say anything; Postgres keeps every character but one.
fn clean(mut finished: Finished) -> Finished {
    for part in &mut finished.outcome.content {
        match part {
            Part::Text { text } => *text = nul::replaced(std::mem::take(text)),
            Part::Image { media_type, .. } => *media_type = nul::replaced(std::mem::take(media_type)),
            Part::ToolCall { .. } | Part::ToolResult { .. } => {}
        }
    }
    if let Some(structured) = &mut finished.outcome.structured {
        nul::replace(structured);
    }
    if let Some(trap) = &mut finished.outcome.trap {
        trap.message = nul::replaced(std::mem::take(&mut trap.message));
        trap.frames.iter_mut().for_each(|frame| *frame = nul::replaced(std::mem::take(frame)));
    }
    for line in &mut finished.receipt.logs {
        line.text = nul::replaced(std::mem::take(&mut line.text));
    }
    finished
}

/// What a call came to when the run ended around it.
pub(crate) fn not_finished(call: NamedCall, code: &str, words: &str) -> CallResult {
    CallResult { call, outcome: Outcome::failed(Status::ToolError, code, words), receipt: None }
}
