//! When a model call is tried again, and with which model. A pure schedule and its driver.

use std::{sync::Arc, time::Duration};

use domain::Problem;
use futures::{StreamExt, stream};

use crate::{ModelEvent, ModelProvider, ModelRef, ModelRequest, ModelStream, ProviderError};

/// Tries of one model. A provider that fails three times in a row is down for longer than a person waits.
const ATTEMPTS_MAX: u32 = 3;
/// Longest wait before the second try; it doubles with each further one.
const FIRST_WAIT_MS_MAX: u64 = 500;
/// Longest wait that a provider may ask for. If it asks for more, the next model is tried at once: coming back earlier
/// than asked would only be refused again.
const RETRY_AFTER_SECONDS_MAX: u64 = 20;

/// How long to wait before the next try, or `None` when this model is given up. `failures`: how many tries of it have
/// failed so far. `chance` between 0 and 1 spreads the waits of many callers (full jitter).
pub fn wait(failures: u32, error: &ProviderError, chance: f64) -> Option<Duration> {
    if failures >= ATTEMPTS_MAX || !error.is_passing() {
        return None;
    }
    let longest = Duration::from_millis(FIRST_WAIT_MS_MAX << failures.saturating_sub(1));
    let spread = longest.mul_f64(chance.clamp(0.0, 1.0));
    match error.retry_after() {
        None => Some(spread),
        // Jitter comes on top: all who were refused together are told the same.
        Some(asked) => (asked <= Duration::from_secs(RETRY_AFTER_SECONDS_MAX)).then(|| asked + spread),
    }
}

/// Asks the candidates in their order until one has given its first event. From then on nothing is tried again: what
/// was said cannot be unsaid, and asking twice is paid twice. `request.model` becomes the candidate that is asked.
/// If all fail, the error is the first candidate's last one: it is the model that the agent asks for.
pub async fn start(
    candidates: &[(ModelRef, Arc<dyn ModelProvider>)],
    mut request: ModelRequest,
    chance: &(dyn Fn() -> f64 + Send + Sync),
) -> Result<(ModelRef, ModelStream), ProviderError> {
    let mut first_error = None;
    for (model, provider) in candidates {
        request.model = model.clone();
        let mut failures = 0;
        let error = loop {
            let error = match first_event(provider.as_ref(), &request).await {
                Ok(stream) => return Ok((model.clone(), stream)),
                Err(error) => error,
            };
            failures += 1;
            match wait(failures, &error, chance()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => break error,
            }
        };
        tracing::info!(%model, code = error.code(), failures, "a model was given up");
        first_error.get_or_insert(error);
    }
    Err(first_error.unwrap_or(ProviderError::Unknown { provider: request.model.provider }))
}

