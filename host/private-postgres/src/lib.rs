//! A private Postgres cluster for development and tests, from the binaries on the machine.
//!
//! Owns: no table.
//! May use: nothing.
//! Never: does anything but find, start, adopt and stop a cluster.
//! Start at: `Cluster::start`.
//!
//! Everything here blocks: call it at start-up or on a thread made for blocking.

mod binaries;
mod home;
mod postmaster;

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::binaries::VERSION_MIN;
pub use crate::binaries::{Binaries, Version};
use crate::home::{Home, at};
use crate::postmaster::{Next, disown, lives, look};

/// The superuser of every private cluster.
pub const SUPERUSER: &str = "postgres";
/// Longest wait for a start, recovery after a crash included: clusters here are small, this is ample.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a fast shutdown, which writes a checkpoint.
const FAST_STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an immediate shutdown, which writes nothing.
const IMMEDIATE_STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two looks while waiting: short beside a start, which takes some 100 ms.
const POLL: Duration = Duration::from_millis(10);
/// The port only names the socket file: nothing listens on TCP. Fixed, because the folder is private.
const PORT: u16 = 5432;

/// What happens to the data, and to the server, when things end badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A commit is safe. The server outlives an owner that was killed, and the next start adopts it.
    Durable,
    /// A commit is fast, and not safe from a power cut. On Linux with `setpriv` the server dies with the process that
    /// started it, so that a killed test leaves nothing running.
    Throwaway,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder that is missing, empty, or was used here before. For where the data is, see [`Cluster::home`].
    pub data_dir: PathBuf,
    pub durability: Durability,
    /// Further server settings, name and value; they win over ours. An adopted server keeps those of its start.
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// Of a cluster that test processes share: fast, and not safe from a power cut. A throwaway server would die with
    /// the process that happened to start it, and the others would not find it again.
    pub fn for_tests(data_dir: PathBuf) -> Options {
        let settings =
            [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off"), ("max_connections", "400")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Options { data_dir, durability: Durability::Durable, settings }
    }
}

/// A running cluster. Several processes may hold the same one: the last to stop or drop it ends the server.
#[derive(Debug)]
pub struct Cluster {
    home: Home,
    socket_dir: PathBuf,
    pid: i32,
    version: Version,
    adopted: bool,
    /// Locked, shared, while this value lives; whoever can lock it alone is the last one out.
    users: File,
    stopped: bool,
}

impl Cluster {
    /// Starts the cluster of `options.data_dir`, creating it first if need be, or adopts its live server.
    pub fn start(options: Options) -> Result<Cluster, PostgresError> {
        let deadline = Instant::now() + START_WAIT_MAX;
        let home = Home::prepare(&options.data_dir)?;
        let _turn = home.take_turn(deadline)?;
        let users = home.enter()?;
        let binaries = Binaries::find_for(home.data_major())?;

        let live = wait_while(&home, deadline, || match look(&home.data()) {
            Next::Wait => None,
            Next::Start => Some(None),
            Next::Use { pid, socket_dir } => Some(Some((pid, socket_dir))),
        })?;
        let adopted = live.is_some();
        let (pid, socket_dir) = match live {
            Some(live) => live,
            None => start_server_patiently(&home, &binaries, &options, deadline)?,
        };
        let version = binaries.version();
        tracing::info!(%version, pid, adopted, home = %home.folder().display(), "private Postgres is ready");
        Ok(Cluster { home, socket_dir, pid, version, adopted, users, stopped: false })
    }

    /// Ends the server, unless another process uses it too.
    pub fn stop(mut self) -> Result<(), PostgresError> {
        self.stop_once()
    }

    /// What a Postgres client connects to, here or by `DATABASE_URL`.
    pub fn url(&self, user: &str, database: &str) -> String {
        let (user, database) = (percent_encoded(user), percent_encoded(database));
        // The socket folder was chosen so that it is UTF-8. `localhost` only fills a place that URL parsers insist on.
        let folder = percent_encoded(&self.socket_dir.to_string_lossy());
        format!("postgres://{user}@localhost:{PORT}/{database}?host={folder}&sslmode=disable")
    }

    /// The folder of the server's socket.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The folder of the data and the log: the one asked for, or, as root, one that the server's user can reach.
    pub fn home(&self) -> &Path {
        self.home.folder()
    }

    /// The version of the programs on the machine.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The process of the server.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the server ran already.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    fn stop_once(&mut self) -> Result<(), PostgresError> {
        if std::mem::replace(&mut self.stopped, true) {
            return Ok(());
        }
        let _turn = self.home.take_turn(Instant::now() + START_WAIT_MAX)?;
        let users = self.home.folder();
        self.users.unlock().map_err(at("unlock", users))?;
        match self.users.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(at("lock", users)(error)),
        }
        shut_down(&self.home, self.pid)?;
        self.home.remove_socket_dir(&self.socket_dir);
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop_once() {
            tracing::warn!(%error, pid = self.pid, "private Postgres was not stopped");
        }
    }
}

