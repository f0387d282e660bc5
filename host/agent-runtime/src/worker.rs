//! What a process does for its runs besides driving them: it claims, renews, cancels and gives up.

use std::time::Duration;

use billing_meter::{budgets, holds};
use conversation_store::conversations;
use domain::{ConversationId, Kind, Problem, RunId};
use futures::{StreamExt, stream};
use serde_json::json;
use tenancy::{DbError, TakenRun, Tenant, hints};
use tokio_util::sync::CancellationToken;

use crate::{
    AgentRuntime, Lease, Live,
    drive::Beginning,
    events::{self, NewEvent, RESUME_GAP},
    fault, line,
    runs::{self, End, Run, RunError, RunFilter, RunStatus, Turn},
    webhooks,
};

/// How long a cancellation waits for the run to have ended, so that its answer tells the end.
const CANCEL_WAIT: Duration = Duration::from_secs(5);
/// Runs that are given back at the same moment: their commits share a flush.
const GIVEN_BACK_AT_ONCE: usize = 16;
/// Runs for each of its places that a process drives, and takes no more abandoned ones: its own, and those of one process
/// that died beside it. More would be too much at once, and would cost each of them an attempt.
const DRIVEN_PER_PLACE: usize = 2;
/// Pause before the database is listened to again.
const HEAR_AGAIN: Duration = Duration::from_secs(1);

/// What became of a lease.
enum Renewed {
    Running {
        cancel_requested: bool,
    },
    /// The run has ended, or waits.
    Left,
    /// The run is another's, or was erased.
    Lost,
}

