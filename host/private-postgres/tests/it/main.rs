//! A real server: started, stopped, lost and found again.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use private_postgres::{Binaries, Cluster, Durability, Options, PostgresError, SUPERUSER};

/// Longest wait for something that should be nearly immediate, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Names the folder and the durability to the process that [`owner`] is run in.
const OWNER_DIR: &str = "PRIVATE_POSTGRES_OWNER_DIR";
const OWNER_DURABILITY: &str = "PRIVATE_POSTGRES_OWNER_DURABILITY";

fn start(data_dir: &Path, durability: Durability) -> Result<Cluster, PostgresError> {
    Cluster::start(Options { data_dir: data_dir.to_owned(), durability, settings: Vec::new() })
}

fn query(cluster: &Cluster, sql: &str) -> String {
    let psql = Binaries::find().unwrap().folder().join("psql");
    let url = cluster.url(SUPERUSER, "postgres");
    let output = Command::new(psql).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, &url]).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn is_running(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Runs [`owner`] in a process, waits until its cluster is up, and kills it. Returns the server's process.
fn lose_an_owner(data_dir: &Path, durability: &str) -> i32 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["owner", "--exact", "--ignored", "--nocapture"])
        .env(OWNER_DIR, data_dir)
        .env(OWNER_DURABILITY, durability)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let pid = lines.map(Result::unwrap).find_map(|line| line.split_once("server=")?.1.parse().ok());
    child.kill().unwrap();
    child.wait().unwrap();
    pid.expect("the owner started a server")
}

#[test]
#[ignore = "the other tests run it in a process of its own, to kill that"]
#[expect(clippy::print_stdout, reason = "it tells the test that runs it")]
fn owner() {
    let Some(data_dir) = std::env::var_os(OWNER_DIR) else { return };
    let throwaway = std::env::var_os(OWNER_DURABILITY).is_some_and(|value| value == "throwaway");
    let cluster = start(Path::new(&data_dir), if throwaway { Durability::Throwaway } else { Durability::Durable });
    let cluster = cluster.unwrap();
    query(&cluster, "CREATE TABLE note (body text); INSERT INTO note VALUES ('kept')");
    println!("\nserver={}", cluster.pid());
    std::thread::sleep(PATIENCE);
}

#[test]
fn data_is_kept_over_a_stop_and_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = start(folder.path(), Durability::Durable).unwrap();
    assert!(!cluster.adopted());
    assert_eq!(fs::metadata(cluster.socket_dir()).unwrap().mode() & 0o777, 0o700);
    query(&cluster, "CREATE TABLE note (body text); INSERT INTO note VALUES ('kept')");
    assert_eq!(query(&cluster, "SHOW listen_addresses"), "");
    assert_eq!(query(&cluster, "SHOW fsync"), "on");
    assert_eq!(query(&cluster, "SHOW server_encoding"), "UTF8");
    let pid = cluster.pid();
    cluster.stop().unwrap();
    assert!(!is_running(pid));

    // The number of a process that is gone, and of one that is not a server, are no obstacle.
    for stale in [pid, std::process::id().cast_signed()] {
        let pid_file = folder.path().join("data/postmaster.pid");
        fs::write(&pid_file, format!("{stale}\n/x\n1\n5432\n/nowhere\n\n 1 1\nready\n")).unwrap();
        let cluster = start(folder.path(), Durability::Durable).unwrap();
        assert!(!cluster.adopted());
        assert_eq!(query(&cluster, "SELECT body FROM note"), "kept");
    }
}

#[test]
fn a_server_whose_owner_was_killed_is_adopted_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let pid = lose_an_owner(folder.path(), "durable");
    let cluster = start(folder.path(), Durability::Durable).unwrap();
    assert!(cluster.adopted());
    assert_eq!(cluster.pid(), pid);
    assert_eq!(query(&cluster, "SELECT body FROM note"), "kept");
    drop(cluster);
    assert!(!is_running(pid));
}