async fn first_event(provider: &dyn ModelProvider, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
    let mut events = provider.stream(request).await?;
    match events.next().await {
        Some(first) => {
            let first: ModelEvent = first?;
            Ok(stream::iter([Ok(first)]).chain(events).boxed())
        }
        None => Err(ProviderError::CutShort { provider: request.model.provider.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use futures::TryStreamExt;
    use tokio::time::Instant;

    use super::*;
    use crate::{KeyOf, StopReason, Usage};

    fn limited(seconds: Option<u64>) -> ProviderError {
        ProviderError::RateLimited {
            provider: "x".into(),
            key: KeyOf::Tenant,
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    fn unavailable() -> ProviderError {
        ProviderError::Unavailable { provider: "x".into(), said: "503".into(), retry_after: None }
    }

    fn refused() -> ProviderError {
        ProviderError::KeyRefused { provider: "x".into(), key: KeyOf::Tenant }
    }

    fn open_circuit() -> ProviderError {
        ProviderError::CircuitOpen { provider: "x".into(), retry_after: Duration::from_secs(1) }
    }

    fn timeout() -> ProviderError {
        ProviderError::Timeout { provider: "x".into() }
    }

    #[test]
    fn the_schedule() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (failures, error, chance, expected) in [
            (1, unavailable(), 0.0, ms(0)),
            (1, unavailable(), 1.0, ms(500)),
            (2, unavailable(), 1.0, ms(1000)),
            (2, timeout(), 0.5, ms(500)),
            (3, unavailable(), 0.0, None),
            (1, refused(), 0.0, None),
            (1, open_circuit(), 0.0, None),
            (1, limited(None), 1.0, ms(500)),
            (1, limited(Some(7)), 0.0, ms(7000)),
            (2, limited(Some(20)), 0.5, ms(20_500)),
            (1, limited(Some(21)), 0.0, None),
            (1, unavailable(), f64::INFINITY, ms(500)),
        ] {
            assert_eq!(wait(failures, &error, chance), expected, "{failures} {error} {chance}");
        }
    }

    /// Gives its outcomes one after the other: an error before the stream, or in it, or an answer.
    struct Script(Mutex<Vec<Outcome>>);

    enum Outcome {
        Fails(ProviderError),
        FailsInStream(ProviderError),
        Empty,
        Says(&'static str),
        SaysThenFails(&'static str),
    }

    #[async_trait]
    impl ModelProvider for Script {
        async fn stream(&self, request: &ModelRequest) -> Result<ModelStream, ProviderError> {
            let end = ModelEvent::End { stop: StopReason::Done, usage: Usage::default() };
            let text = |text: &str| ModelEvent::Text(format!("{text} {}", request.model));
            let events = match self.0.lock().unwrap().remove(0) {
                Outcome::Fails(error) => return Err(error),
                Outcome::FailsInStream(error) => vec![Err(error)],
                Outcome::Empty => vec![],
                Outcome::Says(said) => vec![Ok(text(said)), Ok(end)],
                Outcome::SaysThenFails(said) => vec![Ok(text(said)), Err(unavailable())],
            };
            Ok(stream::iter(events).boxed())
        }
    }

    async fn run(scripts: Vec<Vec<Outcome>>) -> (Result<Vec<ModelEvent>, &'static str>, Duration, Vec<usize>) {
        let scripts: Vec<_> = scripts.into_iter().map(|script| Arc::new(Script(Mutex::new(script)))).collect();
        let candidates: Vec<(ModelRef, Arc<dyn ModelProvider>)> = scripts
            .iter()
            .enumerate()
            .map(|(n, script)| (ModelRef::new(format!("p{n}"), "m"), Arc::clone(script) as Arc<dyn ModelProvider>))
            .collect();
        let request = ModelRequest::for_tests();
        let began = Instant::now();
        let outcome = match start(&candidates, request, &|| 1.0).await {
            Ok((_, stream)) => stream.try_collect().await.map_err(|error| error.code()),
            Err(error) => Err(error.code()),
        };
        (outcome, began.elapsed(), scripts.iter().map(|script| script.0.lock().unwrap().len()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn tries_again_and_falls_back_only_before_the_first_event() {
        use Outcome::*;
        let says = |text: &str| Ok(text.to_owned());
        for (scripts, expected, waited_ms, left) in [
            (vec![vec![Says("a")]], says("a p0/m"), 0, vec![0]),
            (vec![vec![Fails(unavailable()), FailsInStream(timeout()), Says("a")]], says("a p0/m"), 1500, vec![0]),
            (vec![vec![Fails(limited(Some(3))), Says("a")]], says("a p0/m"), 3500, vec![0]),
            (vec![vec![Fails(refused()), Says("a")], vec![Says("b")]], says("b p1/m"), 0, vec![1, 0]),
            (vec![vec![Fails(limited(Some(60))), Says("a")], vec![Says("b")]], says("b p1/m"), 0, vec![1, 0]),
            (vec![vec![Fails(open_circuit()), Says("a")], vec![Says("b")]], says("b p1/m"), 0, vec![1, 0]),
            (
                vec![vec![Fails(timeout()), Fails(timeout()), Fails(timeout()), Says("a")], vec![Says("b")]],
                says("b p1/m"),
                1500,
                vec![1, 0],
            ),
            (vec![vec![Empty], vec![Fails(refused())]], Err("provider.cut_short"), 0, vec![0, 0]),
            (vec![vec![Fails(refused())], vec![Empty]], Err("provider.key_refused"), 0, vec![0, 0]),
            (vec![vec![SaysThenFails("a"), Says("b")]], Err("provider.unavailable"), 0, vec![1]),
            (vec![], Err("provider.unknown"), 0, vec![]),
        ] {
            let (outcome, waited, rest) = run(scripts).await;
            let outcome = outcome.map(|events| match &events[0] {
                ModelEvent::Text(text) => text.clone(),
                other => panic!("{other:?}"),
            });
            assert_eq!((outcome, waited.as_millis(), rest), (expected, waited_ms, left));
        }
    }
}
