//! A file or a directory that a call has open, and what the receipt tells of it when it is closed.

use std::sync::{Arc, Mutex, PoisonError};

use tool_api::HostCall;

use super::quota::Inode;
use crate::capabilities::ledger::Ledger;

/// Held by descriptors and streams: told when the last one is gone.
pub(super) struct Opened {
    pub(super) inode: Arc<Inode>,
    /// From `/scratch` on, as the tool wrote it.
    pub(super) path: String,
    ledger: Ledger,
    /// `None`: nothing is to be told, or it was told already.
    told: Mutex<Option<HostCall>>,
}

impl Opened {
    pub(super) fn new(inode: Arc<Inode>, path: String, ledger: Ledger, told: Option<HostCall>) -> Opened {
        Opened { inode, path, ledger, told: Mutex::new(told) }
    }

    pub(super) fn read(&self, bytes: usize) {
        self.change(|call| call.bytes_out += bytes as u64);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.change(|call| call.bytes_in += bytes as u64);
    }

    /// The first failure is told.
    pub(super) fn failed(&self, error: &str) {
        self.change(|call| {
            call.error.get_or_insert_with(|| error.to_owned());
        });
    }

    /// Tells what is known by now. Once.
    pub(super) fn end(&self) {
        if let Some(call) = self.told.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.ledger.tell(call);
        }
    }

    fn change(&self, change: impl FnOnce(&mut HostCall)) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change);
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.end();
    }
}
