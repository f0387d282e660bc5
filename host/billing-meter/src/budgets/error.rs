//! What can be wrong with a budget.

use domain::{FieldError, Kind, Problem};
use tenancy::DbError;

#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    #[error("no such budget; `GET /v1/budgets` lists yours")]
    NotFound,
    #[error("the budget is not valid; see `errors`")]
    Invalid(Vec<FieldError>),
    #[error("a tenant has at most {0} budgets; delete one, or use the subject `*`")]
    TooMany(i64),
    #[error("a stored budget cannot be read")]
    Unreadable,
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for BudgetError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Problem for BudgetError {
    fn kind(&self) -> Kind {
        match self {
            BudgetError::NotFound => Kind::NotFound,
            BudgetError::Invalid(_) => Kind::Invalid,
            BudgetError::TooMany(_) => Kind::Conflict,
            BudgetError::Unreadable => Kind::Internal,
            BudgetError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            BudgetError::NotFound => "budget.not_found",
            BudgetError::Invalid(_) => "budget.invalid",
            BudgetError::TooMany(_) => "budget.too_many",
            BudgetError::Unreadable => "budget.unreadable",
            BudgetError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            BudgetError::Invalid(fields) => fields.clone(),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            BudgetError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}
