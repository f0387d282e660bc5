//! What a run did, step by step, as its developer wants to see it: sizes, times and costs; no prompt, no argument.

use std::collections::HashMap;

use domain::{Amount, CallId, Money, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use tenancy::TenantTx;

use crate::{
    events::RESUMED,
    runs::{self, Run, RunError, RunUsage},
    trace::Trace,
};

/// A run with its steps.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct RunDetail {
    #[serde(flatten)]
    pub run: Run,
    pub timeline: Vec<Step>,
    /// When another process went on with the run.
    pub resumes: Vec<Resume>,
}

/// One model call, and the tool calls it asked for.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Step {
    pub step: u32,
    /// `provider/name` of the model that answered.
    pub model: String,
    /// What the model was sent and what failed before it answered. Absent for steps of earlier releases.
    #[serde(flatten)]
    pub trace: Option<Trace>,
    pub usage: RunUsage,
    pub cost: Money,
    /// Bytes of the text that the model said.
    pub text_bytes: u32,
    pub tool_calls: Vec<CallId>,
    /// What became of each of `tool_calls`.
    pub calls: Vec<StepCall>,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
}

/// A call of a step.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct StepCall {
    pub id: CallId,
    pub tool: String,
    pub function: String,
    /// Bytes of the arguments as JSON.
    pub argument_bytes: u32,
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Absent when the call did not begin.
    #[serde(flatten)]
    pub ran: Option<Ran>,
    pub cost: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approved>,
}

/// What a call took, by its receipt.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ran {
    pub total_us: u64,
    pub fuel_used: u64,
    pub memory_peak_bytes: u64,
    /// All uses of capabilities, by `interface.function`.
    #[serde(default)]
    pub host_call_counts: std::collections::BTreeMap<String, u64>,
    /// More than 1: it was run again.
    pub attempt: u32,
}

/// How a call that needed an approval got one, or did not.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Approved {
    pub requested_at: Timestamp,
    /// `approve` or `deny`; absent when nobody decided in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
    /// Whoever decided changed the arguments.
    pub arguments_changed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Resume {
    /// 2 for the first process after the one that began.
    pub attempt: u32,
    /// The last event that counted; the run went on after it.
    pub restarts_after: u32,
    pub at: Timestamp,
}

/// A run and what it did.
pub async fn detail(tx: &mut TenantTx, id: RunId) -> Result<RunDetail, RunError> {
    let run = runs::get(tx, id).await?.ok_or(RunError::NotFound)?;
    let mut calls = calls(tx, &run).await?;
    let rows = sqlx::query!(
        r#"
        SELECT step, provider, model, input_tokens, cached_input_tokens, output_tokens, fuel, cost, text_bytes,
               trace AS "trace: Json<Trace>", started_at, ended_at
        FROM step
        WHERE tenant_id = $1 AND run_id = $2
        ORDER BY step
        "#,
        tx.tenant().uuid(),
        id.uuid(),
    )
    .fetch_all(tx.conn())
    .await?;
    let timeline = rows
        .into_iter()
        .map(|row| {
            let calls = calls.remove(&row.step).unwrap_or_default();
            Step {
                step: row.step.cast_unsigned(),
                model: format!("{}/{}", row.provider, row.model),
                trace: row.trace.map(|trace| trace.0),
                usage: RunUsage {
                    input_tokens: row.input_tokens.cast_unsigned(),
                    cached_input_tokens: row.cached_input_tokens.cast_unsigned(),
                    output_tokens: row.output_tokens.cast_unsigned(),
                    fuel: row.fuel.cast_unsigned(),
                },
                cost: Money { amount: Amount::rounded(row.cost), currency: run.cost.currency.clone() },
                text_bytes: row.text_bytes.cast_unsigned(),
                tool_calls: calls.iter().map(|call| call.id).collect(),
                calls,
                started_at: row.started_at.into(),
                ended_at: row.ended_at.into(),
            }
        })
        .collect();
    let resumes = resumes(tx, id).await?;
    Ok(RunDetail { run, timeline, resumes })
}

/// By the number of their step, in the order they were asked for.
async fn calls(tx: &mut TenantTx, run: &Run) -> Result<HashMap<i32, Vec<StepCall>>, RunError> {
    let rows = sqlx::query!(
        r#"
        SELECT c.step AS "step!", c.call_id, c.tool, c.function, octet_length(c.arguments::text) AS "argument_bytes!",
               c.status, c.outcome ->> 'code' AS code, c.receipt AS "receipt: Json<Ran>", c.price,
               a.requested_at AS "requested_at?", a.decision, a.decided_by, a.decided_at,
               a.decided_arguments IS NOT NULL AS "arguments_changed!"
        FROM tool_call c
        LEFT JOIN approval a ON a.tenant_id = c.tenant_id AND a.call_id = c.call_id
        WHERE c.tenant_id = $1 AND c.run_id = $2 AND c.step IS NOT NULL
        ORDER BY c.call_id
        "#,
        tx.tenant().uuid(),
        run.id.uuid(),
    )
    .fetch_all(tx.conn())
    .await?;
    let mut calls: HashMap<i32, Vec<StepCall>> = HashMap::new();
    for row in rows {
        let approval = row.requested_at.map(|requested_at| Approved {
            requested_at: requested_at.into(),
            decision: row.decision,
            decided_by: row.decided_by,
            decided_at: row.decided_at.map(Timestamp::from),
            arguments_changed: row.arguments_changed,
        });
        calls.entry(row.step).or_default().push(StepCall {
            id: row.call_id.into(),
            tool: row.tool,
            function: row.function,
            argument_bytes: row.argument_bytes.cast_unsigned(),
            status: row.status,
            code: row.code,
            ran: row.receipt.map(|receipt| receipt.0),
            cost: Money { amount: Amount::rounded(row.price), currency: run.cost.currency.clone() },
            approval,
        });
    }
    Ok(calls)
}

async fn resumes(tx: &mut TenantTx, run: RunId) -> Result<Vec<Resume>, RunError> {
    let resumes = sqlx::query_scalar!(
        r#"
        SELECT data AS "data: Json<Resume>" FROM run_event
        WHERE tenant_id = $1 AND run_id = $2 AND part = 0 AND type = $3
        ORDER BY seq
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        RESUMED,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(resumes.into_iter().map(|data| data.0).collect())
}
