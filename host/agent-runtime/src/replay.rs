//! A recorded call, run again by another build of its tool: nothing leaves the house, nothing is stored but the bill.

use std::sync::Arc;

use agent_config::tools::{self, VersionRef};
use billing_meter::{
    prices,
    usage::{self, Cause},
};
use domain::{ApiKeyId, CallId};
use tenancy::{Tenant, tenants};
use tool_api::Replay;

use crate::{
    AgentRuntime, commit, fit,
    load::share,
    recordings::{self, RecordingError},
    runs::RunError,
};

impl AgentRuntime {
    /// Runs a recorded call on its recording. It takes the processor like any call, so it is billed like one, as usage
    /// of the tool; it is not listed among the tool calls.
    pub async fn replay(
        &self,
        tenant: &Tenant,
        call: CallId,
        version: VersionRef,
        api_key: Option<ApiKeyId>,
    ) -> Result<Replay, RecordingError> {
        let parts = &self.0.parts;
        let mut tx = tenant.begin().await?;
        let mut recorded = recordings::get(&mut tx, call).await?;
        if recorded.given.recording.truncated {
            return Err(RecordingError::Truncated);
        }
        let (_, version) = tools::callable(&mut tx, &recorded.tool, version).await?;
        let plan = tenants::get(&mut tx).await?.plan;
        drop(tx);
        fit::check(&version, &recorded.function, &recorded.arguments)?;
        // A plan may have become smaller since.
        recorded.given.limits = recorded.given.limits.min(plan.tool_limits);
        let again = recorded.again(tenant.id(), version.version, share(&plan));
        let recording = Arc::new(std::mem::take(&mut recorded.given.recording));
        let replayed = self.execute_again(tenant, again, recording).await?;

        let cause = Cause {
            api_key_id: api_key,
            external_user_id: recorded.given.context.external_user_id.clone(),
            tool: Some(recorded.tool.to_string()),
            function: Some(recorded.function.to_string()),
            ..Cause::default()
        };
        let used = commit::call_usage(CallId::new(parts.ids.as_ref()), &replayed.finished.receipt, &cause);
        let mut tx = tenant.begin().await?;
        let book = prices::current(&mut tx).await.map_err(RunError::from)?;
        let now = parts.clock.now();
        usage::record(&mut tx, &book, &used, parts.ids.as_ref(), now).await.map_err(RunError::from)?;
        tx.commit().await?;
        Ok(recorded.compare(version.version, replayed))
    }
}
