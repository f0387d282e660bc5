//! A step's tool calls: checked against their schemas, run side by side, outcomes turned into results.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use agent_config::{
    artifacts,
    bindings::BoundFunction,
    secrets::{self, SecretError},
};
use domain::{CallId, Kind, Limits, Problem, SecretName, message::Part, names, nul};
use serde_json::Value;
use tenancy::Tenant;
use tool_api::{
    ArtifactHash, CallContext, CallError, CallHost, Change, Finished, Given, InspectError, OpenSecret, Outcome,
    Receipt, Recording, Replayed, Status, ToolCall, schema::Schema,
};

use crate::{
    AgentRuntime,
    approvals::Approval,
    fault,
    host::TenantHost,
    intents::{self, Sent},
    load::Loaded,
    step::AskedCall,
};

/// Calls of one step that run at the same moment: a step may ask for more, they wait.
pub(crate) const CALLS_AT_ONCE: usize = 8;

/// The functions of a run, by the name the model sees. A schema is made usable once a run, when it is first needed.
pub(crate) struct Functions(HashMap<String, Bound>);

struct Bound {
    function: Arc<BoundFunction>,
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
    /// What is paid for; its own limits may be lower.
    pub(crate) fuel_max: u64,
    /// Somebody's word, where it was waited for.
    pub(crate) approval: Option<Approval>,
}

impl NamedCall {
    /// What the function gets: as the model asked, unless somebody changed it.
    pub(crate) fn arguments(&self) -> &Value {
        self.approval.as_ref().and_then(|approval| approval.arguments.as_ref()).unwrap_or(&self.asked.arguments)
    }
}

/// A call and what it came to.
#[derive(Debug, Clone)]
pub(crate) struct CallResult {
    pub(crate) call: NamedCall,
    pub(crate) outcome: Outcome,
    /// Absent when it did not begin.
    pub(crate) receipt: Option<Receipt>,
    pub(crate) changes: Vec<Change>,
    /// Present when it was recorded.
    pub(crate) given: Option<Given>,
    /// Its `tool_call.completed` comes with the step's commit.
    pub(crate) untold: bool,
}

impl CallResult {
    /// What the model reads. It is told where the function got other arguments than it asked with.
    pub(crate) fn for_model(&self) -> String {
        let text = self.outcome.for_model();
        match self.call.approval.as_ref().and_then(|approval| approval.arguments.as_ref()) {
            Some(arguments) => format!("[a person changed the arguments of this call to {arguments}]\n{text}"),
            None => text,
        }
    }
}

/// One try of a call of a run.
pub(crate) struct Try {
    /// 1 for the first.
    pub(crate) attempt: u32,
    pub(crate) host: TenantHost,
    /// Until the run's deadline.
    pub(crate) left: Duration,
}

/// What a call came to in the executor.
pub(crate) struct Executed {
    pub(crate) finished: Finished,
    /// What it was given, when it was recorded.
    pub(crate) given: Option<Given>,
}

