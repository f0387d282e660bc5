//! Leaving a provider alone that fails again and again: a pure state for each tenant and key, and the provider that asks
//! it first. Held in memory: each process finds out for itself.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use domain::{ExposeSecret, TenantId};
use futures::StreamExt;
use tokio::time::Instant;

use crate::{Endpoint, ModelProvider, ModelRequest, ModelStream, ProviderError};

/// Failures in a row before a provider is left alone: more than one run's tries of it.
const FAILURES_MAX: u32 = 5;
/// How long it is left alone the first time; it doubles with each further failure.
const FIRST_PAUSE_SECONDS: u64 = 5;
/// Longest pause: a provider that is back is found within it.
const PAUSE_SECONDS_MAX: u64 = 60;
/// Providers in trouble that are remembered at once. Those beyond are asked as if nothing had happened.
const CIRCUITS_MAX: usize = 10_000;

/// Whose requests, to which provider, with which key: a failure of one says nothing about another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CircuitKey {
    tenant: TenantId,
    provider: String,
    /// Of the address and the key. Not the key itself: this outlives the request.
    endpoint: u64,
}

/// One provider's failures in a row. A provider without any has no state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Circuit {
    failures: u32,
    open_until: Option<Instant>,
}

impl Circuit {
    /// Whether a request may go out now; if not, how long it is to wait. After a pause one request goes out to find out,
    /// and the others wait a pause more, or until it has succeeded.
    fn pass(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                self.open_until = Some(now + pause(self.failures));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.open_until = Some(now + pause(self.failures));
        }
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(FAILURES_MAX).min(16);
    Duration::from_secs((FIRST_PAUSE_SECONDS << doublings).min(PAUSE_SECONDS_MAX))
}

/// The providers in trouble.
pub(crate) struct Circuits {
    hasher: RandomState,
    open: Mutex<HashMap<CircuitKey, Circuit>>,
}

impl Circuits {
    pub(crate) fn new() -> Circuits {
        Circuits { hasher: RandomState::new(), open: Mutex::default() }
    }

    pub(crate) fn key(&self, tenant: TenantId, provider: &str, endpoint: &Endpoint) -> CircuitKey {
        let endpoint = self.hasher.hash_one((&endpoint.base_url, endpoint.api_key.expose_secret()));
        CircuitKey { tenant, provider: provider.to_owned(), endpoint }
    }

    fn pass(&self, key: &CircuitKey, now: Instant) -> Result<(), Duration> {
        self.with(|open| open.get_mut(key).map_or(Ok(()), |circuit| circuit.pass(now)))
    }

    fn failed(&self, key: &CircuitKey, now: Instant) {
        self.with(|open| {
            if open.len() >= CIRCUITS_MAX && !open.contains_key(key) {
                open.retain(|_, circuit| circuit.open_until.is_some_and(|until| now < until));
            }
            if open.len() < CIRCUITS_MAX || open.contains_key(key) {
                open.entry(key.clone()).or_default().failed(now);
            }
        });
    }