/// When only the main process of a server was killed, its helpers take a moment to notice, and meanwhile Postgres
/// rightly refuses to start another on the same data.
fn start_server_patiently(
    home: &Home,
    binaries: &Binaries,
    options: &Options,
    deadline: Instant,
) -> Result<(i32, PathBuf), PostgresError> {
    loop {
        match start_server(home, binaries, options, deadline) {
            Err(PostgresError::Failed { tail, .. })
                if tail.contains("pre-existing shared memory block") && Instant::now() < deadline =>
            {
                thread::sleep(POLL);
            }
            done => return done,
        }
    }
}

/// Starts a server where none lives, and waits until it answers.
fn start_server(
    home: &Home,
    binaries: &Binaries,
    options: &Options,
    deadline: Instant,
) -> Result<(i32, PathBuf), PostgresError> {
    home.clear_log()?;
    if !home.data().exists() {
        create(home, binaries, options.durability, deadline)?;
    }
    let socket_dir = home.socket_dir()?;
    disown(&home.data(), &socket_dir)?;

    let server = binaries.folder().join("postgres");
    let mut command = match setpriv().filter(|_| options.durability == Durability::Throwaway) {
        Some(setpriv) => {
            let mut command = home.command(&setpriv)?;
            command.args(["--pdeathsig", "INT", "--"]).arg(server);
            command
        }
        None => home.command(&server)?,
    };
    command.arg("-D").arg(home.data());
    for (name, value) in settings(options, &socket_dir) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    // Ctrl-C in a terminal goes to the whole group: the server must not stop before those who use it have finished.
    command.process_group(0);
    let (pid, keeper) = spawn_kept(command)?;

    let ready = wait_while(home, deadline, || match look(&home.data()) {
        Next::Use { .. } => Some(true),
        _ => keeper.is_finished().then_some(false),
    });
    match ready {
        Ok(true) => Ok((pid, socket_dir)),
        failed => {
            let stopped = shut_down(home, pid);
            home.remove_socket_dir(&socket_dir);
            stopped?;
            failed?;
            Err(PostgresError::Failed { program: "postgres", log: home.log(), tail: home.log_tail() })
        }
    }
}

/// Starts the server from a thread of its own, which then waits for its end. The death signal of `setpriv` comes when
/// the *thread* that forked ends, and a caller's thread (of a blocking pool, of a test) may end early; this one ends
/// with the server or with the process. It also collects the exit status, so that no zombie is left.
fn spawn_kept(mut command: Command) -> Result<(i32, thread::JoinHandle<()>), PostgresError> {
    let program = PathBuf::from(command.get_program());
    let (sender, receiver) = mpsc::channel();
    let keeper = thread::Builder::new().name("private-postgres".to_owned()).spawn(move || match command.spawn() {
        Ok(mut child) => {
            let _ = sender.send(Ok(child.id().cast_signed()));
            let _ = child.wait();
        }
        Err(error) => drop(sender.send(Err(error))),
    });
    let keeper = keeper.map_err(at("start a thread for", &program))?;
    let pid = receiver.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())).map_err(at("run", &program))?;
    Ok((pid, keeper))
}

/// Creates the data beside its place and moves it there when it is whole: a creation that was cut off is begun anew.
fn create(home: &Home, binaries: &Binaries, durability: Durability, deadline: Instant) -> Result<(), PostgresError> {
    let unfinished = home.folder().join("data.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(at("remove", &unfinished))?;
    }
    let mut command = home.command(&binaries.folder().join("initdb"))?;
    command.arg("--pgdata").arg(&unfinished).arg("--username").arg(SUPERUSER);
    command.args(["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject", "--no-instructions"]);
    if durability == Durability::Throwaway {
        command.arg("--no-sync");
    }
    let mut child = command.spawn().map_err(at("run", Path::new(command.get_program())))?;
    let status = wait_while(home, deadline, || child.try_wait().transpose());
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    if !status?.map_err(at("wait for initdb in", home.folder()))?.success() {
        return Err(PostgresError::Failed { program: "initdb", log: home.log(), tail: home.log_tail() });
    }
    fs::rename(&unfinished, home.data()).map_err(at("rename", &unfinished))
}

