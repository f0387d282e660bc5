//! Points at which a test build ends itself, as `kill -9` would: nothing is finished, nothing is rolled back in order.
//!
//! Only builds with debug assertions have them; in any other `arm` refuses and `point` is nothing. `cargo xtask chaos`
//! goes through all of them.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// Before and after each commit of a run, and where a run changes hands.
pub const POINTS: [&str; 16] = [
    "start.committing",
    "start.committed",
    "run.claimed",
    "approval.committing",
    "approval.committed",
    "decision.committed",
    "intent.committing",
    "intent.committed",
    "call.returned",
    "step.committing",
    "step.committed",
    "end.committing",
    "end.committed",
    "direct.reserved",
    "direct.committing",
    "direct.committed",
];

/// The one point at which this process ends.
static ARMED: OnceLock<Armed> = OnceLock::new();

struct Armed {
    point: String,
    /// How often the point is still passed before.
    left: AtomicU32,
    end: fn(),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FaultError {
    #[error("this build has no faults: unset BELLJAR_FAULT")]
    Production,
    #[error("`{0}` is not POINT:N, where N counts from 1 and POINT is one of {list}", list = POINTS.join(", "))]
    Unknown(String),
}

/// Ends the process by `end` when a point is come to for the n-th time: `step.committed:3`.
pub fn arm(setting: &str, end: fn()) -> Result<(), FaultError> {
    if !cfg!(debug_assertions) {
        return Err(FaultError::Production);
    }
    let (point, left) = parse(setting).ok_or_else(|| FaultError::Unknown(setting.to_owned()))?;
    // A second one is not armed: the process has one setting.
    let _ = ARMED.set(Armed { point, left: AtomicU32::new(left), end });
    Ok(())
}

fn parse(setting: &str) -> Option<(String, u32)> {
    let (point, times) = setting.split_once(':')?;
    let left = times.parse::<u32>().ok()?.checked_sub(1)?;
    POINTS.contains(&point).then(|| (point.to_owned(), left))
}

/// A process that is to end here does.
#[inline]
pub(crate) fn point(name: &'static str) {
    if !cfg!(debug_assertions) {
        return;
    }
    debug_assert!(POINTS.contains(&name), "{name} is not in the list");
    let Some(armed) = ARMED.get().filter(|armed| armed.point == name) else { return };
    // Counted down once for each time; the one that finds zero ends it.
    let left = armed.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    if left.is_err() {
        (armed.end)();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The sources in a folder, as one text.
    fn sources(folder: &Path) -> String {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| !path.ends_with("fault.rs"))
            .map(|path| if path.is_dir() { sources(&path) } else { fs::read_to_string(&path).unwrap() })
            .collect()
    }

    #[test]
    fn every_point_is_somewhere() {
        let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        let missing: Vec<_> = POINTS.iter().filter(|point| !sources.contains(&format!("\"{point}\""))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn only_a_point_that_is_there_can_be_named() {
        for (setting, expected) in [
            ("step.committed:1", Some(("step.committed".to_owned(), 0))),
            ("run.claimed:12", Some(("run.claimed".to_owned(), 11))),
            ("step.committed:0", None),
            ("step.committed", None),
            ("step.commited:1", None),
            ("", None),
        ] {
            assert_eq!(parse(setting), expected, "{setting}");
        }
    }
}
