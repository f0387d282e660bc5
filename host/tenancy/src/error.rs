//! What can go wrong between us and Postgres.

use domain::{Kind, Problem};

/// A statement that failed. Its text never reaches a stranger: it may quote rows.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("{}", words(self.is_unavailable()))]
    Statement(#[from] sqlx::Error),
    /// Its own transactions hold all that one tenant may.
    #[error(
        "this tenant has too much under way at the same time; try again in a few seconds, with fewer requests at once"
    )]
    TenantBusy,
}

fn words(unavailable: bool) -> &'static str {
    if unavailable { "the database does not answer; try again in a few seconds" } else { "a statement failed" }
}

impl DbError {
    fn is_unavailable(&self) -> bool {
        let DbError::Statement(error) = self else { return true };
        match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                true
            }
            // Classes 08 connection, 40 rollback (deadlock), 53 resources, 55P03 lock timeout, 57 operator intervention
            // (PostgreSQL, appendix A).
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|code| ["08", "40", "53", "55P03", "57"].iter().any(|class| code.starts_with(class))),
            _ => false,
        }
    }

    /// Whether a statement broke this constraint or unique index.
    pub fn violates(error: &sqlx::Error, constraint: &str) -> bool {
        matches!(error, sqlx::Error::Database(error) if error.constraint() == Some(constraint))
    }
}

impl Problem for DbError {
    fn kind(&self) -> Kind {
        if self.is_unavailable() { Kind::Unavailable } else { Kind::Internal }
    }

    fn code(&self) -> &'static str {
        match self {
            DbError::TenantBusy => "tenant.busy",
            _ if self.is_unavailable() => "database.unavailable",
            DbError::Statement(_) => "internal",
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        self.is_unavailable().then_some(2)
    }
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the database URL cannot be read: use postgres://ROLE:PASSWORD@HOST:PORT/DATABASE")]
    BadUrl(#[source] sqlx::Error),
    #[error("the database does not answer: {0}")]
    Unreachable(#[source] sqlx::Error),
    #[error("Postgres {0} is too old: use 15 or newer")]
    TooOld(String),
    #[error(
        "the role `{0}` could read other tenants' rows (it is a superuser, bypasses row security, owns tables, or is a \
         member of another role); \
         connect as the application role `belljar_app`"
    )]
    UnsafeRole(String),
    #[error("the schema is at version {found}, this program needs {needed}: run `belljar migrate`")]
    SchemaBehind { found: i64, needed: i64 },
    #[error("the migration failed: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
}
