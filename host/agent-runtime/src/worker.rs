//! What a process does for its runs besides driving them: it claims, renews, cancels, gives up, and tells.

use std::time::Duration;

use conversation_store::conversations;
use domain::{ConversationId, RunId};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde_json::json;
use tenancy::Tenant;
use tokio_util::sync::CancellationToken;

use crate::{
    AgentRuntime,
    events::{self, EventCursor, NewEvent, RunEvent},
    feed::Told,
    runs::{self, End, Run, RunError, RunFilter, StopReason, Turn},
};

/// How often a run that another process drives is looked at for those who follow it here.
const FOLLOW_POLL: Duration = Duration::from_millis(250);
/// How long a cancellation waits for the run to have ended, so that its answer tells the end.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

impl AgentRuntime {
    /// Claims queued runs, ends abandoned ones, until told to stop; then waits until no run is driven here.
    pub async fn work(&self, shutdown: CancellationToken) {
        let mut poll = tokio::time::interval(self.0.parts.settings.poll);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = poll.tick() => {}
            }
            if let Err(error) = self.look_for_work().await {
                tracing::warn!(error = %error, "could not look for work");
            }
        }
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// Takes what there is to take, once.
    pub async fn look_for_work(&self) -> Result<(), RunError> {
        let parts = &self.0.parts;
        let lease = || (parts.clock.now(), parts.clock.now().plus(parts.settings.lease));
        while let Ok(permit) = self.0.capacity.clone().try_acquire_owned() {
            let (now, until) = lease();
            let Some((tenant, run)) = parts.db.claim_run(self.0.worker, now, until).await? else { break };
            self.drive_in_background(tenant, run, None, permit);
        }
        loop {
            let (now, until) = lease();
            let Some((tenant, run)) = parts.db.claim_expired_run(self.0.worker, now, until).await? else { break };
            self.interrupt(&tenant, run).await?;
        }
        Ok(())
    }

    /// A run whose process died: what was committed stays, the rest never was.
    async fn interrupt(&self, tenant: &Tenant, run: RunId) -> Result<(), RunError> {
        if let Some(live) = self.live_run(run) {
            // Ours, and late to renew: it learns that it still holds the lease.
            tracing::warn!(run.id = %run, stalled = !live.cancel.is_cancelled(), "a run of this process was late to renew");
            return Ok(());
        }
        let words =
            "the process that drove the run ended; the conversation keeps every finished step: send the message again";
        let end = End::failed(StopReason::Interrupted, "run.interrupted", words);
        self.end_unled(tenant, run, &end).await?;
        tracing::warn!(tenant.id = %tenant.id(), run.id = %run, "an interrupted run was ended");
        Ok(())
    }

    /// Ends a run that nobody drives and whose lease, if it had one, is ours.
    pub(crate) async fn end_unled(&self, tenant: &Tenant, run: RunId, end: &End) -> Result<(), RunError> {
        let now = self.0.parts.clock.now();
        let mut tx = tenant.begin().await?;
        let error = end.error.as_ref();
        let touched = sqlx::query!(
            r#"
            UPDATE run SET status = $4, stop_reason = $5, error_code = $6, error_detail = $7, ended_at = $8
            WHERE tenant_id = $1 AND run_id = $2
              AND (status = 'queued' OR (status = 'running' AND leased_by = $3))
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            self.0.worker,
            end.status.as_str(),
            end.reason.as_str(),
            error.map(|error| error.code.as_str()),
            error.map(|error| error.detail.as_str()),
            now.offset(),
        )
        .execute(tx.conn())
        .await?;
        if touched.rows_affected() == 1 {
            let seq = events::last_seq(&mut tx, run).await? + 1;
            let event = NewEvent::Event { seq, kind: end.status.event(), data: json!({}) };
            events::append(&mut tx, run, &[event]).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Renews a run's lease while it is driven. Returns when the run is no longer this process's.
    pub(crate) async fn keep_lease(
        &self,
        tenant: &Tenant,
        run: RunId,
        cancel: &CancellationToken,
    ) -> Result<(), RunError> {
        let parts = &self.0.parts;
        let mut held_until = parts.clock.now().plus(parts.settings.lease);
        loop {
            tokio::time::sleep(parts.settings.heartbeat).await;
            let until = parts.clock.now().plus(parts.settings.lease);
            match self.renew(tenant, run, until).await {
                Ok(Some(cancel_requested)) => {
                    held_until = until;
                    if cancel_requested {
                        cancel.cancel();
                    }
                }
                Ok(None) => return Err(RunError::Fenced),
                // The database may be away for a moment; the lease says for how long that is bearable.
                Err(error) if parts.clock.now() > held_until => return Err(error),
                Err(error) => tracing::warn!(run.id = %run, error = %error, "a lease could not be renewed yet"),
            }
        }
    }

    /// `None` when the lease is another's; else whether the run is to be cancelled.
    async fn renew(&self, tenant: &Tenant, run: RunId, until: domain::Timestamp) -> Result<Option<bool>, RunError> {
        let mut tx = tenant.begin().await?;
        let cancel_requested = sqlx::query_scalar!(
            r#"
            UPDATE run SET leased_until = $4
            WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND status = 'running'
            RETURNING cancel_requested
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            self.0.worker,
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        Ok(cancel_requested)
    }

    /// A run with what it said and did so far.
    pub async fn turn(&self, tenant: &Tenant, run: RunId) -> Result<Turn, RunError> {
        let mut tx = tenant.begin().await?;
        runs::turn(&mut tx, run).await
    }

    /// Waits until the run has ended, `limit` at most; `run.status` tells which.
    pub async fn wait(&self, tenant: &Tenant, run: RunId, limit: Duration) -> Result<Turn, RunError> {
        let ended = async {
            if let Some(live) = self.live_run(run) {
                live.feed.closed().await;
            }
            loop {
                let mut tx = tenant.begin().await?;
                if runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?.status.is_terminal() {
                    return Ok::<(), RunError>(());
                }
                drop(tx);
                tokio::time::sleep(FOLLOW_POLL).await;
            }
        };
        if let Ok(ended) = tokio::time::timeout(limit, ended).await {
            ended?;
        }
        self.turn(tenant, run).await
    }

    /// The run's events after a cursor: from memory while it is driven here, else from the database. Ends with the
    /// terminal event.
    pub async fn follow(
        &self,
        tenant: &Tenant,
        run: RunId,
        after: EventCursor,
    ) -> Result<BoxStream<'static, Result<RunEvent, RunError>>, RunError> {
        let mut tx = tenant.begin().await?;
        runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?;
        drop(tx);
        let follower =
            Follower { runtime: self.clone(), tenant: tenant.clone(), run, cursor: after, read: 0, ended: false };
        let batches = stream::unfold(follower, |mut follower| async move {
            if follower.ended {
                return None;
            }
            let batch = match follower.next().await {
                Ok(events) => events.into_iter().map(Ok).collect(),
                Err(error) => {
                    follower.ended = true;
                    vec![Err(error)]
                }
            };
            Some((stream::iter(batch), follower))
        });
        Ok(batches.flatten().boxed())
    }

    /// Asks a run to stop, and waits a little until it has. A run that has ended stays as it is.
    pub async fn cancel(&self, tenant: &Tenant, run: RunId) -> Result<Run, RunError> {
        let mut tx = tenant.begin().await?;
        let found = sqlx::query_scalar!(
            r#"
            UPDATE run SET cancel_requested = true
            WHERE tenant_id = $1 AND run_id = $2 AND status IN ('queued', 'running', 'waiting_for_approval')
            RETURNING status
            "#,
            tx.tenant().uuid(),
            run.uuid(),
        )
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        match found.as_deref() {
            Some("queued") => self.end_unled(tenant, run, &End::cancelled()).await?,
            Some(_) => {
                if let Some(live) = self.live_run(run) {
                    live.cancel.cancel();
                }
            }
            None => {}
        }
        Ok(self.wait(tenant, run, CANCEL_WAIT).await?.run)
    }

    /// Cancels what runs in it, then erases a conversation for good. What it cost stays on the bill.
    pub async fn delete_conversation(&self, tenant: &Tenant, id: ConversationId) -> Result<(), RunError> {
        let mut tx = tenant.begin().await?;
        let filter = RunFilter { conversation: Some(id), ..RunFilter::default() };
        let newest = runs::list(&mut tx, &filter, Default::default()).await?.data;
        drop(tx);
        if let Some(run) = newest.iter().find(|run| !run.status.is_terminal()) {
            self.cancel(tenant, run.id).await?;
        }
        let mut tx = tenant.begin().await?;
        // In the order in which a step's commit locks: the run, then the conversation.
        sqlx::query_scalar!(
            "SELECT run_id FROM run WHERE tenant_id = $1 AND conversation_id = $2 FOR UPDATE",
            tx.tenant().uuid(),
            id.uuid(),
        )
        .fetch_all(tx.conn())
        .await?;
        conversations::delete(&mut tx, id).await?;
        Ok(tx.commit().await?)
    }
}

/// One reader of a run's events.
struct Follower {
    runtime: AgentRuntime,
    tenant: Tenant,
    run: RunId,
    cursor: EventCursor,
    /// Items of the feed that were seen.
    read: usize,
    ended: bool,
}

impl Follower {
    /// The next events; none when there is nothing new yet.
    async fn next(&mut self) -> Result<Vec<RunEvent>, RunError> {
        let events = match self.runtime.live_run(self.run) {
            Some(live) => match live.feed.read(&mut self.read, self.cursor).await {
                Told::Events(events) => events,
                Told::Closed => self.stored().await?,
            },
            None => self.stored().await?,
        };
        if let Some(last) = events.last() {
            self.cursor = last.id();
            self.ended |= last.is_terminal();
        }
        Ok(events)
    }

    async fn stored(&mut self) -> Result<Vec<RunEvent>, RunError> {
        let mut tx = self.tenant.begin().await?;
        let mut events = events::read(&mut tx, self.run, self.cursor).await?;
        match events.last_mut() {
            Some(last) if last.is_terminal() => last.data = json!(runs::turn(&mut tx, self.run).await?),
            Some(_) => {}
            None => {
                let status = runs::get(&mut tx, self.run).await?.ok_or(RunError::NotFound)?.status;
                if status.is_terminal() {
                    self.ended = true;
                    let last = events::last_seq(&mut tx, self.run).await?;
                    if self.cursor.seq > last {
                        // The reader saw events live that were never committed. The end it has not seen.
                        let data = json!(runs::turn(&mut tx, self.run).await?);
                        let kind = status.event().to_owned();
                        return Ok(vec![RunEvent { seq: last, offset: None, kind, data }]);
                    }
                    return Ok(events);
                }
                drop(tx);
                tokio::time::sleep(FOLLOW_POLL).await;
            }
        }
        Ok(events)
    }
}
