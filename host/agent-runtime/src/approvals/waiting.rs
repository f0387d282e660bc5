//! What a run does about calls that wait: it asks, becomes a row, and later looks at what was said.

use std::collections::HashMap;

use agent_config::webhooks::EventKind;
use billing_meter::{Spend, holds};
use domain::{ApiKeyId, CallId, RunId, Timestamp};
use serde_json::json;
use tenancy::TenantTx;
use tool_api::{Outcome, Status};

use super::{Approval, Decision, PendingApproval};
use crate::{
    calls::NamedCall, drive::Driver, events, fault, load::Loaded, pending::Pending, runs::RunError, teller::Truth,
    webhooks,
};

/// What is stored of a call that waits, or waited.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) expires_at: Timestamp,
    pub(crate) approval: Option<Approval>,
}

/// A call that the run has to wait for.
pub(crate) struct Ask {
    call: NamedCall,
    expires_at: Timestamp,
    /// Nobody was asked before.
    is_new: bool,
}

/// A call with what was said of it.
pub(crate) fn named(turn: &Loaded, call: NamedCall) -> NamedCall {
    let approval = turn.approvals.get(&call.id).and_then(|asked| asked.approval.clone());
    NamedCall { approval, ..call }
}

/// The calls of a step that somebody has still to decide about. Calls whose arguments do not fit do not come to that: the
/// model hears of it at once.
pub(crate) fn wanted(turn: &Loaded, calls: &[NamedCall], now: Timestamp) -> Vec<Ask> {
    let ask = |call: &NamedCall| {
        let expires = turn.functions.checked(call).ok()?.approval?;
        match turn.approvals.get(&call.id) {
            None => Some(Ask { call: call.clone(), expires_at: now.plus(expires), is_new: true }),
            Some(Asked { approval: None, expires_at }) if *expires_at > now => {
                Some(Ask { call: call.clone(), expires_at: *expires_at, is_new: false })
            }
            Some(_) => None,
        }
    };
    calls.iter().filter_map(ask).collect()
}

/// What a call came to that may not be made. `None`: it may.
pub(crate) fn refused(turn: &Loaded, call: &NamedCall) -> Option<Outcome> {
    turn.functions.checked(call).ok()?.approval?;
    let (code, words) = match &call.approval {
        Some(Approval { decision: Decision::Approve, .. }) => return None,
        Some(Approval { decision: Decision::Deny, reason: Some(reason), .. }) => {
            ("approval.denied", format!("a person did not allow this call: {reason}"))
        }
        Some(Approval { decision: Decision::Deny, reason: None, .. }) => {
            ("approval.denied", "a person did not allow this call".to_owned())
        }
        None => ("approval.expired", "nobody allowed this call in time, so it was not made".to_owned()),
    };
    Some(Outcome::failed(Status::Denied, code, words))
}

