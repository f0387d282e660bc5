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
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

pub use crate::binaries::{Binaries, VERSION_MIN, Version};
use crate::home::Home;
use crate::postmaster::{Next, PidFile};

/// Longest wait for a start, recovery after a crash included: dev clusters are small, this is ample.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a fast shutdown, which writes a checkpoint.
const FAST_STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an immediate shutdown, which writes nothing.
const IMMEDIATE_STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the server while waiting: short beside a start, which takes some 100 ms.
const POLL: Duration = Duration::from_millis(10);
/// The port names the socket file only; nothing listens on TCP. Fixed, because the folder is private.
const PORT: u16 = 5432;
/// The superuser of every private cluster.
pub const SUPERUSER: &str = "postgres";

/// What happens to the data, and to the server, when things end badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Commits are safe. The server outlives an owner that was killed, and the next start adopts it.
    Durable,
    /// Commits are fast and not safe from a power cut. Where the system can do it (Linux with `setpriv`), the server
    /// dies with the process that started it, so that killed tests leave nothing running.
    Throwaway,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder that is empty, missing, or was used here before. Where the data ends up, see [`Cluster::home`].
    pub data_dir: PathBuf,
    /// See [`Durability`].
    pub durability: Durability,
    /// Further server settings, name and value. They win over ours. An adopted server keeps those of its start.
    pub settings: Vec<(String, String)>,
}

/// A running cluster. Several processes may hold the same one: the last to stop or drop it ends the server.
#[derive(Debug)]
pub struct Cluster {
    home: Home,
    socket_dir: PathBuf,
    pid: i32,
    version: Version,
    adopted: bool,
    /// Locked shared while this value lives; whoever can lock it alone is the last one out.
    users: File,
    stopped: bool,
}

impl Cluster {
    /// Starts the cluster of `options.data_dir`, creating it first if need be, or adopts its live server.
    pub fn start(options: Options) -> Result<Cluster, PostgresError> {
        let deadline = Instant::now() + START_WAIT_MAX;
        let home = Home::prepare(&options.data_dir)?;
        let _turn = home.take_turn(deadline)?;
        let users = home.users()?;
        let binaries = Binaries::find_for(home.data_major())?;
        let version = binaries.version();
        let cluster = |socket_dir, pid, adopted| Cluster { home, socket_dir, pid, version, adopted, users, stopped: false };

        // A server may be there already, or be on its way up or down.
        let data = cluster_data(&options, &binaries);
        todo_placeholder(data, cluster)
    }
}
