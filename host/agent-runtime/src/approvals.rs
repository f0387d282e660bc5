//! Calls that wait for somebody's word. Meanwhile the run is a row and costs nothing; any process goes on with it.

mod waiting;

use agent_config::{agents::AgentError, bindings::BoundFunction, revisions};
use domain::{ApiKeyId, CallId, FieldError, Kind, Problem, RunId, Timestamp, nul};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenancy::{DbError, TenantTx};
use tool_api::schema::Schema;
use uuid::Uuid;

use crate::{
    AgentRuntime,
    events::{self, NewEvent},
    fault,
    runs::{self, Run, RunError, RunStatus},
};
pub(crate) use waiting::{Asked, named, of_calls, refused, wait, wanted};

/// Longest `reason`, in bytes: the model and people read it.
const REASON_BYTES_MAX: usize = 4 * 1024;
/// Longest `decided_by`, in bytes: a name or an address.
const DECIDED_BY_BYTES_MAX: usize = 256;
/// Longest arguments that somebody may put in place of the model's, in bytes of JSON.
const ARGUMENTS_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Approve,
    Deny,
}

impl Decision {
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Approve => "approve",
            Decision::Deny => "deny",
        }
    }

    fn parse(text: &str) -> Option<Decision> {
        [Decision::Approve, Decision::Deny].into_iter().find(|decision| decision.as_str() == text)
    }
}

/// A call that waits for a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PendingApproval {
    pub id: CallId,
    pub tool: String,
    pub function: String,
    #[schema(value_type = Object)]
    pub arguments: Value,
    pub expires_at: Timestamp,
}

/// Who decided about a call, and how.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Approval {
    pub decision: Decision,
    /// As the API caller named them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// The key that the decision came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_id: Option<ApiKeyId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the function got in place of what the model asked with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Value>,
    pub decided_at: Timestamp,
}

/// A decision as the caller gives it.
#[derive(Debug, Clone)]
pub struct Decide {
    pub decision: Decision,
    /// In place of what the model asked with.
    pub arguments: Option<Value>,
    pub reason: Option<String>,
    pub decided_by: Option<String>,
    pub api_key: Option<ApiKeyId>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error(
        "no call of this run waits, or waited, for a decision under this id; the run's `pending_approvals` lists them"
    )]
    NotFound,
    #[error("the call was decided about before; a decision is not taken back")]
    Decided,
    #[error("the call waits no longer: its time was up, or the run has ended")]
    Expired,
    #[error("the decision cannot be taken as it is; see `errors`")]
    Invalid(Vec<FieldError>),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for ApprovalError {
    fn kind(&self) -> Kind {
        match self {
            ApprovalError::NotFound => Kind::NotFound,
            ApprovalError::Decided | ApprovalError::Expired => Kind::Conflict,
            ApprovalError::Invalid(_) => Kind::Invalid,
            ApprovalError::Agent(error) => error.kind(),
            ApprovalError::Run(error) => error.kind(),
            ApprovalError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ApprovalError::NotFound => "tool_call.not_found",
            ApprovalError::Decided => "approval.decided",
            ApprovalError::Expired => "approval.expired",
            ApprovalError::Invalid(_) => "approval.invalid",
            ApprovalError::Agent(error) => error.code(),
            ApprovalError::Run(error) => error.code(),
            ApprovalError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            ApprovalError::Invalid(fields) => fields.clone(),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            ApprovalError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for ApprovalError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

/// The decision about the call of the row of `tool_call` around it.
pub(crate) const OF_CALL: &str = "(SELECT jsonb_build_object('decision', a.decision, 'decided_by', a.decided_by,
                'reason', a.reason, 'api_key_id', a.api_key_id, 'arguments', a.decided_arguments, 'decided_at', a.decided_at)
         FROM approval a
         WHERE a.tenant_id = tool_call.tenant_id AND a.call_id = tool_call.call_id AND a.decision IS NOT NULL)";

/// The calls of the run `r` around it that wait for a decision.
pub(crate) const OF_RUN: &str =
    "(SELECT jsonb_agg(jsonb_build_object('id', a.call_id, 'tool', a.tool, 'function', a.function,
                'arguments', a.arguments, 'expires_at', a.expires_at) ORDER BY a.call_id)
         FROM approval a
         WHERE a.tenant_id = r.tenant_id AND a.run_id = r.run_id AND a.decision IS NULL
           AND r.status = 'waiting_for_approval'
           AND NOT EXISTS (SELECT FROM tool_call t WHERE t.tenant_id = a.tenant_id AND t.call_id = a.call_id))";

/// What `OF_CALL` gives.
pub(crate) fn of_call(value: Option<Value>) -> serde_json::Result<Option<Approval>> {
    #[derive(Deserialize)]
    struct Stored {
        decision: Decision,
        decided_by: Option<String>,
        reason: Option<String>,
        api_key_id: Option<Uuid>,
        arguments: Option<Value>,
        decided_at: Timestamp,
    }
    let stored: Option<Stored> = value.map(serde_json::from_value).transpose()?;
    Ok(stored.map(|Stored { decision, decided_by, reason, api_key_id, arguments, decided_at }| Approval {
        decision,
        decided_by,
        api_key_id: api_key_id.map(ApiKeyId::from),
        reason,
        arguments,
        decided_at,
    }))
}

/// What `OF_RUN` gives.
pub(crate) fn of_run(value: Option<Value>) -> serde_json::Result<Vec<PendingApproval>> {
    #[derive(Deserialize)]
    struct Stored {
        id: Uuid,
        tool: String,
        function: String,
        arguments: Value,
        expires_at: Timestamp,
    }
    let stored: Vec<Stored> = value.map(serde_json::from_value).transpose()?.unwrap_or_default();
    let pending = stored.into_iter().map(|Stored { id, tool, function, arguments, expires_at }| PendingApproval {
        id: id.into(),
        tool,
        function,
        arguments,
        expires_at,
    });
    Ok(pending.collect())
}