/// The run becomes a row that waits. It is told of, and left.
pub(crate) async fn wait(
    driver: &Driver<'_>,
    turn: &Loaded,
    pending: &Pending,
    used: Spend,
    asks: &[Ask],
) -> Result<(), RunError> {
    let now = driver.runtime.0.parts.clock.now();
    let deadline = turn.run.private.deadline.unwrap_or(now);
    let wake_at = asks.iter().map(|ask| ask.expires_at).min().unwrap_or(deadline).min(deadline);
    let new: Vec<&Ask> = asks.iter().filter(|ask| ask.is_new).collect();
    let truths: Vec<Truth> = new
        .iter()
        .map(|Ask { call, expires_at, .. }| {
            let asked = PendingApproval {
                id: call.id,
                tool: call.tool.clone(),
                function: call.function.clone(),
                arguments: call.asked.arguments.clone(),
                expires_at: *expires_at,
            };
            Truth::new("approval.requested", json!(asked))
        })
        .collect();
    let pending = pending.clone().told().stored()?;
    let mut tx = driver.tenant.begin().await?;
    let touched = sqlx::query!(
        r#"
        UPDATE run SET status = 'waiting_for_approval', pending = $5, leased_by = NULL, leased_until = NULL,
                       wake_at = CASE WHEN cancel_requested THEN $6 ELSE $7::timestamptz END
        WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
        "#,
        tx.tenant().uuid(),
        turn.run.id.uuid(),
        driver.lease.worker,
        driver.lease.fence(),
        pending,
        now.offset(),
        wake_at.offset(),
    )
    .execute(tx.conn())
    .await?;
    if touched.rows_affected() != 1 {
        return Err(RunError::Fenced);
    }
    insert(&mut tx, turn.run.id, &new, now).await?;
    events::append(&mut tx, turn.run.id, &driver.teller.to_store(&truths)).await?;
    let ids = &*driver.runtime.0.parts.ids;
    for asked in &truths {
        let mut data = asked.told.clone();
        data["run_id"] = json!(turn.run.id);
        data["conversation_id"] = json!(turn.run.conversation_id);
        webhooks::notify(&mut tx, EventKind::ApprovalRequested, Some(turn.run.id), data, ids, now).await?;
    }
    if let Some(until) = turn.purse.owed_until() {
        if turn.pending.is_none() && holds::lapsed(&mut tx, turn.run.id.uuid()).await? {
            return Err(RunError::Fenced);
        }
        // Its step is settled when somebody has decided, or time has.
        holds::keep(&mut tx, turn.run.id.uuid(), used, until).await?;
    }
    fault::point("approval.committing");
    tx.commit().await?;
    fault::point("approval.committed");
    driver.teller.stored(truths);
    Ok(())
}

async fn insert(tx: &mut TenantTx, run: RunId, asks: &[&Ask], now: Timestamp) -> Result<(), RunError> {
    sqlx::query!(
        r#"
        INSERT INTO approval (tenant_id, run_id, requested_at, call_id, tool, function, arguments, expires_at)
        SELECT $1, $2, $3, call_id, tool, function, arguments, expires_at
        FROM unnest($4::uuid[], $5::text[], $6::text[], $7::jsonb[], $8::timestamptz[])
             AS a (call_id, tool, function, arguments, expires_at)
        "#,
        tx.tenant().uuid(),
        run.uuid(),
        now.offset(),
        &asks.iter().map(|ask| ask.call.id.uuid()).collect::<Vec<_>>(),
        &asks.iter().map(|ask| ask.call.tool.clone()).collect::<Vec<_>>(),
        &asks.iter().map(|ask| ask.call.function.clone()).collect::<Vec<_>>(),
        &asks.iter().map(|ask| ask.call.asked.arguments.clone()).collect::<Vec<_>>(),
        &asks.iter().map(|ask| ask.expires_at.offset()).collect::<Vec<_>>(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What is stored of these calls.
pub(crate) async fn of_calls(tx: &mut TenantTx, calls: &[CallId]) -> Result<HashMap<CallId, Asked>, RunError> {
    let rows = sqlx::query!(
        r#"
        SELECT call_id, expires_at, decision, decided_arguments, reason, decided_by, api_key_id, decided_at
        FROM approval
        WHERE tenant_id = $1 AND call_id = ANY($2)
        "#,
        tx.tenant().uuid(),
        &calls.iter().map(|call| call.uuid()).collect::<Vec<_>>(),
    )
    .fetch_all(tx.conn())
    .await?;
    let asked = rows.into_iter().map(|row| {
        let decision = row.decision.as_deref().and_then(Decision::parse);
        let approval = decision.zip(row.decided_at).map(|(decision, decided_at)| Approval {
            decision,
            decided_by: row.decided_by,
            api_key_id: row.api_key_id.map(ApiKeyId::from),
            reason: row.reason,
            arguments: row.decided_arguments,
            decided_at: decided_at.into(),
        });
        (row.call_id.into(), Asked { expires_at: row.expires_at.into(), approval })
    });
    Ok(asked.collect())
}
