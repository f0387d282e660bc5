//! Where a cluster lives and as whom it runs.
//!
//! Postgres refuses to run as root. As root we run it as `postgres`, else `nobody`, and the data must be in a folder
//! which that user can reach: not below a home with mode 0700.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{PORT, POLL, PostgresError};

/// Longest path of a socket, in bytes: macOS takes 103, Linux 107.
const SOCKET_PATH_BYTES_MAX: usize = 103;
/// How much of the end of the server's log is shown in an error: enough for one failed start.
const LOG_TAIL_BYTES_MAX: u64 = 2 * 1024;
/// Where clusters live that were asked for in a folder which their user cannot reach.
const ELSEWHERE: &str = "/var/lib/belljar-postgres";
/// In the folder that was asked for: the path of the folder that was taken instead.
const LOCATION: &str = "location";
/// Locked while one process starts or stops the cluster. It also marks a folder as ours.
const TURN: &str = "turn.lock";
/// Locked, shared, by everyone who uses the cluster.
const USERS: &str = "users.lock";

/// The user that the server runs as, where it is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

/// The folder of a cluster: the data, the log, the socket and the locks.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    folder: PathBuf,
    user: Option<User>,
}

impl Home {
    /// Settles where the cluster of the folder `asked` lives, and makes that folder private.
    pub(crate) fn prepare(asked: &Path) -> Result<Home, PostgresError> {
        fs::create_dir_all(asked).map_err(at("create", asked))?;
        let asked = &asked.canonicalize().map_err(at("resolve", asked))?;
        let default_user = if rustix::process::geteuid().is_root() { Some(unprivileged_user()?) } else { None };
        let moved = fs::read_to_string(asked.join(LOCATION)).ok().map(PathBuf::from).filter(|folder| folder.is_dir());
        let folder = match (moved, default_user) {
            (Some(folder), _) => folder,
            (None, Some(user)) if !reachable(asked, user) => move_elsewhere(asked)?,
            (None, _) => asked.clone(),
        };
        // Whoever wrote the data keeps it, even if a better user was installed since.
        let owner = fs::metadata(folder.join("data")).map(|data| User { uid: data.uid(), gid: data.gid() });
        let user = default_user.map(|user| owner.ok().filter(|owner| owner.uid != 0).unwrap_or(user));
        // The mode and owner of the folder change: not those of a folder that somebody named by mistake.
        let is_empty = fs::read_dir(&folder).map_err(at("list", &folder))?.next().is_none();
        if !is_empty && !folder.join(TURN).exists() {
            return Err(PostgresError::NotOurs { folder });
        }
        let home = Home { folder, user };
        home.lock_file(TURN)?;
        home.make_private(&home.folder)?;
        Ok(home)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    /// The major version that wrote the data, if there is data.
    pub(crate) fn data_major(&self) -> Option<u32> {
        fs::read_to_string(self.data().join("PG_VERSION")).ok()?.trim().parse().ok()
    }

    /// Waits until no other process starts or stops this cluster. The turn ends when the file is dropped, or with
    /// the process.
    pub(crate) fn take_turn(&self, deadline: Instant) -> Result<File, PostgresError> {
        let file = self.lock_file(TURN)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(at("lock", &self.folder.join(TURN))(error)),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                    return Err(PostgresError::Busy { folder: self.folder.clone() });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
            }
        }
    }

    /// Enters us among the users of the cluster. Only whoever has the turn may call it, so nobody is in the way.
    pub(crate) fn enter(&self) -> Result<File, PostgresError> {
        let file = self.lock_file(USERS)?;
        file.lock_shared().map_err(at("lock", &self.folder.join(USERS)))?;
        Ok(file)
    }

    fn lock_file(&self, name: &str) -> Result<File, PostgresError> {
        let path = self.folder.join(name);
        File::options().create(true).truncate(false).write(true).open(&path).map_err(at("open", &path))
    }

    /// A folder for the socket: in the home, unless its path is too long or has signs that the setting cannot hold.
    pub(crate) fn socket_dir(&self) -> Result<PathBuf, PostgresError> {
        let near = self.folder.join("run");
        if socket_fits(&near) {
            if let Err(error) = DirBuilder::new().mode(0o700).create(&near)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(at("create", &near)(error));
            }
            self.make_private(&near)?;
            return Ok(near);
        }
        // Not the folder of TMPDIR, which may be long as well, or closed to the server's user.
        let short = tempfile::Builder::new().prefix("belljar-pg-").tempdir_in("/tmp");
        let short = short.map_err(at("create a folder in", Path::new("/tmp")))?;
        self.make_private(short.path())?;
        Ok(short.keep())
    }

    /// Removes a socket folder that is not in the home.
    pub(crate) fn remove_socket_dir(&self, socket_dir: &Path) {
        if !socket_dir.starts_with(&self.folder) {
            // It is empty by now. If it is not, somebody else's file is in it, and it stays.
            let _ = fs::remove_dir(socket_dir);
        }
    }

    fn make_private(&self, folder: &Path) -> Result<(), PostgresError> {
        if let Some(user) = self.user {
            chown(folder, Some(user.uid), Some(user.gid)).map_err(at("give to the server's user", folder))?;
        }
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(at("make private", folder))
    }

    /// A program that runs as the server's user, in the home, and writes to the log.
    pub(crate) fn command(&self, program: &Path, log: &File) -> Result<Command, PostgresError> {
        let log = |log: &File| log.try_clone().map_err(at("share", &self.log()));
        let (stdout, stderr) = { (log_clone(log_ref(&log))?, log_clone(log_ref(&log))?) };
        unimplemented!()
    }
}
