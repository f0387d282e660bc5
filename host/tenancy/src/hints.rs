//! Hints between processes, through the database. One may be lost: whoever waits for it looks for itself from time to time.

use domain::RunId;
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::{Db, DbError, TenantTx};

/// Runs that were cancelled where they are not driven. The payload is the run's id and says nothing of its tenant.
const CANCELLED: &str = "belljar_cancelled";

/// What other processes tell. It holds a connection of its own.
pub struct Hints(PgListener);

impl Db {
    pub async fn hints(&self) -> Result<Hints, DbError> {
        let mut listener = self.listener().await?;
        listener.listen(CANCELLED).await?;
        Ok(Hints(listener))
    }
}

impl Hints {
    /// Waits for the next one. `None`: it cannot be read.
    pub async fn cancelled(&mut self) -> Result<Option<RunId>, DbError> {
        let told = self.0.recv().await?;
        Ok(told.payload().parse::<Uuid>().ok().map(RunId::from))
    }
}

/// Tells every process with the commit that a run was cancelled.
pub async fn send_cancelled(tx: &mut TenantTx, run: RunId) -> Result<(), DbError> {
    sqlx::query!(r#"SELECT pg_notify($1, $2) AS "told: ()""#, CANCELLED, run.uuid().to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}
