//! `belljar:tool/progress`: how far a call has come, for whoever follows it. Never more than a reader can read.

use std::time::{Duration, Instant};

use tool_api::{HostCall, Progress};
use wasmtime::component::{HasSelf, Linker};

use crate::{
    bindings::belljar::tool1_0_0::progress,
    capabilities::ledger::{micros_since, use_of},
    sandbox::Sandbox,
};

/// Longest text that is told, in bytes. Longer ones are cut.
const TEXT_BYTES_MAX: usize = 500;
/// Reports of one call that are told in one second, and in all: each is an event of the run, for every reader.
const PER_SECOND_MAX: u32 = 10;
const REPORTS_MAX: u32 = 1_000;
const SECOND: Duration = Duration::from_secs(1);

/// What one call has told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    all: u32,
    /// The begin of the second under way, and what was told in it.
    second: Option<(Instant, u32)>,
}

impl Told {
    /// Whether one more may be told at this moment; then it is counted.
    fn one_more(&mut self, now: Instant) -> bool {
        let (begin, count) =
            self.second.filter(|(begin, _)| now.saturating_duration_since(*begin) < SECOND).unwrap_or((now, 0));
        if self.all >= REPORTS_MAX || count >= PER_SECOND_MAX {
            return false;
        }
        self.all += 1;
        self.second = Some((begin, count + 1));
        true
    }
}

impl progress::Host for Sandbox {
    fn report(&mut self, percent: Option<u8>, mut text: String) -> wasmtime::Result<()> {
        let started = Instant::now();
        self.meter.handled(text.len());
        let bytes = text.len();
        let told = self.progress.one_more(started);
        if told {
            if let Some(opened) = self.opened_secrets() {
                text = opened.text(&text);
            }
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
            self.host.progress(Progress { percent: percent.map(|percent| percent.min(100)), text });
        }
        self.ledger.tell(HostCall {
            bytes_in: bytes as u64,
            duration_us: micros_since(started),
            error: (!told).then(|| "too many reports; this one is not told".to_owned()),
            ..use_of("belljar:tool/progress", "report")
        });
        Ok(())
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    progress::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_told_than_can_be_read() {
        let begin = Instant::now();
        let mut told = Told::default();
        let in_second = |told: &mut Told, second: u64| {
            (0..50).filter(|n| told.one_more(begin + Duration::from_millis(second * 1_000 + n))).count()
        };
        assert_eq!(in_second(&mut told, 0), 10);
        assert_eq!(in_second(&mut told, 1), 10);
        let rest: usize = (2..200).map(|second| in_second(&mut told, second)).sum();
        assert_eq!(rest, REPORTS_MAX as usize - 20);
    }
}
