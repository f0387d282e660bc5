//! Decisions about calls that wait for a person's word.

use agent_runtime::{
    Run,
    approvals::{self, Decide, Decision},
};
use axum::{extract::State, response::Response};
use domain::{CallId, RunId};
use serde::Deserialize;
use serde_json::Value;
use tenancy::keys::Scope;
use utoipa::ToSchema;

use crate::{
    Gateway, answer::Made, caller::Caller, idempotency::Once, json::Json, path::Named, problem::Refusal, routes::runs,
};

/// Whether a call may be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DecisionBody {
    decision: Decision,
    /// What the function gets in place of what the model asked with.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    arguments: Option<Value>,
    /// For the model, when the call is denied, and for the record.
    #[serde(default)]
    reason: Option<String>,
    /// Who decided, in your own words: a name, an address, an id.
    #[serde(default)]
    decided_by: Option<String>,
}

/// Allows one call of a run, with the arguments that it was asked with or with others, or denies it. The run goes on when
/// all its calls that wait are decided about. The same decision once more is answered alike; another is 409. Scope
/// `approvals:write`.
#[utoipa::path(
    post, path = "/v1/runs/{id}/tool-calls/{call}/decision", request_body = DecisionBody,
    responses((status = 200, body = Run))
)]
pub(crate) async fn decide(
    State(gateway): State<Gateway>,
    caller: Caller,
    once: Once,
    Named((run, call)): Named<(RunId, CallId)>,
    Json(body): Json<DecisionBody>,
) -> Result<Response, Refusal> {
    caller.require(Scope::ApprovalsWrite)?;
    let mut tx = caller.tenant().begin().await?;
    if let Some(first) = once.answered(&mut tx).await? {
        return Ok(first);
    }
    runs::seen(&mut tx, &caller, run).await?;
    let DecisionBody { decision, arguments, reason, decided_by } = body;
    let decide = Decide { decision, arguments, reason, decided_by, api_key: Some(caller.key) };
    let run = approvals::decide(&mut tx, run, call, decide, gateway.clock.now()).await?;
    let answer = once.commit(tx, Made::told(run)).await?;
    gateway.runtime.decided();
    Ok(answer)
}
