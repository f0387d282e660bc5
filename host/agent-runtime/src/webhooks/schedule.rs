//! What follows an attempt. Pure.

use std::time::Duration;

use agent_config::webhooks::deliveries::After;
use domain::Timestamp;

const SECOND: u64 = 1;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// Between an attempt and the next one, in seconds: three days in all, so that a receiver may be away for a weekend.
/// The first is at once.
const PAUSES: [u64; 9] =
    [5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
/// A part of each pause is left to chance, so that what failed at one moment does not return at one moment.
const JITTER: f64 = 0.2;
/// Longest pause that a receiver may ask for by `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * HOUR);
/// A webhook at which nothing has arrived for so long is disabled: longer than all attempts of one notice.
const FAILING_MAX: Duration = Duration::from_secs(5 * 24 * HOUR);

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Arrived,
    /// The receiver says that it wants no more (410).
    Gone,
    Failed {
        error: String,
        retry_after: Option<Duration>,
    },
}

/// `attempt` counts from 1; `chance` is in 0..1.
pub(super) fn after(
    outcome: Outcome,
    attempt: u32,
    failing_since: Option<Timestamp>,
    now: Timestamp,
    chance: f64,
) -> After {
    let (error, retry_after) = match outcome {
        Outcome::Arrived => return After::Delivered,
        Outcome::Gone => {
            let error = "it answered 410: it is gone".to_owned();
            return After::Disable { error, reason: "its receiver answered 410: it wants no more".into() };
        }
        Outcome::Failed { error, retry_after } => (error, retry_after),
    };
    if failing_since.is_some_and(|since| now.since(since) >= FAILING_MAX) {
        let days = FAILING_MAX.as_secs() / (24 * HOUR);
        return After::Disable { error, reason: format!("nothing has arrived for {days} days") };
    }
    let made = usize::try_from(attempt).unwrap_or(usize::MAX);
    let Some(pause) = PAUSES.get(made.saturating_sub(1)) else { return After::GiveUp { error } };
    let pause = Duration::from_secs(*pause).mul_f64(1.0 + JITTER * chance);
    let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    After::Again { error, at: now.plus(pause.max(asked)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(retry_after: Option<u64>) -> Outcome {
        Outcome::Failed { error: "no".into(), retry_after: retry_after.map(Duration::from_secs) }
    }

    #[test]
    fn attempts_are_made_for_three_days() {
        let start = Timestamp::from_unix_us(0);
        let mut now = start;
        let mut attempts = 1;
        while let After::Again { at, .. } = after(failed(None), attempts, Some(start), now, 0.0) {
            assert!(at > now);
            now = at;
            attempts += 1;
        }
        assert_eq!(attempts, 10);
        let hours = now.since(start).as_secs() / HOUR;
        assert_eq!(hours, 75);
        assert_eq!(after(failed(None), 10, Some(start), now, 0.0), After::GiveUp { error: "no".into() });
        assert_eq!(after(failed(None), u32::MAX, None, now, 0.0), After::GiveUp { error: "no".into() });
    }

    #[test]
    fn what_follows_depends_on_the_answer() {
        let now = Timestamp::from_unix_us(1_000_000_000_000_000);
        let again = |seconds: u64| After::Again { error: "no".into(), at: now.plus(Duration::from_secs(seconds)) };
        for (outcome, attempt, failing_hours, chance, expected) in [
            (Outcome::Arrived, 1, None, 0.0, After::Delivered),
            (Outcome::Arrived, 11, Some(24 * 30), 0.0, After::Delivered),
            (failed(None), 1, None, 0.0, again(5)),
            (failed(None), 1, None, 1.0, again(6)),
            (failed(None), 2, Some(1), 0.0, again(300)),
            (failed(Some(60)), 1, None, 0.0, again(60)),
            (failed(Some(60)), 2, None, 0.0, again(300)),
            (failed(Some(u64::MAX)), 1, None, 0.0, again(24 * HOUR)),
            (failed(None), 1, Some(5 * 24 - 1), 0.0, again(5)),
        ] {
            let since = failing_hours.map(|hours: u64| now.minus(Duration::from_secs(hours * HOUR)));
            assert_eq!(after(outcome.clone(), attempt, since, now, chance), expected, "{outcome:?} at {attempt}");
        }
        let long_ago = Some(now.minus(FAILING_MAX));
        assert!(matches!(after(failed(None), 1, long_ago, now, 0.0), After::Disable { .. }));
        assert!(matches!(after(Outcome::Gone, 1, None, now, 0.0), After::Disable { .. }));
    }
}