    fn succeeded(&self, key: &CircuitKey) {
        self.with(|open| open.remove(key));
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<CircuitKey, Circuit>) -> T) -> T {
        // Each change is whole: what panicked while the lock was held has left no half of one.
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A provider that is not asked while it is left alone.
pub(crate) struct Guarded {
    pub(crate) inner: Arc<dyn ModelProvider>,
    pub(crate) circuits: Arc<Circuits>,
    pub(crate) key: CircuitKey,
}

#[async_trait]
impl ModelProvider for Guarded {
    async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
        if let Err(retry_after) = self.circuits.pass(&self.key, Instant::now()) {
            return Err(ProviderError::CircuitOpen { provider: self.key.provider.clone(), retry_after });
        }
        let told = |circuits: &Circuits, key: &CircuitKey, error: Option<&ProviderError>| match error {
            Some(error) if error.is_failure_of_provider() => circuits.failed(key, Instant::now()),
            // It refuses, but it is there.
            _ => circuits.succeeded(key),
        };
        match self.inner.stream(request).await {
            Ok(events) => {
                let (circuits, key) = (Arc::clone(&self.circuits), self.key.clone());
                let watched = events.enumerate().map(move |(at, event)| {
                    if at == 0 || event.is_err() {
                        told(&circuits, &key, event.as_ref().err());
                    }
                    event
                });
                Ok(watched.boxed())
            }
            Err(error) => {
                told(&self.circuits, &self.key, Some(&error));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::Problem;
    use futures::stream;
    use uuid::Uuid;

    use super::*;
    use crate::{EndpointKind, KeyOf, ModelEvent, StopReason, Usage};

    #[test]
    fn a_circuit_opens_after_failures_in_a_row_and_lets_one_request_find_out() {
        enum Do {
            Fail,
            Pass,
            Refuse(u64),
        }
        use Do::*;
        let mut circuit = Circuit::default();
        let began = Instant::now();
        for (line, (second, done)) in [
            (0, Pass),
            (0, Fail),
            (1, Fail),
            (2, Fail),
            (3, Fail),
            (3, Pass),
            (10, Fail),
            (10, Refuse(5)),
            (14, Refuse(1)),
            (15, Pass),
            // The one that finds out has not come back: the others wait on, but not for ever.
            (15, Refuse(5)),
            (20, Pass),
            (21, Fail),
            (21, Refuse(10)),
            (31, Pass),
            (31, Fail),
            (31, Refuse(20)),
            (51, Pass),
            (51, Fail),
            (51, Refuse(40)),
            (91, Pass),
            (91, Fail),
            (91, Refuse(60)),
            (151, Pass),
            (151, Fail),
            (151, Refuse(60)),
        ]
        .into_iter()
        .enumerate()
        {
            let now = began + Duration::from_secs(second);
            match done {
                Fail => circuit.failed(now),
                Pass => assert_eq!(circuit.pass(now), Ok(()), "line {line}"),
                Refuse(seconds) => assert_eq!(circuit.pass(now), Err(Duration::from_secs(seconds)), "line {line}"),
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let circuits = Circuits::new();
        let now = Instant::now();
        let key = |n: usize| CircuitKey { tenant: TenantId::from(Uuid::nil()), provider: n.to_string(), endpoint: 0 };
        (0..2 * CIRCUITS_MAX).for_each(|n| circuits.failed(&key(n), now));
        assert!(circuits.with(|open| open.len()) <= CIRCUITS_MAX);
        (0..FAILURES_MAX).for_each(|_| circuits.failed(&key(0), now));
        assert!(circuits.pass(&key(0), now).is_err());
        circuits.succeeded(&key(0));
        assert!(circuits.pass(&key(0), now).is_ok());
    }

    /// Fails, or says something, as its number tells.
    struct Scripted(Mutex<Vec<Option<ProviderError>>>);

    #[async_trait]
    impl ModelProvider for Scripted {
        async fn stream(&self, _: &ModelRequest) -> Result<ModelStream, ProviderError> {
            match self.0.lock().unwrap().pop().flatten() {
                Some(error) => Err(error),
                None => {
                    let end = ModelEvent::End { stop: StopReason::Done, usage: Usage::default() };
                    Ok(stream::iter([Ok(end)]).boxed())
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenants_and_one_keys_failures_are_nobody_elses() {
        let circuits = Arc::new(Circuits::new());
        let unavailable =
            || Some(ProviderError::Unavailable { provider: "x".into(), said: "503".into(), retry_after: None });
        let refused = || Some(ProviderError::KeyRefused { provider: "x".into(), key: KeyOf::Tenant });
        let guarded = |tenant: u128, key: &str, script: Vec<Option<ProviderError>>| {
            let endpoint = Endpoint {
                kind: EndpointKind::Openai,
                base_url: None,
                api_key: key.to_owned().into(),
                key_of: KeyOf::Tenant,
            };
            Guarded {
                inner: Arc::new(Scripted(Mutex::new(script))),
                circuits: Arc::clone(&circuits),
                key: circuits.key(TenantId::from(Uuid::from_u128(tenant)), "x", &endpoint),
            }
        };
        let ask = async |provider: &Guarded| {
            let request = crate::ModelRequest::for_tests();
            match provider.stream(&request).await {
                Ok(events) => {
                    events.map(|event| event.map(drop).map_err(|error| error.code())).collect::<Vec<_>>().await[0]
                }
                Err(error) => Err(error.code()),
            }
        };
        // A refusal in between says that the provider is there.
        let mut script = vec![None];
        script.extend((0..5).map(|_| unavailable()));
        script.push(refused());
        script.extend((0..4).map(|_| unavailable()));
        let ada = guarded(1, "k", script);
        for _ in 0..4 {
            assert_eq!(ask(&ada).await, Err("provider.unavailable"));
        }
        assert_eq!(ask(&ada).await, Err("provider.key_refused"));
        for _ in 0..5 {
            assert_eq!(ask(&ada).await, Err("provider.unavailable"));
        }
        assert_eq!(ask(&ada).await, Err("provider.circuit_open"));
        assert_eq!(ask(&guarded(1, "k", vec![])).await, Err("provider.circuit_open"));
        assert_eq!(ask(&guarded(1, "another", vec![])).await, Ok(()));
        assert_eq!(ask(&guarded(2, "k", vec![])).await, Ok(()));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(ask(&ada).await, Ok(()));
        assert_eq!(ask(&ada).await, Ok(()), "it is back for everybody");
    }
}
