//! Events that processes of one installation tell each other over Redis, where it is configured. All of it only comes
//! early: what counts is committed, and readers get it from the database when Redis is away, or has lost something.
//!
//! A run's events are a stream under `belljar:run:ID`, written by whoever drives it. A process that follows runs of
//! others reads all their streams with one connection, into a feed for each (`mirrors`).

mod mirrors;
mod publish;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{ExposeSecret, RunId, SecretString};
use redis::{AsyncConnectionConfig, Client, RedisResult, aio::MultiplexedConnection};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::feed::{Feed, Item};
use mirrors::Mirrors;

/// Messages that wait to be sent to Redis. When it is too slow for that many, readers elsewhere wait for the commit.
const WAITING_MAX: usize = 4096;
/// How long Redis may take to answer. It answers in a fraction of a millisecond, or it is away.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long after it went away it is asked again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A way to the other processes. Begun by the runtime that gets it.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

#[derive(Debug, thiserror::Error)]
#[error("not the URL of a Redis: use redis://HOST:PORT, or rediss:// for TLS: {0}")]
pub struct BadRedisUrl(#[source] redis::RedisError);

struct Shared {
    client: Client,
    /// This process.
    id: Uuid,
    outbox: mpsc::Sender<Message>,
    inbox: Mutex<Option<mpsc::Receiver<Message>>>,
    mirrors: Mutex<Mirrors>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// What is told to the other processes.
#[derive(Debug)]
pub(crate) enum Message {
    Item(RunId, Item),
    /// To ourselves: what is followed has changed.
    Wake,
}

/// Where a feed's items go besides its readers.
pub(crate) struct Outlet {
    run: RunId,
    outbox: mpsc::Sender<Message>,
}

impl Outlet {
    /// Never waits: what finds no room is lost, and readers see that something is missing.
    pub(crate) fn tell(&self, item: &Item) {
        let _lost = self.outbox.try_send(Message::Item(self.run, item.clone()));
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("id", &self.0.id).finish_non_exhaustive()
    }
}

impl Relay {
    /// Connects to nothing yet. `id` names this process.
    pub fn new(url: &SecretString, id: Uuid) -> Result<Relay, BadRedisUrl> {
        let client = Client::open(url.expose_secret()).map_err(BadRedisUrl)?;
        let (outbox, inbox) = mpsc::channel(WAITING_MAX);
        Ok(Relay(Arc::new(Shared {
            client,
            id,
            outbox,
            inbox: Mutex::new(Some(inbox)),
            mirrors: Mutex::default(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// Begins to talk.
    pub(crate) fn start(&self) {
        let Some(inbox) = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (writer, reader) = (self.0.clone(), self.0.clone());
        self.0.tracker.spawn(async move {
            writer.stop.run_until_cancelled(publish::publish(&writer, inbox)).await;
        });
        self.0.tracker.spawn(async move {
            reader.stop.run_until_cancelled(mirrors::read(&reader)).await;
        });
        self.0.tracker.close();
    }

    pub(crate) async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tracker.wait().await;
    }

    pub(crate) fn outlet(&self, run: RunId) -> Outlet {
        Outlet { run, outbox: self.0.outbox.clone() }
    }

    /// What another process tells of a run, from when its stream begins. `None` while Redis is away.
    pub(crate) fn mirror(&self, run: RunId) -> Option<Arc<Feed>> {
        let (feed, is_new) = self.0.mirrors().of(run)?;
        if is_new {
            // If it is lost, the reader looks up soon by itself.
            let _lost = self.0.outbox.try_send(Message::Wake);
        }
        Some(feed)
    }
}

impl Shared {
    fn mirrors(&self) -> MutexGuard<'_, Mirrors> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `answers_within`: longer where an answer may have to wait for something to be told.
    async fn connect(&self, answers_within: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_MAX))
            .set_response_timeout(Some(answers_within));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Read by this process alone.
    fn wake_key(&self) -> String {
        format!("belljar:wake:{}", self.id)
    }
}

fn stream_key(run: RunId) -> String {
    format!("belljar:run:{}", run.uuid())
}