impl Functions {
    pub(crate) fn new(functions: &[Arc<BoundFunction>]) -> Self {
        let bound = functions.iter().cloned();
        let bound = bound
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
                fuel_max: u64::MAX,
                asked,
                approval: None,
            },
            None => {
                let (tool, function) = match names::split_model_name(&asked.name) {
                    Some((tool, function)) => (tool.to_string(), function.to_string()),
                    None => (asked.name.chars().take(100).collect(), String::new()),
                };
                NamedCall { id, tool, function, artifact: None, fuel_max: u64::MAX, asked, approval: None }
            }
        }
    }

    /// What a call may consume at most.
    pub(crate) fn limits(&self, call: &NamedCall) -> Option<Limits> {
        self.0.get(&call.asked.name).map(|bound| bound.function.limits)
    }

    /// The bound function and its checked arguments, or what the model is told instead.
    pub(crate) fn checked(&self, call: &NamedCall) -> Result<&BoundFunction, Box<Outcome>> {
        let refuse = |code: &str, words: String| Err(Box::new(Outcome::failed(Status::ToolError, code, words)));
        let Some(Bound { function, schema }) = self.0.get(&call.asked.name) else {
            let mut known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            known.sort_unstable();
            return refuse(
                "tool.unknown_function",
                format!("there is no such function; there are: {}", known.join(", ")),
            );
        };
        if let Value::String(text) = call.arguments() {
            let shown: String = text.chars().take(200).collect();
            return refuse("tool.bad_arguments", format!("the arguments are not a JSON object: {shown}"));
        }
        let schema =
            schema.get_or_init(|| Schema::of_arguments(&function.spec.input_schema).map_err(|error| error.to_string()));
        let errors = match schema {
            Ok(schema) => schema.check(call.arguments()),
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
    /// Runs one call of a run, once.
    pub(crate) async fn run_call(&self, tenant: &Tenant, turn: &Loaded, call: NamedCall, this: Try) -> CallResult {
        let function = match turn.functions.checked(&call) {
            Ok(function) => function,
            Err(outcome) => return not_begun(call, *outcome),
        };
        let context =
            CallContext { idempotency_key: call.id.to_string(), attempt: this.attempt, ..turn.context.clone() };
        let grants = match function.grants.for_call(context.external_user_id.as_deref()) {
            Ok(grants) => Arc::new(grants),
            Err(error) => {
                let code = format!("denied.{}", error.grant);
                return not_begun(call, Outcome::failed(Status::Denied, code, error.to_string()));
            }
        };
        let secrets = match self.open_secrets(tenant, &function.grants.secret_names()).await {
            Ok(secrets) => secrets,
            Err(error) => return not_begun(call, without_secrets(&error)),
        };
        let tool_call = ToolCall {
            id: call.id,
            tenant: tenant.id(),
            tool: function.spec.tool.clone(),
            artifact: function.artifact,
            function: function.spec.function.clone(),
            arguments: call.arguments().clone(),
            grants,
            secrets: Arc::new(secrets),
            limits: Limits {
                fuel: function.limits.fuel.min(call.fuel_max),
                deadline_ms: function.limits.deadline_ms.min(this.left.as_millis().max(1) as u64),
                ..function.limits
            },
            context,
            share: turn.share,
            record: function.record,
        };
        match self.execute(tenant, tool_call, Arc::new(this.host)).await {
            Ok(Executed { finished: Finished { outcome, receipt, changes, .. }, given }) => {
                fault::point("call.returned");
                CallResult { call, outcome, receipt: Some(receipt), changes, given, untold: false }
            }
            Err(error) => {
                if let CallError::Internal(cause) = &error {
                    tracing::error!(tool_call.id = %call.id, error = %cause, "a tool call could not be made");
                }
                not_begun(call, Outcome::failed(Status::ToolError, error.code(), error.to_string()))
            }
        }
    }

    /// The secrets that a call's grants name, as they are now.
    pub(crate) async fn open_secrets(
        &self,
        tenant: &Tenant,
        names: &BTreeSet<&SecretName>,
    ) -> Result<BTreeMap<SecretName, OpenSecret>, SecretError> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut tx = tenant.begin().await?;
        secrets::open(&mut tx, &self.0.parts.master_key, names).await
    }

    /// Gives a call to the executor. Code that is not on that host is brought there first, and its time is not the call's.
    pub(crate) async fn execute(
        &self,
        tenant: &Tenant,
        call: ToolCall,
        host: Arc<dyn CallHost>,
    ) -> Result<Executed, CallError> {
        let executor = &self.0.parts.executor;
        let mut finished = executor.call(call.clone(), host.clone()).await;
        if let Err(CallError::NotCompiled(artifact)) = finished {
            self.bring(tenant, artifact).await?;
            finished = executor.call(call.clone(), host).await;
        }
        let mut finished = clean(finished?);
        let given = finished.recording.take().map(|recording| Given::of(&call, recording));
        Ok(Executed { finished, given })
    }

    /// Runs a call on a recording.
    pub(crate) async fn execute_again(
        &self,
        tenant: &Tenant,
        call: ToolCall,
        recording: Arc<Recording>,
    ) -> Result<Replayed, CallError> {
        let executor = &self.0.parts.executor;
        let mut replayed = executor.replay(call.clone(), recording.clone()).await;
        if let Err(CallError::NotCompiled(artifact)) = replayed {
            self.bring(tenant, artifact).await?;
            replayed = executor.replay(call, recording).await;
        }
        let Replayed { finished, missing } = replayed?;
        Ok(Replayed { finished: clean(finished), missing: missing.into_iter().map(nul::replaced).collect() })
    }

    /// Brings a tool's code to the executor's host.
    async fn bring(&self, tenant: &Tenant, artifact: ArtifactHash) -> Result<(), CallError> {
        let began = Instant::now();
        let internal = |error: Box<dyn std::error::Error + Send + Sync>| CallError::Internal(error);
        let found = artifacts::to_inspect(tenant, artifact).await.map_err(|error| internal(error.into()))?;
        let (upload, component) =
            found.ok_or_else(|| internal("the tool's component is not stored any more".into()))?;
        match self.0.parts.inspector.inspect(upload, &component).await {
            Ok(_) => {}
            Err(InspectError::Rejected(rejection)) => return Err(internal(rejection.into())),
            Err(InspectError::Failed(cause)) => return Err(internal(cause)),
        }
        let duration_ms = began.elapsed().as_millis();
        tracing::info!(artifact = %artifact, duration_ms, "a tool's code was brought to this host");
        Ok(())
    }
}

