//! What the files of one call may take. Pure: it counts sizes as the tool sees them, so a hole counts like data, and no
//! file is ever larger than what is counted for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files and directories of a call at the same time. An inode takes room of its own, which no size tells: with its block
/// and its name at most about 8 KiB, so a call never takes more than 8 MiB beyond its grant.
pub(super) const INODES_MAX: u32 = 1_000;

/// The grant has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scratch directory is full")]
pub(super) struct Full;

/// The sums of one call.
#[derive(Clone)]
pub(super) struct Quota {
    bytes_max: u64,
    sums: Arc<Mutex<Sums>>,
}

#[derive(Default)]
struct Sums {
    bytes: u64,
    inodes: u32,
    /// Files and directories that there have ever been.
    numbered: u64,
}

/// A file or a directory. It counts for as long as this lives: with its name, and after that with whoever holds it open.
pub(super) struct Inode {
    quota: Quota,
    /// The n-th of its call: what a tool sees as its identity, the same in a replay.
    pub(super) number: u64,
    file: Mutex<File>,
}

#[derive(Default)]
struct File {
    /// What is counted. The file itself may be smaller, where a write failed halfway.
    size: u64,
    /// Writes that were counted and may still be under way.
    writes: u32,
}

impl Quota {
    pub(super) fn new(bytes_max: u64) -> Quota {
        Quota { bytes_max, sums: Arc::default() }
    }

    /// One more file or directory, empty.
    pub(super) fn inode(&self) -> Result<Inode, Full> {
        let mut sums = self.sums();
        if sums.inodes >= INODES_MAX {
            return Err(Full);
        }
        sums.inodes += 1;
        sums.numbered += 1;
        Ok(Inode { quota: self.clone(), number: sums.numbered, file: Mutex::default() })
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inode {
    pub(super) fn size(&self) -> u64 {
        self.file().size
    }

    /// Before the file becomes as large as `end`, or stays larger.
    pub(super) fn reach(&self, end: u64) -> Result<(), Full> {
        let mut file = self.file();
        if end > file.size {
            self.grow(&mut file, end)?;
        }
        Ok(())
    }

    /// Before `bytes` are written at `offset`.
    pub(super) fn write(&self, offset: u64, bytes: usize) -> Result<(), Full> {
        match bytes as u64 {
            0 => Ok(()),
            bytes => self.reach(offset.checked_add(bytes).ok_or(Full)?),
        }
    }

    /// Before `bytes` are written at the end.
    pub(super) fn append(&self, bytes: usize) -> Result<(), Full> {
        let mut file = self.file();
        let end = file.size.checked_add(bytes as u64).ok_or(Full)?;
        self.grow(&mut file, end)
    }

    /// After the file became as small as `size`.
    pub(super) fn shrunk(&self, size: u64) {
        let mut file = self.file();
        let freed = file.size.saturating_sub(size);
        file.size -= freed;
        self.quota.sums().bytes -= freed;
    }

    /// A write goes on after its host function has returned. Until it ends the file must not shrink: the write might
    /// land after that, and make the file larger than what is counted.
    pub(super) fn write_began(&self) {
        self.file().writes += 1;
    }

    pub(super) fn write_ended(&self) {
        let mut file = self.file();
        file.writes = file.writes.saturating_sub(1);
    }

    pub(super) fn is_written(&self) -> bool {
        self.file().writes > 0
    }

    fn grow(&self, file: &mut File, size: u64) -> Result<(), Full> {
        let mut sums = self.quota.sums();
        let bytes = sums.bytes.checked_add(size - file.size).ok_or(Full)?;
        if bytes > self.quota.bytes_max {
            return Err(Full);
        }
        sums.bytes = bytes;
        file.size = size;
        Ok(())
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let size = self.size();
        let mut sums = self.quota.sums();
        sums.bytes -= size;
        sums.inodes -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_as_they_are_seen() {
        let quota = Quota::new(100);
        let file = quota.inode().unwrap();
        assert_eq!(file.write(101, 0), Ok(()), "writing nothing makes nothing larger");
        assert_eq!(file.write(99, 2), Err(Full));
        assert_eq!(file.write(u64::MAX, 1), Err(Full));
        assert_eq!(file.write(99, 1), Ok(()), "a hole counts");
        assert_eq!(file.write(0, 100), Ok(()), "and is filled for nothing");
        assert_eq!(file.append(1), Err(Full));
        let other = quota.inode().unwrap();
        assert_eq!(other.append(1), Err(Full));
        file.shrunk(40);
        assert_eq!(other.append(60), Ok(()));
        assert_eq!(file.reach(41), Err(Full));
        drop(other);
        assert_eq!(file.reach(100), Ok(()));
        drop(file);
        assert_eq!(quota.sums().bytes, 0);
    }

    #[test]
    fn inodes_are_counted_while_anybody_holds_them() {
        let quota = Quota::new(100);
        let held: Vec<_> = (0..INODES_MAX).map(|_| quota.inode().unwrap()).collect();
        assert!(quota.inode().is_err());
        drop(held);
        assert_eq!(quota.inode().unwrap().number, u64::from(INODES_MAX) + 1);
    }

    #[test]
    fn a_write_under_way_is_known() {
        let quota = Quota::new(100);
        let file = quota.inode().unwrap();
        file.write_began();
        file.write_began();
        file.write_ended();
        assert!(file.is_written());
        file.write_ended();
        file.write_ended();
        assert!(!file.is_written());
    }
}
