//! Why a turn is not accepted.

use agent_config::agents::AgentError;
use billing_meter::{BudgetError, Exceeded};
use conversation_store::{conversations::ConversationError, messages::MessageError};
use domain::{FieldError, Kind, Problem};
use tenancy::{DbError, idempotency::IdempotencyError};

use crate::{line::LINE_MAX, runs::RunError, scheduler::Full};

/// When a full queue is worth another try, in seconds: a few runs have ended by then.
const FULL_RETRY_SECONDS: u64 = 1;
/// Seconds over which those who are refused are spread by chance, so that they do not all come back at the same moment.
const FULL_SPREAD_SECONDS: u8 = 4;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the conversation is busy with another run; wait until it ends, or cancel it")]
    Busy,
    #[error("the conversation is busy, and {LINE_MAX} runs wait for it already; wait until one ends")]
    LineFull,
    #[error(
        "{queued} runs of this tenant are queued or about to be, the most that are taken; wait until some of them have begun"
    )]
    QueueFull { queued: usize, retry_after_seconds: u64 },
    #[error("this server has all the queued runs that it takes; try again in a few seconds")]
    QueuesFull { retry_after_seconds: u64 },
    #[error("the conversation is with another agent; start a new one by leaving `conversation_id` out")]
    OtherAgent,
    #[error("the turn cannot be started as it is; see `errors`")]
    Invalid(Vec<FieldError>),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error(transparent)]
    Idempotency(#[from] IdempotencyError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Problem for StartError {
    fn kind(&self) -> Kind {
        match self {
            StartError::Busy => Kind::Conflict,
            StartError::LineFull | StartError::QueueFull { .. } => Kind::TooMany,
            StartError::QueuesFull { .. } => Kind::Unavailable,
            StartError::OtherAgent | StartError::Invalid(_) => Kind::Invalid,
            StartError::Agent(error) => error.kind(),
            StartError::Conversation(error) => error.kind(),
            StartError::Message(error) => error.kind(),
            StartError::Run(error) => error.kind(),
            StartError::Exceeded(error) => error.kind(),
            StartError::Budget(error) => error.kind(),
            StartError::Idempotency(error) => error.kind(),
            StartError::Db(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StartError::Busy => "conversation.busy",
            StartError::LineFull => "conversation.queue_full",
            StartError::QueueFull { .. } => "run.queue_full",
            StartError::QueuesFull { .. } => "runs.queue_full",
            StartError::OtherAgent => "conversation.other_agent",
            StartError::Invalid(_) => "chat.invalid",
            StartError::Agent(error) => error.code(),
            StartError::Conversation(error) => error.code(),
            StartError::Message(error) => error.code(),
            StartError::Run(error) => error.code(),
            StartError::Exceeded(error) => error.code(),
            StartError::Budget(error) => error.code(),
            StartError::Idempotency(error) => error.code(),
            StartError::Db(error) => error.code(),
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            StartError::Invalid(fields) => fields.clone(),
            StartError::Agent(error) => error.fields(),
            StartError::Message(error) => error.fields(),
            _ => Vec::new(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            StartError::LineFull => Some(FULL_RETRY_SECONDS),
            StartError::QueueFull { retry_after_seconds, .. } | StartError::QueuesFull { retry_after_seconds } => {
                Some(*retry_after_seconds)
            }
            StartError::Idempotency(error) => error.retry_after_seconds(),
            StartError::Db(error) => error.retry_after_seconds(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for StartError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl StartError {
    /// A queue has no room. `chance` is random.
    pub(super) fn full(full: Full, chance: u8) -> StartError {
        let retry_after_seconds = FULL_RETRY_SECONDS + u64::from(chance % FULL_SPREAD_SECONDS);
        match full {
            Full::Tenant(queued) => StartError::QueueFull { queued, retry_after_seconds },
            Full::All => StartError::QueuesFull { retry_after_seconds },
        }
    }
}
