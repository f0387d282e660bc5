//! Ids that are the same in every run.

use std::sync::atomic::{AtomicU64, Ordering};

use domain::Ids;
use uuid::Uuid;

/// Counts from 1. Ids sort in the order they were made.
#[derive(Debug, Default)]
pub struct SeededIds(AtomicU64);

impl Ids for SeededIds {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::SeqCst) + 1) << 64)
    }
}
