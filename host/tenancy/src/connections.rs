//! Connections to one database: kept open, and lent to one borrower at a time.

use std::{io, time::Duration};

use deadpool::{
    Runtime,
    managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult},
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions, raw_sql};

/// A request waits this long for a connection: past it, 503 is the better answer.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was lent longer ago than this is tried before it is lent again: a restarted server has closed it.
const UNTRIED_MAX: Duration = Duration::from_secs(2);
/// A connection is not kept longer than this: its process in the server gathers memory.
const KEPT_MAX: Duration = Duration::from_secs(30 * 60);
/// Until a server that is starting is asked again.
const STARTING_PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Connections(managed::Pool<Connector>);

impl Connections {
    /// `most` at once. None is opened before it is wanted.
    pub(crate) fn new(options: PgConnectOptions, most: u32) -> Self {
        let pool = managed::Pool::builder(Connector(options))
            .max_size(most as usize)
            // The last one that was given back: what a server keeps for a connection is warm, and the others may rest.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(ACQUIRE_TIMEOUT))
            .create_timeout(Some(ACQUIRE_TIMEOUT))
            .recycle_timeout(Some(ACQUIRE_TIMEOUT));
        Connections(pool.build().expect("a runtime keeps the time"))
    }

    pub(crate) async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let connection = self.0.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Closed => sqlx::Error::PoolClosed,
            _ => sqlx::Error::PoolTimedOut,
        })?;
        Ok(Lent { connection: Some(connection), state: State::Used })
    }
}

struct Connector(PgConnectOptions);

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        loop {
            // In a box: it is large, and hardly ever needed.
            match Box::pin(PgConnection::connect_with(&self.0)).await {
                Err(error) if is_starting(&error) => tokio::time::sleep(STARTING_PAUSE).await,
                connected => return connected,
            }
        }
    }

    async fn recycle(&self, connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() > KEPT_MAX {
            return Err(RecycleError::message("kept long enough"));
        }
        if metrics.last_used() > UNTRIED_MAX {
            connection.ping().await?;
        }
        Ok(())
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

/// A connection that is somebody's. Where it is neither given back nor committed, it is put in order before anybody else
/// gets it: whoever used it may have been dropped at any moment (a deadline, a client that left).
pub(crate) struct Lent {
    /// Until this is dropped.
    connection: Option<Object<Connector>>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    /// Nothing is under way.
    Clean,
    /// A statement may be under way.
    Used,
    /// In a transaction, perhaps.
    Begun,
}

impl Lent {
    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only `drop` takes it")
    }

    /// Nothing was begun, and every statement has ended.
    pub(crate) fn give_back(mut self) {
        self.state = State::Clean;
    }

    /// Begins a transaction; `statement` says how, in one round trip.
    pub(crate) async fn begin(mut self, statement: String) -> Result<Self, sqlx::Error> {
        self.state = State::Begun;
        self.conn().execute(raw_sql(AssertSqlSafe(statement))).await?;
        Ok(self)
    }

    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.conn().execute(raw_sql("COMMIT")).await?;
        self.give_back();
        Ok(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        match (&self.state, tokio::runtime::Handle::try_current()) {
            (State::Clean, _) => {}
            // Whoever wants the connection waits for it.
            (state, Ok(runtime)) => drop(runtime.spawn(put_in_order(connection, *state == State::Begun))),
            // The process ends.
            (_, Err(_)) => drop(Object::take(connection)),
        }
    }
}

/// Ends what may be under way, in one round trip. A connection on which that fails is closed.
async fn put_in_order(mut connection: Object<Connector>, begun: bool) {
    let ended = match begun {
        true => connection.execute(raw_sql("ROLLBACK")).await.map(drop),
        false => connection.ping().await,
    };
    if ended.is_err() {
        drop(Object::take(connection));
    }
}
