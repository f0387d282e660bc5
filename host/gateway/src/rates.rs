//! How many requests a tenant, and a key that is bound, may make a minute.
//!
//! The rule is GCRA (ITU-T I.371): a quota is a debt that each request adds to and that time pays off; a request that would
//! owe more than a minute is refused. Debts are this process's own, or in Redis, where the replicas share them; while Redis
//! is away they are this process's.

mod replicas;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::{ApiKeyId, Kind, Problem, TenantId};
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

pub use replicas::RedisUrl;
use replicas::Replicas;

/// What a quota is of, and what a refused request may owe at most.
const WINDOW: Duration = Duration::from_secs(60);
/// A key that is bound to agents or to an end user is handed on, to a browser for example: it gets this part of its
/// tenant's quota, so that one of them does not take all.
const BOUND_KEY_SHARE: u32 = 4;
/// Debts that are remembered before those that are paid are thrown away.
const DEBTS_SWEPT_AT: usize = 10_000;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Who asks, and how much that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) tenant: TenantId,
    /// Of the tenant's plan.
    pub(crate) requests_per_minute: u32,
    pub(crate) bound_key: Option<ApiKeyId>,
}

/// One quota, and who it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quota {
    name: &'static str,
    of: Uuid,
    requests: u32,
}

impl Quota {
    /// What one request adds to the debt.
    fn cost(&self) -> Duration {
        WINDOW / self.requests.max(1)
    }
}

impl Asker {
    fn quotas(&self) -> Vec<Quota> {
        let requests = self.requests_per_minute;
        let tenant = Quota { name: "default", of: self.tenant.uuid(), requests };
        let key = self.bound_key.map(|key| Quota {
            name: "key",
            of: key.uuid(),
            requests: (requests / BOUND_KEY_SHARE).max(1),
        });
        [Some(tenant), key].into_iter().flatten().collect()
    }
}

/// A quota after a request, or as it refuses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    quota: Quota,
    debt: Duration,
}

impl Left {
    fn requests(&self) -> u128 {
        WINDOW.saturating_sub(self.debt).as_nanos() / self.quota.cost().as_nanos().max(1)
    }

    fn refuses(&self) -> bool {
        self.debt + self.quota.cost() > WINDOW
    }

    /// Until one more request is let in.
    fn wait(&self) -> Duration {
        (self.debt + self.quota.cost()).saturating_sub(WINDOW)
    }
}

/// Where an asker stands: for the headers of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    left: Vec<Left>,
    allowed: bool,
}

impl Standing {
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let listed = |one: fn(&Left) -> String| self.left.iter().map(one).collect::<Vec<_>>().join(", ");
        let limit = listed(|left| format!("\"{}\";r={};t={}", left.quota.name, left.requests(), seconds(left.debt)));
        let policy = listed(|left| format!("\"{}\";q={};w={}", left.quota.name, left.quota.requests, WINDOW.as_secs()));
        for (name, value) in [(RATE_LIMIT, limit), (RATE_LIMIT_POLICY, policy)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }

    /// The refusal, if there is one.
    pub(crate) fn check(&self) -> Result<(), RateError> {
        match self.left.iter().max_by_key(|left| left.wait()) {
            Some(left) if !self.allowed => {
                let whose =
                    if left.quota.name == "key" { "this API key may make" } else { "this tenant's plan allows" };
                let seconds = seconds(left.wait()).max(1);
                Err(RateError { whose, requests: left.quota.requests, seconds })
            }
            _ => Ok(()),
        }
    }
}

/// Whole seconds, upwards.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[derive(Debug, thiserror::Error)]
#[error("{whose} {requests} requests a minute; send the next one in {seconds} s")]
pub(crate) struct RateError {
    whose: &'static str,
    requests: u32,
    seconds: u64,
}

impl Problem for RateError {
    fn kind(&self) -> Kind {
        Kind::TooMany
    }

    fn code(&self) -> &'static str {
        "rate_limit.exceeded"
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        Some(self.seconds)
    }
}

/// The debts of everybody.
pub(crate) struct Rates {
    began: Instant,
    here: Mutex<Debts>,
    replicas: Option<Replicas>,
}

impl Rates {
    pub(crate) fn new(redis: Option<&RedisUrl>) -> Rates {
        Rates { began: Instant::now(), here: Mutex::default(), replicas: redis.map(Replicas::new) }
    }

    /// Counts a request, if it is let in. The refusal is in where the asker stands.
    pub(crate) async fn take(&self, asker: &Asker) -> Standing {
        let quotas = asker.quotas();
        if let Some(replicas) = &self.replicas
            && let Some(standing) = replicas.take(&quotas).await
        {
            return standing;
        }
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        here.take(&quotas, self.began.elapsed())
    }
}

/// When each debt is paid, since the beginning. Absent: it is.
#[derive(Debug, Default)]
struct Debts {
    paid_at: HashMap<Uuid, Duration>,
    sweep_at: usize,
}

impl Debts {
    /// All quotas let the request in and are charged for it, or none is.
    fn take(&mut self, quotas: &[Quota], now: Duration) -> Standing {
        let owed = |quota: &Quota| {
            let paid_at = self.paid_at.get(&quota.of).copied().unwrap_or_default();
            Left { quota: *quota, debt: paid_at.saturating_sub(now) }
        };
        let before: Vec<Left> = quotas.iter().map(owed).collect();
        if before.iter().any(Left::refuses) {
            return Standing { left: before, allowed: false };
        }
        let after = |left: Left| Left { debt: left.debt + left.quota.cost(), ..left };
        let after: Vec<Left> = before.into_iter().map(after).collect();
        for left in &after {
            self.paid_at.insert(left.quota.of, now + left.debt);
        }
        if self.paid_at.len() > self.sweep_at.max(DEBTS_SWEPT_AT) {
            self.paid_at.retain(|_, paid_at| *paid_at > now);
            self.sweep_at = self.paid_at.len() * 2;
        }
        Standing { left: after, allowed: true }
    }
}

#[cfg(test)]
mod tests;
