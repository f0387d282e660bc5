//! The directories themselves: one for each call, in one for each executor, removed when its call ends.

use std::{
    ffi::CString,
    fs::{DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat},
    io::Errno,
};

/// Begin of the name of an executor's directory.
const ROOM: &str = "room-";
/// A file in each room, locked while its executor lives; and one beside the rooms, while one is made or removed.
const LOCK: &str = "lock";

/// How long a call waits until its directory is gone. A hostile one holds a thousand directories, deep in each other: that
/// takes seconds on a slow disk, and nobody's answer is to be late by it.
const REMOVAL_WAIT_MAX: Duration = Duration::from_millis(100);

/// Where the calls of one executor have their directories.
pub(crate) struct Room {
    path: PathBuf,
    _lock: File,
}

/// The directory of one call. Removed when this is dropped.
pub(crate) struct Directory {
    path: PathBuf,
}

impl Room {
    /// Makes a room in `dir`, and removes those whose executor was killed.
    pub(crate) fn open(dir: &Path) -> io::Result<Room> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        let gate = lock_file(&dir.join(LOCK))?;
        flock(&gate, FlockOperation::LockExclusive)?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(ROOM) && is_abandoned(&path)? {
                remove(&path);
            }
        }
        let path = private_directory(ROOM, dir)?;
        let lock = lock_file(&path.join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Room { path, _lock: lock })
    }

    /// An empty directory, and a descriptor of it.
    pub(crate) fn directory(&self) -> io::Result<(Directory, File)> {
        let directory = Directory { path: private_directory("call-", &self.path)? };
        let file = File::open(&directory.path)?;
        Ok((directory, file))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

impl Directory {
    /// Removes it, and comes back when it is gone. Nobody waits for ever: what takes longer goes on by itself.
    pub(crate) async fn remove(mut self) {
        let path = std::mem::take(&mut self.path);
        let removal = tokio::task::spawn_blocking(move || remove(&path));
        if let Ok(Err(error)) = tokio::time::timeout(REMOVAL_WAIT_MAX, removal).await {
            tracing::error!(%error, "a scratch directory was not removed");
        }
    }
}

impl Drop for Directory {
    /// For a call that was dropped. Nobody waits for this work: it ends by itself, and what a stopping process leaves of
    /// it is removed by the next one.
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if path.as_os_str().is_empty() {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&path))),
            Err(_) => remove(&path),
        }
    }
}

fn private_directory(prefix: &str, dir: &Path) -> io::Result<PathBuf> {
    let mode = Permissions::from_mode(0o700);
    Ok(tempfile::Builder::new().prefix(prefix).permissions(mode).tempdir_in(dir)?.keep())
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// Whether nobody holds the room's lock. Its maker holds the gate until it has it.
fn is_abandoned(room: &Path) -> io::Result<bool> {
    match File::open(room.join(LOCK)) {
        Ok(lock) => Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::error!(%error, "a scratch directory was not removed");
    }
}

/// Takes a tree apart at its top, so that no depth needs a stack or many descriptors: what lies in an inner directory is
/// lifted to the outer one, until there are only files and empty directories.
fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open_directory(CWD, path)?;
    let mut lifted: u64 = 0;
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            match unlinkat(&top, &name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => {}
                other => {
                    other?;
                    continue;
                }
            }
            let inner = open_directory(&top, &name)?;
            for child in self::names(&inner)? {
                // A tool may have taken a name of ours: then the next one is tried.
                loop {
                    lifted += 1;
                    match renameat(&inner, &child, &top, format!("lifted-{lifted}")) {
                        Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {}
                        other => break other?,
                    }
                }
            }
            unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    std::fs::remove_dir(path)
}

fn open_directory(
    at: impl std::os::fd::AsFd,
    path: impl rustix::path::Arg,
) -> rustix::io::Result<std::os::fd::OwnedFd> {
    openat(at, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn names(dir: impl std::os::fd::AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_deep_tree_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let room = Room::open(home.path()).unwrap();
        let (directory, file) = room.directory().unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let path = directory.path.clone();
        let mut inner = open_directory(CWD, &path).unwrap();
        // Far longer than a path may be.
        for _ in 0..200 {
            rustix::fs::mkdirat(&inner, "d".repeat(200), Mode::from_raw_mode(0o700)).unwrap();
            inner = open_directory(&inner, "d".repeat(200)).unwrap();
        }
        for name in ["lifted-1", "lifted-2/x", "lifted-3/lifted-4/lifted-1"] {
            let file = path.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "x").unwrap();
        }
        std::os::unix::fs::symlink(home.path(), path.join("link")).unwrap();
        drop(directory);
        assert!(!path.exists());
        assert!(home.path().exists(), "a link is not followed");
    }

    #[test]
    fn what_a_killed_process_left_is_removed_at_the_next_start() {
        let home = tempfile::tempdir().unwrap();
        let alive = Room::open(home.path()).unwrap();
        let (directory, _) = alive.directory().unwrap();
        let dead = home.path().join("room-dead");
        std::fs::create_dir_all(dead.join("call-x/deep")).unwrap();
        std::fs::write(dead.join(LOCK), "").unwrap();
        std::fs::create_dir_all(home.path().join("room-without-a-lock")).unwrap();
        std::fs::create_dir_all(home.path().join("something-else")).unwrap();

        let next = Room::open(home.path()).unwrap();
        assert!(directory.path.exists(), "the directory of a living process");
        assert_eq!(entries(home.path()), 4, "two rooms, the lock, and what is not ours");
        drop((directory, alive, next));
        assert_eq!(entries(home.path()), 2);
    }
}
