//! What calls leave in the tenant's key-value store, in the transaction that commits them. A call's changes are applied
//! whole or not at all; what that means for the call is decided here.

use agent_config::key_value::{self, Applied};
use domain::{CallId, Timestamp};
use tenancy::TenantTx;
use tool_api::{Change, Outcome, Receipt, Status};

use crate::runs::RunError;

/// Tries of one call that others get in the way of. Only the last one counts: it is on the receipt and on the bill.
pub(crate) const ATTEMPTS_MAX: u32 = 3;
/// A request that left cannot be taken back.
const REQUESTS: &str = "wasi:http.handle";

/// How the changes of one try fared.
#[derive(Debug, Clone)]
pub(crate) struct Tried {
    applied: Applied,
    attempt: u32,
    /// It has sent a request, or tried to.
    sent: bool,
}

impl Tried {
    pub(crate) fn is_applied(&self) -> bool {
        matches!(self.applied, Applied::Applied)
    }
}

#[derive(Debug, PartialEq)]
pub(crate) enum AfterApply {
    /// These calls, by their place, have these outcomes now, and left nothing. All others' changes are in the
    /// transaction.
    Commit(Vec<(usize, Outcome)>),
    /// Roll back, run these calls again in this order, and apply all again.
    Rerun(Vec<usize>),
}

/// Applies the changes of calls in their order. Nothing is asked of the database when there are none.
pub(crate) async fn apply(
    tx: &mut TenantTx,
    storage_bytes_max: i64,
    calls: &[(CallId, Vec<Change>, Option<&Receipt>)],
    now: Timestamp,
) -> Result<Vec<Tried>, RunError> {
    if calls.iter().all(|(_, changes, _)| changes.is_empty()) {
        return Ok(Vec::new());
    }
    let changes: Vec<_> = calls.iter().map(|(id, changes, _)| (*id, changes.clone())).collect();
    let applied = key_value::apply(tx, storage_bytes_max, &changes, now).await?;
    let tried = applied.into_iter().zip(calls).map(|((_, applied), (_, _, receipt))| Tried {
        applied,
        attempt: receipt.map_or(1, |receipt| receipt.attempt),
        sent: receipt.is_some_and(|receipt| receipt.host_call_counts.contains_key(REQUESTS)),
    });
    Ok(tried.collect())
}

/// Pure. `may_rerun`: there is time for it, and somebody who waits.
pub(crate) fn after_apply(tried: &[Tried], may_rerun: bool) -> AfterApply {
    let again = |tried: &Tried| {
        may_rerun && matches!(tried.applied, Applied::Conflict { .. }) && !tried.sent && tried.attempt < ATTEMPTS_MAX
    };
    let rerun: Vec<usize> = (0..tried.len()).filter(|at| again(&tried[*at])).collect();
    if !rerun.is_empty() {
        return AfterApply::Rerun(rerun);
    }
    let settled = tried.iter().enumerate().filter_map(|(at, tried)| Some((at, tried.outcome()?)));
    AfterApply::Commit(settled.collect())
}

impl Tried {
    /// What the call came to when its changes were not applied.
    fn outcome(&self) -> Option<Outcome> {
        let code = self.applied.code()?;
        let why = match self.applied {
            Applied::Conflict { .. } if self.sent => {
                " (the tool has sent a request, so it was not run again by itself)"
            }
            Applied::Conflict { .. } if self.attempt > 1 => " (it was run again, with the same end)",
            _ => "",
        };
        Some(Outcome::failed(Status::ToolError, code, format!("{}{why}", self.applied)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(applied: Applied, attempt: u32, sent: bool) -> Tried {
        Tried { applied, attempt, sent }
    }

    #[test]
    fn a_conflict_runs_again_unless_something_left_the_house() {
        let applied = || tried(Applied::Applied, 1, false);
        let conflict =
            |attempt, sent| tried(Applied::Conflict { namespace: "notes".into(), key: "k".into() }, attempt, sent);
        let quota = || tried(Applied::Quota { bytes: 2, max: 1 }, 1, false);
        let text = || tried(Applied::NotANumber { namespace: "notes".into(), key: "k".into() }, 1, false);
        let codes = |settled: &[(usize, &str)]| -> Result<Vec<(usize, String)>, Vec<usize>> {
            Ok(settled.iter().map(|(at, code)| (*at, (*code).to_owned())).collect())
        };
        for (tried, may_rerun, expected) in [
            (vec![], true, codes(&[])),
            (vec![applied(), applied()], true, codes(&[])),
            (vec![applied(), conflict(1, false)], true, Err(vec![1])),
            (vec![conflict(2, false), applied(), conflict(1, false)], true, Err(vec![0, 2])),
            (vec![conflict(ATTEMPTS_MAX, false)], true, codes(&[(0, "kv.conflict")])),
            (vec![conflict(1, true)], true, codes(&[(0, "kv.conflict")])),
            (vec![conflict(1, false)], false, codes(&[(0, "kv.conflict")])),
            // One that may not run again waits for one that may: what that one does is not known yet.
            (vec![conflict(1, true), conflict(1, false)], true, Err(vec![1])),
            (vec![quota(), applied(), text()], true, codes(&[(0, "kv.quota"), (2, "kv.not_a_number")])),
            (vec![quota(), conflict(1, false)], true, Err(vec![1])),
        ] {
            let found = match after_apply(&tried, may_rerun) {
                AfterApply::Rerun(calls) => Err(calls),
                AfterApply::Commit(settled) => {
                    assert!(settled.iter().all(|(_, outcome)| outcome.status == Status::ToolError));
                    Ok(settled.into_iter().map(|(at, outcome)| (at, outcome.code.unwrap_or_default())).collect())
                }
            };
            assert_eq!(found, expected, "{tried:?}");
        }
    }

    #[test]
    fn the_model_reads_why_it_was_not_run_again() {
        let conflict = || Applied::Conflict { namespace: "notes".into(), key: "k".into() };
        let words = |attempt, sent| tried(conflict(), attempt, sent).outcome().unwrap().for_model();
        assert!(words(1, true).contains("has sent a request"), "{}", words(1, true));
        assert!(words(3, false).contains("run again, with the same end"), "{}", words(3, false));
        assert!(words(1, false).starts_with("tool_error (kv.conflict): "), "{}", words(1, false));
    }
}