/// Somebody decides about one call of a run. With the last call that was waited for, the run is queued, and goes on where
/// there is room: `AgentRuntime::decided` after the commit. The same decision once more changes nothing.
pub async fn decide(
    tx: &mut TenantTx,
    run: RunId,
    call: CallId,
    mut decide: Decide,
    now: Timestamp,
) -> Result<Run, ApprovalError> {
    if let Some(arguments) = &mut decide.arguments {
        nul::replace(arguments);
    }
    check(&decide)?;
    // The run first, as everybody locks it.
    let status = sqlx::query_scalar!(
        "SELECT status FROM run WHERE tenant_id = $1 AND run_id = $2 FOR UPDATE",
        tx.tenant().uuid(),
        run.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(ApprovalError::NotFound)?;
    let row = sqlx::query!(
        r#"
        SELECT tool, function, arguments, expires_at, decision, decided_arguments FROM approval
        WHERE tenant_id = $1 AND run_id = $2 AND call_id = $3
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        call.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(ApprovalError::NotFound)?;
    let told = runs::get(tx, run).await?.ok_or(ApprovalError::NotFound)?;
    // Arguments as the model asked with are no change.
    let arguments = decide.arguments.filter(|arguments| *arguments != row.arguments);
    if let Some(before) = row.decision {
        let same = before == decide.decision.as_str() && row.decided_arguments == arguments;
        return if same { Ok(told) } else { Err(ApprovalError::Decided) };
    }
    if status != RunStatus::WaitingForApproval.as_str() || Timestamp::from(row.expires_at) <= now {
        return Err(ApprovalError::Expired);
    }
    if let Some(arguments) = &arguments {
        let functions = revisions::functions(tx, told.agent_id, told.revision).await?;
        let is_it = |function: &&BoundFunction| {
            function.spec.tool.as_str() == row.tool && function.spec.function.as_str() == row.function
        };
        fit(functions.iter().find(is_it), arguments)?;
    }
    sqlx::query!(
        r#"
        UPDATE approval SET decision = $3, decided_arguments = $4, reason = $5, decided_by = $6, api_key_id = $7,
                            decided_at = $8
        WHERE tenant_id = $1 AND call_id = $2
        "#,
        tx.tenant().uuid(),
        call.uuid(),
        decide.decision.as_str(),
        arguments,
        decide.reason.as_deref(),
        decide.decided_by.as_deref(),
        decide.api_key.map(ApiKeyId::uuid),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    // Nobody drives the run, and it is locked: the number is free.
    let seq = events::last_seq(tx, run).await? + 1;
    let mut data = json!({"id": call, "decision": decide.decision});
    if let Some(by) = &decide.decided_by {
        data["decided_by"] = json!(by);
    }
    events::append(tx, run, &[NewEvent::Event { seq, kind: "approval.decided", data }]).await?;
    sqlx::query!(
        r#"
        UPDATE run SET status = 'queued'
        WHERE tenant_id = $1 AND run_id = $2
          AND NOT EXISTS (
              SELECT FROM approval a
              WHERE a.tenant_id = $1 AND a.run_id = $2 AND a.decision IS NULL AND a.expires_at > $3
          )
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    runs::get(tx, run).await?.ok_or(ApprovalError::NotFound)
}

impl AgentRuntime {
    /// A decision is committed: looks for what it has queued, without being waited for.
    pub fn decided(&self) {
        fault::point("decision.committed");
        let runtime = self.clone();
        self.0.tracker.spawn(async move {
            if let Err(error) = runtime.look_for_work().await {
                tracing::warn!(error = %error, "what was queued waits for the next look");
            }
        });
    }
}

fn check(decide: &Decide) -> Result<(), ApprovalError> {
    let mut wrong = Vec::new();
    if let Some(arguments) = &decide.arguments {
        if decide.decision == Decision::Deny {
            wrong.push(FieldError::new("/arguments", "a call that is denied gets no arguments; leave them out"));
        }
        if arguments.to_string().len() > ARGUMENTS_BYTES_MAX {
            wrong.push(FieldError::new("/arguments", format!("more than {ARGUMENTS_BYTES_MAX} bytes of JSON")));
        }
    }
    for (pointer, text, most) in
        [("/reason", &decide.reason, REASON_BYTES_MAX), ("/decided_by", &decide.decided_by, DECIDED_BY_BYTES_MAX)]
    {
        if text.as_ref().is_some_and(|text| text.len() > most || text.contains('\0')) {
            wrong.push(FieldError::new(pointer, format!("at most {most} bytes, without the character U+0000")));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(ApprovalError::Invalid(wrong)) }
}

/// Whether the function takes the arguments that somebody wrote.
fn fit(function: Option<&BoundFunction>, arguments: &Value) -> Result<(), ApprovalError> {
    let place = |error: FieldError| FieldError::new(format!("/arguments{}", error.pointer), error.detail);
    let wrong: Vec<FieldError> = match function.map(|function| Schema::of_arguments(&function.spec.input_schema)) {
        _ if !arguments.is_object() => vec![FieldError::new("/arguments", "use a JSON object")],
        Some(Ok(schema)) => schema.check(arguments).into_iter().map(place).collect(),
        Some(Err(_)) | None => vec![FieldError::new("/arguments", "the function cannot be called any more")],
    };
    if wrong.is_empty() { Ok(()) } else { Err(ApprovalError::Invalid(wrong)) }
}
