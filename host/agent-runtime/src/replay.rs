//! A recorded call, run again by another build of its tool: nothing leaves the house, nothing is stored but the bill.

use std::sync::Arc;

use agent_config::tools::{self, VersionRef};
use billing_meter::{
    Spend, Standing, prices,
    usage::{self, Cause},
};
use domain::{ApiKeyId, CallId};
use tenancy::{
    Tenant,
    idempotency::{Answer, Reservation},
    tenants,
};
use tool_api::Replay;

use crate::{
    AgentRuntime, commit, fit,
    load::share,
    recordings::{self, RecordingError},
    runs::RunError,
    spending,
};

impl AgentRuntime {
    /// Runs a recorded call on its recording. It takes the processor like any call, so it is billed like one, as usage
    /// of the tool; it is not listed among the tool calls. `once`: its answer is kept for whoever asks again.
    pub async fn replay(
        &self,
        tenant: &Tenant,
        call: CallId,
        version: VersionRef,
        api_key: Option<ApiKeyId>,
        once: Option<&Reservation>,
    ) -> Result<Replay, RecordingError> {
        let parts = &self.0.parts;
        let mut tx = tenant.begin().await?;
        let mut recorded = recordings::get(&mut tx, call).await?;
        if recorded.given.recording.truncated {
            return Err(RecordingError::Truncated);
        }
        let (_, version) = tools::callable(&mut tx, &recorded.tool, version).await?;
        let plan = tenants::get(&mut tx).await?.plan;
        // Held for and billed by this one, whatever is published meanwhile.
        let Standing { book, has_budgets: is_bounded } = prices::standing(&mut tx).await.map_err(RunError::from)?;
        drop(tx);
        fit::check(&version, &recorded.function, &recorded.arguments)?;
        // A plan may have become smaller since.
        recorded.given.limits = recorded.given.limits.min(plan.tool_limits);
        let (id, mut again) =
            (CallId::new(parts.ids.as_ref()), recorded.again(tenant.id(), version.version, share(&plan)));
        let user = recorded.given.context.external_user_id.clone();
        if is_bounded {
            let (tx, user) = (tenant.begin().await?, user.as_deref());
            again.limits = spending::hold_for_call(tx, id.uuid(), user, again.limits, &book, parts.clock.now()).await?;
        }
        let recording = Arc::new(std::mem::take(&mut recorded.given.recording));
        let replayed = match self.execute_again(tenant, again, recording).await {
            Ok(replayed) => replayed,
            Err(error) => {
                if is_bounded {
                    self.release(tenant, id.uuid()).await;
                }
                return Err(error.into());
            }
        };

        let cause = Cause {
            api_key_id: api_key,
            external_user_id: user,
            tool: Some(recorded.tool.to_string()),
            function: Some(recorded.function.to_string()),
            ..Cause::default()
        };
        let used = commit::call_usage(id, &replayed.finished.receipt, &cause);
        let mut tx = tenant.begin().await?;
        let now = parts.clock.now();
        usage::record(&mut tx, &book, &used, parts.ids.as_ref(), now).await.map_err(RunError::from)?;
        if is_bounded {
            let money = used.iter().map(|event| book.price(&event.used, None, None).amount).sum();
            spending::settle(&mut tx, id.uuid(), None, Spend { money, tokens: 0 }, parts.ids.as_ref(), now).await?;
        }
        let compared = recorded.compare(version.version, replayed);
        // With the bill: whoever asks again pays nothing.
        if let Some(reservation) = once {
            let body = serde_json::to_string(&compared).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
            let answer = Answer { status: 200, location: None, body };
            reservation.keep(&mut tx, &parts.master_key, &answer, now).await?;
        }
        tx.commit().await?;
        Ok(compared)
    }
}