/// The settings of a server, the later ones winning.
fn settings(options: &Options, socket_dir: &Path) -> Vec<(String, String)> {
    let mut settings = vec![
        ("listen_addresses", String::new()),
        ("unix_socket_directories", socket_dir.to_string_lossy().into_owned()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("port", PORT.to_string()),
        ("max_connections", "200".to_owned()),
        ("shared_buffers", "128MB".to_owned()),
        ("timezone", "UTC".to_owned()),
        // One line every five minutes that nobody reads: the log grows until the next start.
        ("log_checkpoints", "off".to_owned()),
    ];
    if options.durability == Durability::Throwaway {
        for name in ["fsync", "synchronous_commit", "full_page_writes"] {
            settings.push((name, "off".to_owned()));
        }
        settings.push(("shared_buffers", "32MB".to_owned()));
    }
    let ours = settings.into_iter().map(|(name, value)| (name.to_owned(), value));
    ours.chain(options.settings.iter().cloned()).collect()
}

/// `setpriv` of util-linux; that of busybox knows no death signal.
fn setpriv() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&folders).find_map(|folder| folder.join("setpriv").canonicalize().ok())?;
    found.ends_with("setpriv").then_some(found)
}

/// A fast shutdown, which breaks off connections and writes a checkpoint; if that takes too long, an immediate one,
/// after which the next start recovers from the log of writes.
fn shut_down(home: &Home, pid: i32) -> Result<(), PostgresError> {
    let data = home.data();
    for (signal, wait_max) in [(Signal::INT, FAST_STOP_WAIT_MAX), (Signal::QUIT, IMMEDIATE_STOP_WAIT_MAX)] {
        if let Some(pid) = Pid::from_raw(pid).filter(|_| lives(pid, &data)) {
            // It may end between the look and the signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
        if wait_while(home, Instant::now() + wait_max, || (!lives(pid, &data)).then_some(())).is_ok() {
            return Ok(());
        }
    }
    Err(PostgresError::NotStopped { pid })
}

/// Looks again and again until `look` has an answer.
fn wait_while<T>(home: &Home, deadline: Instant, mut look: impl FnMut() -> Option<T>) -> Result<T, PostgresError> {
    loop {
        if let Some(answer) = look() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(PostgresError::TooSlow { log: home.log(), tail: home.log_tail() });
        }
        thread::sleep(POLL);
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("no Postgres is installed; {INSTALL}")]
    NotInstalled,
    #[error("the newest Postgres here is {found}, and {VERSION_MIN} or newer is needed; {INSTALL}")]
    TooOld { found: Version },
    #[error(
        "the data was written by Postgres {data}, and only {found} is installed; install Postgres {data}, or remove the \
         data folder to begin with an empty database"
    )]
    OtherMajor { data: u32, found: Version },
    #[error(
        "Postgres refuses to run as root, and there is no user `postgres` or `nobody` to run it as; add one \
         (`useradd --system postgres`), or do not run as root"
    )]
    NoUser,
    #[error("`{}` holds other files; name an empty folder for the database", folder.display())]
    NotOurs { folder: PathBuf },
    #[error("another process is starting or stopping the database in `{}`; try again", folder.display())]
    Busy { folder: PathBuf },
    #[error("`{program}` failed; its words are in `{}`, the last of them:\n{tail}", log.display())]
    Failed { program: &'static str, log: PathBuf, tail: String },
    #[error("Postgres did not get ready in time; its words are in `{}`, the last of them:\n{tail}", log.display())]
    TooSlow { log: PathBuf, tail: String },
    #[error("Postgres (process {pid}) does not stop; end it with `kill -9 {pid}`")]
    NotStopped { pid: i32 },
    #[error("could not {act} `{}`; check that it exists and that its permissions allow it", path.display())]
    Io { act: &'static str, path: PathBuf, source: io::Error },
}

/// How to get one, for the systems that we know.
const INSTALL: &str = "install it with `apt-get install postgresql` (Debian, Ubuntu), `dnf install postgresql-server` \
     (Fedora) or `brew install postgresql@17` (macOS), or put its folder of programs in PATH";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_holds_any_name() {
        assert_eq!(percent_encoded("/tmp/a b/run"), "%2Ftmp%2Fa%20b%2Frun");
        assert_eq!(percent_encoded("ada-1_x.y~é@"), "ada-1_x.y~%C3%A9%40");
    }

    #[test]
    fn the_settings_of_the_caller_come_last() {
        let options = Options {
            data_dir: PathBuf::from("/d"),
            durability: Durability::Throwaway,
            settings: vec![("max_connections".to_owned(), "9".to_owned())],
        };
        let settings = settings(&options, Path::new("/d/run"));
        let last = |name: &str| settings.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(last("max_connections"), Some("9"));
        assert_eq!(last("fsync"), Some("off"));
        assert_eq!(last("listen_addresses"), Some(""));
        assert_eq!(last("unix_socket_directories"), Some("/d/run"));
    }
}