/// What the model is told when secrets cannot be opened. One that is not stored is the tenant's to mend.
fn without_secrets(error: &SecretError) -> Outcome {
    let code = match error.kind() {
        Kind::Internal => {
            tracing::error!(error = %error, cause = ?error, "the secrets of a tool call could not be opened");
            "tool.internal_error"
        }
        _ => error.code(),
    };
    Outcome::failed(Status::ToolError, code, error.to_string())
}

/// A tool may say anything; Postgres keeps every character but one. And only a call that answered leaves anything.
fn clean(mut finished: Finished) -> Finished {
    let replace = |text: &mut String| *text = nul::replaced(std::mem::take(text));
    for part in &mut finished.outcome.content {
        match part {
            Part::Text { text } => replace(text),
            Part::Image { media_type, .. } => replace(media_type),
            Part::Reasoning { .. } | Part::ToolCall { .. } | Part::ToolResult { .. } => {}
        }
    }
    if let Some(structured) = &mut finished.outcome.structured {
        nul::replace(structured);
    }
    if let Some(trap) = &mut finished.outcome.trap {
        replace(&mut trap.message);
        trap.frames.iter_mut().for_each(replace);
    }
    for line in &mut finished.receipt.logs {
        replace(&mut line.text);
    }
    for call in &mut finished.receipt.host_calls {
        [&mut call.target, &mut call.grant, &mut call.error].into_iter().flatten().for_each(replace);
    }
    if !matches!(finished.outcome.status, Status::Ok | Status::ToolError) {
        finished.changes.clear();
    }
    finished
}

/// A call that did not begin.
fn not_begun(call: NamedCall, outcome: Outcome) -> CallResult {
    CallResult { call, outcome, receipt: None, changes: Vec::new(), given: None, untold: false }
}

/// A call that somebody did not allow. It is told with the step's commit.
pub(crate) fn refused(call: NamedCall, outcome: Outcome) -> CallResult {
    CallResult { untold: true, ..not_begun(call, outcome) }
}

/// A call that was cut off after it had begun to send.
pub(crate) fn unknown(call: NamedCall, sent: &Sent) -> CallResult {
    let outcome = intents::outcome_unknown(call.id, sent);
    CallResult { untold: true, ..not_begun(call, outcome) }
}

/// What a call came to when the run ended around it.
pub(crate) fn not_finished(call: NamedCall, code: &str, words: &str) -> CallResult {
    not_begun(call, Outcome::failed(Status::ToolError, code, words))
}
