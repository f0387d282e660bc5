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

use crate::{POLL, PORT, PostgresError};

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

    /// A program that runs as the server's user, in the home, and writes to the end of the log.
    pub(crate) fn command(&self, program: &Path) -> Result<Command, PostgresError> {
        let log = || File::options().create(true).append(true).open(self.log()).map_err(at("open", &self.log()));
        let mut command = Command::new(program);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        // The server takes defaults from these; ours are given in full.
        for name in ["PGDATA", "PGPORT", "PGDATESTYLE", "PGCLIENTENCODING"] {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        if let Some(user) = self.user {
            // As root this drops our supplementary groups too.
            command.uid(user.uid).gid(user.gid);
        }
        Ok(command)
    }

    /// Empties the log: each start begins a new one, which bounds it.
    pub(crate) fn clear_log(&self) -> Result<(), PostgresError> {
        File::create(self.log()).map(drop).map_err(at("empty", &self.log()))
    }

    /// The last lines of the log, for an error.
    pub(crate) fn log_tail(&self) -> String {
        let read = || {
            let mut file = File::open(self.log())?;
            let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES_MAX);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map(|_| bytes)
        };
        read().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default()
    }
}

/// The socket that clients connect to.
pub(crate) fn socket_path(socket_dir: &Path) -> PathBuf {
    socket_dir.join(format!(".s.PGSQL.{PORT}"))
}

/// Makes the cause of a failure into an error that names the act and the path.
pub(crate) fn at(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
    let path = path.to_owned();
    move |source| PostgresError::Io { act, path, source }
}

/// The setting is a list, so that commas and quotes would split the path; and a URL must be able to hold it.
fn socket_fits(socket_dir: &Path) -> bool {
    let path = socket_path(socket_dir);
    path.to_str().is_some_and(|path| path.len() <= SOCKET_PATH_BYTES_MAX && !path.contains([',', '"', '\'', '\\']))
}

fn unprivileged_user() -> Result<User, PostgresError> {
    let passwd = Path::new("/etc/passwd");
    choose_user(&fs::read_to_string(passwd).map_err(at("read", passwd))?).ok_or(PostgresError::NoUser)
}

/// Postgres needs a user with an entry in the list of users.
fn choose_user(passwd: &str) -> Option<User> {
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        })
    };
    find("postgres").or_else(|| find("nobody"))
}

/// Whether `user` can pass through every folder above `folder`, which itself will be theirs.
fn reachable(folder: &Path, user: User) -> bool {
    folder
        .ancestors()
        .skip(1)
        .all(|above| fs::metadata(above).is_ok_and(|above| passable(above.mode(), above.uid(), above.gid(), user)))
}

fn passable(mode: u32, uid: u32, gid: u32, user: User) -> bool {
    let bit = if uid == user.uid {
        0o100
    } else if gid == user.gid {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

/// Takes a folder for the cluster of `asked` where any user can pass, and leaves word of it in `asked`.
fn move_elsewhere(asked: &Path) -> Result<PathBuf, PostgresError> {
    let elsewhere = Path::new(ELSEWHERE);
    fs::create_dir_all(elsewhere).map_err(at("create", elsewhere))?;
    fs::set_permissions(elsewhere, Permissions::from_mode(0o755)).map_err(at("open to all", elsewhere))?;
    let folder = elsewhere.join(format!("{:016x}", fnv1a(asked.as_os_str().as_encoded_bytes())));
    fs::create_dir_all(&folder).map_err(at("create", &folder))?;
    let location = asked.join(LOCATION);
    fs::write(&location, folder.as_os_str().as_encoded_bytes()).map_err(at("write", &location))?;
    Ok(folder)
}

/// FNV-1a: the same for a path in every release of ours, unlike the standard library's hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_is_preferred_to_nobody() {
        let nobody = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\n";
        let both = format!("{nobody}postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n");
        for (passwd, expected) in [
            (both.as_str(), Some(User { uid: 101, gid: 104 })),
            (nobody, Some(User { uid: 65534, gid: 65533 })),
            ("nobody:*:-2:-2:Unprivileged User:/var/empty:/usr/bin/false\n", None),
            ("postgresql:x:5:5::/:/bin/sh\n", None),
            ("", None),
        ] {
            assert_eq!(choose_user(passwd), expected, "{passwd:?}");
        }
    }

    #[test]
    fn a_folder_is_passed_by_the_bits_of_owner_group_or_others() {
        let user = User { uid: 101, gid: 104 };
        for (mode, uid, gid, expected) in [
            (0o755, 0, 0, true),
            (0o700, 0, 0, false),
            (0o700, 101, 0, true),
            (0o710, 0, 104, true),
            (0o701, 0, 104, false),
            (0o711, 0, 0, true),
        ] {
            assert_eq!(passable(mode, uid, gid, user), expected, "{mode:o} {uid} {gid}");
        }
    }

    #[test]
    fn a_socket_path_must_fit_and_be_one_entry_of_a_list() {
        // `/.s.PGSQL.5432` takes 14 bytes.
        for (folder, expected) in [
            ("/tmp/a".to_owned(), true),
            (format!("/{}", "a".repeat(88)), true),
            (format!("/{}", "a".repeat(89)), false),
            ("/tmp/a,b".to_owned(), false),
            ("/tmp/a b".to_owned(), true),
        ] {
            assert_eq!(socket_fits(Path::new(&folder)), expected, "{folder}");
        }
    }
}
