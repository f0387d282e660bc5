//! Readers of a run's events: each gets all that counts, in order, once, wherever the run is driven and whoever drives it.

use std::{sync::Arc, time::Duration};

use domain::RunId;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use serde_json::json;
use tenancy::Tenant;

use crate::{
    AgentRuntime,
    awaited::Seat,
    events::{self, EventCursor, RunEvent},
    feed::{Feed, Told},
    runs::{self, RunError, RunStatus, Turn},
};

/// How soon a run that another process drives is looked at again for those who follow it here; doubled while there is
/// nothing new.
const POLL_FIRST: Duration = Duration::from_millis(250);
/// And how late at most.
const POLL_LAST: Duration = Duration::from_secs(1);

impl AgentRuntime {
    /// The run's events after a cursor: from memory while it is driven here, from whoever drives it where processes can
    /// hear each other, else from the database. Ends with the terminal event.
    pub async fn follow(
        &self,
        tenant: &Tenant,
        run: RunId,
        after: EventCursor,
    ) -> Result<BoxStream<'static, Result<RunEvent, RunError>>, RunError> {
        let mut tx = tenant.begin().await?;
        runs::get(&mut tx, run).await?.ok_or(RunError::NotFound)?;
        drop(tx);
        Ok(self.follow_known(tenant, run, after))
    }

    /// The same of a run that is known to be the tenant's.
    pub fn follow_known(
        &self,
        tenant: &Tenant,
        run: RunId,
        after: EventCursor,
    ) -> BoxStream<'static, Result<RunEvent, RunError>> {
        let follower = Follower {
            runtime: self.clone(),
            tenant: tenant.clone(),
            run,
            cursor: after,
            feed: None,
            read: 0,
            poll: POLL_FIRST,
            seat: Arc::new(self.0.awaited.seat(run)),
            ended: false,
        };
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
        batches.flatten().boxed()
    }

    /// Waits until the run has ended or waits for an approval, `limit` at most; `run.status` tells which.
    pub async fn wait(&self, tenant: &Tenant, run: RunId, limit: Duration) -> Result<Turn, RunError> {
        let rests = |status: RunStatus| status.is_terminal() || status == RunStatus::WaitingForApproval;
        self.wait_until(tenant, run, limit, rests).await
    }

    pub(crate) async fn wait_until(
        &self,
        tenant: &Tenant,
        run: RunId,
        limit: Duration,
        is_it: impl Fn(RunStatus) -> bool,
    ) -> Result<Turn, RunError> {
        let look = async || {
            if let Some(live) = self.live_run(run)
                && let Some(turn) = live.feed.closed().await
            {
                return Some(Ok(turn));
            }
            let turn = self.turn(tenant, run).await;
            turn.map(|turn| is_it(turn.run.status).then_some(turn)).transpose()
        };
        let ended = async {
            let (seat, mut poll) = (self.0.awaited.seat(run), POLL_FIRST);
            loop {
                if let Some(turn) = seat.look(Box::pin(look()), poll).await {
                    return turn;
                }
                poll = (poll * 2).min(POLL_LAST);
            }
        };
        match tokio::time::timeout(limit, ended).await {
            Ok(turn) => turn,
            Err(_) => self.turn(tenant, run).await,
        }
    }
}

/// One reader.
struct Follower {
    runtime: AgentRuntime,
    tenant: Tenant,
    run: RunId,
    cursor: EventCursor,
    /// The feed that is read, and how many of its items were: a run that is driven here again has another one.
    feed: Option<Arc<Feed>>,
    read: usize,
    poll: Duration,
    seat: Arc<Seat>,
    ended: bool,
}

impl Follower {
    /// The next events; none when there is nothing new yet.
    async fn next(&mut self) -> Result<Vec<RunEvent>, RunError> {
        let (seat, poll) = (self.seat.clone(), self.poll);
        // In a box: a silent stream would hold the room for it twice.
        let look = Box::pin(self.look()).map(Result::transpose);
        seat.look(look, poll).await.transpose().map(Option::unwrap_or_default)
    }

    /// `None`: nothing yet, and nothing was waited for.
    async fn look(&mut self) -> Result<Option<Vec<RunEvent>>, RunError> {
        let (mut events, has_waited) = match self.runtime.live_run(self.run) {
            Some(live) => (self.told(live.feed).await, false),
            None => self.heard().await,
        };
        if events.is_empty() {
            // In a box of its own: whoever waits for what is told holds no room for what is read.
            events = Box::pin(self.stored()).await?;
        }
        match events.last() {
            Some(last) => {
                self.cursor = last.id();
                self.ended |= last.is_terminal();
                self.poll = POLL_FIRST;
            }
            None if self.ended || has_waited => {}
            None => {
                self.poll = (self.poll * 2).min(POLL_LAST);
                return Ok(None);
            }
        }
        Ok(Some(events))
    }

    /// From the feed; nothing when that has ended, or begins too late for this reader.
    async fn told(&mut self, feed: Arc<Feed>) -> Vec<RunEvent> {
        if !self.feed.as_ref().is_some_and(|known| Arc::ptr_eq(known, &feed)) {
            (self.feed, self.read) = (Some(feed.clone()), 0);
        }
        match feed.read(&mut self.read, self.cursor).await {
            Told::Events(events) => events,
            Told::Behind | Told::Closed => Vec::new(),
        }
    }

    /// From another process, and whether that was waited for in vain. It may die, or lose what it says: the database is
    /// looked at whatever is heard.
    async fn heard(&mut self) -> (Vec<RunEvent>, bool) {
        let mirror = self.runtime.0.parts.settings.relay.as_ref().and_then(|relay| relay.mirror(self.run));
        let Some(mirror) = mirror else { return (Vec::new(), false) };
        match tokio::time::timeout(POLL_LAST, self.told(mirror)).await {
            // The last event's body is read from the database, and with it all that comes before.
            Ok(events) if events.last().is_some_and(RunEvent::is_terminal) => (Vec::new(), false),
            Ok(events) => (events, false),
            Err(_) => (Vec::new(), true),
        }
    }

    async fn stored(&mut self) -> Result<Vec<RunEvent>, RunError> {
        let mut tx = self.tenant.begin().await?;
        let mut events = events::read(&mut tx, self.run, self.cursor).await?;
        if events.is_empty() {
            let status = runs::get(&mut tx, self.run).await?.ok_or(RunError::NotFound)?.status;
            if status.is_terminal() {
                // It may have ended between the two looks.
                events = events::read(&mut tx, self.run, self.cursor).await?;
                self.ended = events.is_empty();
            }
        }
        if let Some(last) = events.last_mut().filter(|last| last.is_terminal()) {
            last.data = json!(runs::turn(&mut tx, self.run).await?);
        }
        Ok(events)
    }
}