#[test]
fn a_server_that_was_killed_with_its_owner_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let pid = lose_an_owner(folder.path(), "durable");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let cluster = start(folder.path(), Durability::Durable).unwrap();
    assert_ne!(cluster.pid(), pid);
    assert_eq!(query(&cluster, "SELECT body FROM note"), "kept");
}

#[test]
#[cfg(target_os = "linux")]
fn a_throwaway_server_dies_with_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let pid = lose_an_owner(folder.path(), "throwaway");
    let deadline = Instant::now() + PATIENCE;
    while is_running(pid) {
        assert!(Instant::now() < deadline, "the server {pid} outlived its owner");
        std::thread::sleep(Duration::from_millis(10));
    }
    let cluster = start(folder.path(), Durability::Throwaway).unwrap();
    assert!(!cluster.adopted());
    assert_eq!(query(&cluster, "SELECT body FROM note"), "kept");
    assert_eq!(query(&cluster, "SHOW fsync"), "off");
}

#[test]
fn a_server_starts_on_a_thread_that_ends_and_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let cluster = std::thread::spawn(move || start(&path, Durability::Throwaway).unwrap()).join().unwrap();
    assert_eq!(query(&cluster, "SELECT pg_sleep(0.3), 'alive'"), "|alive");
}

#[test]
fn the_last_one_out_stops_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(folder.path(), Durability::Durable).unwrap();
    let second = start(folder.path(), Durability::Durable).unwrap();
    assert!(second.adopted());
    first.stop().unwrap();
    assert_eq!(query(&second, "SELECT 1"), "1");
    let pid = second.pid();
    second.stop().unwrap();
    assert!(!is_running(pid));
}

#[test]
fn a_long_path_gets_a_short_socket() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let cluster = start(&folder.path().join("long".repeat(30)), Durability::Throwaway).unwrap();
    assert_eq!(query(&cluster, "SELECT 1"), "1");
    let socket_dir = cluster.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(cluster.home()));
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    cluster.stop().unwrap();
    assert!(!socket_dir.exists());
}

#[test]
fn as_root_a_folder_in_a_closed_home_is_replaced_by_one_that_is_found_again() {
    let home = tempfile::tempdir().unwrap();
    if fs::metadata(home.path()).unwrap().uid() != 0 {
        return;
    }
    fs::set_permissions(home.path(), Permissions::from_mode(0o700)).unwrap();
    let data_dir = home.path().join("project/postgres");
    let cluster = start(&data_dir, Durability::Durable).unwrap();
    let elsewhere = cluster.home().to_owned();
    assert_eq!(fs::read_to_string(data_dir.join("location")).map(PathBuf::from).unwrap(), elsewhere);
    assert_eq!(fs::metadata(&elsewhere).unwrap().mode() & 0o777, 0o700);
    query(&cluster, "CREATE TABLE note (body text); INSERT INTO note VALUES ('kept')");
    cluster.stop().unwrap();

    let cluster = start(&data_dir, Durability::Durable).unwrap();
    assert_eq!(cluster.home(), elsewhere);
    assert_eq!(query(&cluster, "SELECT body FROM note"), "kept");
    cluster.stop().unwrap();
    fs::remove_dir_all(elsewhere).unwrap();
}

#[test]
fn a_folder_with_other_files_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letter"), "dear").unwrap();
    let mode = fs::metadata(folder.path()).unwrap().mode();
    assert!(matches!(start(folder.path(), Durability::Durable), Err(PostgresError::NotOurs { .. })));
    assert_eq!(fs::metadata(folder.path()).unwrap().mode(), mode);
}

#[test]
fn a_failed_start_shows_the_words_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let settings = vec![("shared_buffers".to_owned(), "nonsense".to_owned())];
    let options = Options { data_dir: folder.path().to_owned(), durability: Durability::Throwaway, settings };
    let error = Cluster::start(options).unwrap_err();
    assert!(matches!(error, PostgresError::Failed { program: "postgres", .. }), "{error}");
    assert!(error.to_string().contains("invalid value for parameter \"shared_buffers\""), "{error}");
}