impl AgentRuntime {
    /// Takes queued and abandoned runs, until told to stop; then waits until no run is driven here.
    pub async fn work(&self, shutdown: CancellationToken) {
        let look = async {
            let mut poll = tokio::time::interval(self.0.parts.settings.poll);
            poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let looked = tokio::select! {
                    () = shutdown.cancelled() => break,
                    _ = poll.tick() => self.look_for_work().await,
                    () = self.0.places.opened() => self.fill_places().await,
                };
                if let Err(error) = looked {
                    tracing::warn!(error = %error, "could not look for work");
                }
            }
        };
        tokio::join!(look, self.hear(&shutdown));
        self.0.tracker.close();
        self.0.tracker.wait().await;
        if let Some(relay) = &self.0.parts.settings.relay {
            relay.stop().await;
        }
    }

    /// Takes what there is to take, once.
    pub async fn look_for_work(&self) -> Result<(), RunError> {
        let parts = &self.0.parts;
        parts.db.wake_runs(parts.clock.now()).await?;
        self.take_abandoned().await?;
        self.look_at_queues().await?;
        self.fill_places().await
    }

    /// Goes on with runs whose process went silent, from their last committed step. They were accepted before whatever is
    /// queued, and wait for no place. Those that are too many are another process's, or a later look's: while there are
    /// any, nothing that is queued begins here.
    async fn take_abandoned(&self) -> Result<(), RunError> {
        let parts = &self.0.parts;
        // One moment for all: a run that is taken here is not seen again.
        let (now, until) = (parts.clock.now(), parts.clock.now().plus(parts.settings.lease));
        while self.live().len() < DRIVEN_PER_PLACE * parts.settings.concurrent_runs {
            let Some((taken, attempt)) = parts.db.take_abandoned_run(self.0.worker, now, until).await? else {
                return Ok(());
            };
            fault::point("run.claimed");
            let run = taken.run;
            if let Some(live) = self.live_run(run)
                && taken.fence == live.lease.fence() + 1
            {
                // Ours, and late to renew: nobody else had it, and it goes on under the new number. Had somebody, what is
                // driven here knows nothing of what they sent: it stays fenced, and the run is driven anew.
                tracing::warn!(run.id = %run, "a run of this process was late to renew");
                live.lease.taken_again(taken.fence);
                continue;
            }
            tracing::warn!(tenant.id = %taken.tenant.id(), run.id = %run, attempt, "a run goes on here");
            let place = self.0.places.take(taken.tenant.id());
            self.drive_in_background(taken, Beginning::Abandoned { attempt }, place);
        }
        Ok(())
    }

    /// Gives back what this process still drives, before it exits: another goes on with it at once, from the last
    /// committed step. That is no attempt that failed.
    pub async fn let_go(&self) {
        let left: Vec<(RunId, Live)> = self.live().iter().map(|(run, live)| (*run, live.clone())).collect();
        let giving = left.into_iter().map(|(run, live)| async move {
            if let Err(error) = self.give_back(run, &live).await {
                tracing::warn!(run.id = %run, error = %error, "a run was not given back; its lease runs out");
            }
        });
        stream::iter(giving).buffer_unordered(GIVEN_BACK_AT_ONCE).collect::<()>().await;
    }

    /// One that is another's by now is left to it.
    pub(crate) async fn give_back(&self, run: RunId, live: &Live) -> Result<(), RunError> {
        let mut tx = live.tenant.begin().await?;
        sqlx::query!(
            r#"
            UPDATE run SET leased_until = 'epoch', fence = fence + 1, attempts = greatest(attempts - 1, 0)
            WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            live.lease.worker,
            live.lease.fence(),
        )
        .execute(tx.conn())
        .await?;
        Ok(tx.commit().await?)
    }

    /// Ends a run that is this process's and that nobody drives any more. What the user says in it stays said. A reply that
    /// was kept is neither said nor billed: whatever kept the run from being driven may be the reply itself.
    pub(crate) async fn end_unled(
        &self,
        tenant: &Tenant,
        run: RunId,
        lease: &Lease,
        end: &End,
    ) -> Result<(), RunError> {
        match self.speak(tenant, run, lease).await {
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            // It must not keep the run from its end, and stays with it.
            Err(error) => {
                tracing::error!(run.id = %run, error = %error, cause = ?error, "what was said in line is no message")
            }
            Ok(()) => {}
        }
        let now = self.0.parts.clock.now();
        let mut tx = tenant.begin().await?;
        let error = end.error.as_ref();
        let ended = sqlx::query!(
            r#"
            WITH before AS (
                SELECT pending IS NOT NULL AS has_pending FROM run
                WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
                FOR UPDATE
            )
            UPDATE run SET status = $5, stop_reason = $6, error_code = $7, error_detail = $8, ended_at = $9, pending = NULL
            FROM before
            WHERE tenant_id = $1 AND run_id = $2
            RETURNING has_pending AS "has_pending!"
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            lease.worker,
            lease.fence(),
            end.status.as_str(),
            end.reason.as_str(),
            error.map(|error| error.code.as_str()),
            error.map(|error| error.detail.as_str()),
            now.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        if let Some(ended) = ended {
            if ended.has_pending {
                tracing::error!(run.id = %run, "the reply that was kept for a run is lost, and is not billed");
            }
            // Whoever drove it may have told of more than was stored.
            let seq = events::last_seq(&mut tx, run).await? + RESUME_GAP;
            let event = NewEvent::Event { seq, kind: end.status.event(), data: json!({}) };
            events::append(&mut tx, run, &[event]).await?;
            webhooks::run_ended(&mut tx, run, end.status, None, &*self.0.parts.ids, now).await?;
            holds::release(&mut tx, run.uuid()).await?;
        }
        Ok(tx.commit().await?)
    }

    /// What the user says in a run becomes messages, if the run was in line and has not said it yet.
    async fn speak(&self, tenant: &Tenant, run: RunId, lease: &Lease) -> Result<(), RunError> {
        let parts = &self.0.parts;
        let mut tx = tenant.begin().await?;
        let run = runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?;
        line::speak(&mut tx, &run, lease, &*parts.ids, parts.clock.now()).await?;
        Ok(tx.commit().await?)
    }

    /// Renews a run's lease while it is driven. Returns when the run is no longer this process's.
    pub(crate) async fn keep_lease(&self, tenant: &Tenant, run: RunId, live: &Live) -> Result<(), RunError> {
        let parts = &self.0.parts;
        let mut held_until = parts.clock.now().plus(parts.settings.lease);
        loop {
            tokio::time::sleep(parts.settings.heartbeat).await;
            let until = parts.clock.now().plus(parts.settings.lease);
            match self.renew(tenant, run, &live.lease, until).await {
                Ok(Renewed::Running { cancel_requested }) => {
                    held_until = until;
                    if cancel_requested {
                        live.cancel.cancel();
                    }
                }
                // Whoever drives it is about to see that.
                Ok(Renewed::Left) => std::future::pending().await,
                Ok(Renewed::Lost) => return Err(RunError::Fenced),
                // The database may be away for a moment; the lease says for how long that is bearable.
                Err(error) if parts.clock.now() > held_until => return Err(error),
                Err(error) => tracing::warn!(run.id = %run, error = %error, "a lease could not be renewed yet"),
            }
        }
    }

    async fn renew(
        &self,
        tenant: &Tenant,
        run: RunId,
        lease: &Lease,
        until: domain::Timestamp,
    ) -> Result<Renewed, RunError> {
        let mut tx = tenant.begin().await?;
        // As a subquery sees it, the row is as it was: this tells a run that was left from one that was lost.
        let row = sqlx::query!(
            r#"
            WITH renewed AS (
                UPDATE run SET leased_until = $5
                WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
                RETURNING cancel_requested
            )
            SELECT (SELECT cancel_requested FROM renewed) AS cancel_requested, fence, status FROM run
            WHERE tenant_id = $1 AND run_id = $2
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            lease.worker,
            lease.fence(),
            until.offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        if row.as_ref().is_some_and(|row| row.cancel_requested.is_some()) {
            holds::renew(&mut tx, run.uuid(), until).await?;
        }
        tx.commit().await?;
        Ok(match row {
            Some(row) => match row.cancel_requested {
                Some(cancel_requested) => Renewed::Running { cancel_requested },
                None if row.fence == lease.fence() && row.status != "running" => Renewed::Left,
                None => Renewed::Lost,
            },
            None => Renewed::Lost,
        })
    }

    /// A run with what it said and did so far.
    pub async fn turn(&self, tenant: &Tenant, run: RunId) -> Result<Turn, RunError> {
        let mut tx = tenant.begin().await?;
        runs::turn(&mut tx, run).await
    }

    /// Asks a run to stop, and waits a little until it has. A run that has ended stays as it is.
    pub async fn cancel(&self, tenant: &Tenant, run: RunId) -> Result<Run, RunError> {
        let parts = &self.0.parts;
        let now = parts.clock.now();
        let mut tx = tenant.begin().await?;
        if line::leave(&mut tx, run, &*parts.ids, now).await? {
            tx.commit().await?;
            return Ok(self.turn(tenant, run).await?.run);
        }
        // A run that nobody drives is driven here, to its end: what it has used is still to be committed.
        let found = sqlx::query!(
            r#"
            WITH before AS (
                SELECT status <> 'running' AS is_idle FROM run
                WHERE tenant_id = $1 AND run_id = $2 AND status IN ('queued', 'running', 'waiting_for_approval')
                FOR UPDATE
            )
            UPDATE run SET
                cancel_requested = true, status = 'running',
                leased_by = CASE WHEN is_idle THEN $3 ELSE leased_by END,
                leased_until = CASE WHEN is_idle THEN $4 ELSE leased_until END,
                fence = CASE WHEN is_idle THEN fence + 1 ELSE fence END
            FROM before
            WHERE tenant_id = $1 AND run_id = $2
            RETURNING is_idle AS "is_idle!", fence
            "#,
            tx.tenant().uuid(),
            run.uuid(),
            self.0.worker,
            now.plus(parts.settings.lease).offset(),
        )
        .fetch_optional(tx.conn())
        .await?;
        let live = self.live_run(run);
        if found.as_ref().is_some_and(|found| !found.is_idle) && live.is_none() {
            hints::send_cancelled(&mut tx, run).await?;
        }
        tx.commit().await?;
        match (found, live) {
            (Some(found), _) if found.is_idle => {
                let taken = TakenRun { tenant: tenant.clone(), run, fence: found.fence };
                self.drive_in_background(taken, Beginning::Queued, ());
            }
            (Some(_), Some(live)) => live.cancel.cancel(),
            _ => {}
        }
        Ok(self.wait_until(tenant, run, CANCEL_WAIT, RunStatus::is_terminal).await?.run)
    }

    /// Hears of runs that were cancelled in other processes, until told to stop. Without it they hear of that when they
    /// renew.
    async fn hear(&self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            let heard = async {
                let mut hints = self.0.parts.db.hints().await?;
                loop {
                    if let Some(live) = hints.cancelled().await?.and_then(|run| self.live_run(run)) {
                        live.cancel.cancel();
                    }
                }
            };
            let heard: Option<Result<(), DbError>> = shutdown.run_until_cancelled(heard).await;
            if let Some(Err(error)) = heard {
                tracing::warn!(error = %error, "cancellations of other processes are not heard at once");
                shutdown.run_until_cancelled(tokio::time::sleep(HEAR_AGAIN)).await;
            }
        }
    }

    /// Cancels what runs in it, then erases a conversation for good. What it cost stays on the bill.
    pub async fn delete_conversation(&self, tenant: &Tenant, id: ConversationId) -> Result<(), RunError> {
        let mut tx = tenant.begin().await?;
        let filter = RunFilter { conversation: Some(id), ..RunFilter::default() };
        let newest = runs::list(&mut tx, &filter, Default::default()).await?.data;
        drop(tx);
        // The newest first: those in line do not begin when the one that is driven has ended.
        for run in newest.iter().filter(|run| !run.status.is_terminal()) {
            self.cancel(tenant, run.id).await?;
        }
        let mut tx = tenant.begin().await?;
        // In the order in which a step's commit locks: the run, then the conversation.
        let runs = sqlx::query_scalar!(
            "SELECT run_id FROM run WHERE tenant_id = $1 AND conversation_id = $2 FOR UPDATE",
            tx.tenant().uuid(),
            id.uuid(),
        )
        .fetch_all(tx.conn())
        .await?;
        conversations::delete(&mut tx, id).await?;
        for run in newest.iter().filter(|run| !run.status.is_terminal()) {
            holds::release(&mut tx, run.id.uuid()).await?;
        }
        budgets::forget(&mut tx, id, runs.into_iter().map(RunId::from)).await?;
        Ok(tx.commit().await?)
    }
}
