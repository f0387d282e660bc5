//! What `postmaster.pid` and the process table say about a server.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::home::{at, socket_path};
use crate::{PORT, PostgresError};

/// The part of `postmaster.pid` that matters here. The server writes it line by line while it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PidFile {
    pub(crate) pid: i32,
    pub(crate) socket_dir: Option<PathBuf>,
    pub(crate) ready: bool,
}

/// What to do about the server of a data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is none: a left-over file is no obstacle.
    Start,
    /// It is on its way up or down.
    Wait,
    /// It answers.
    Use { pid: i32, socket_dir: PathBuf },
}

/// Looks at the server of `data`.
pub(crate) fn look(data: &Path) -> Next {
    let file = fs::read_to_string(data.join("postmaster.pid")).ok().and_then(|text| PidFile::parse(&text));
    let lives = file.as_ref().is_some_and(|file| lives(file.pid, data));
    let accepts = file.as_ref().and_then(|file| file.socket_dir.as_deref()).is_some_and(accepts);
    next(file, lives, accepts)
}

fn next(file: Option<PidFile>, lives: bool, accepts: bool) -> Next {
    match file {
        Some(PidFile { pid, socket_dir: Some(socket_dir), ready: true }) if lives && accepts => {
            Next::Use { pid, socket_dir }
        }
        Some(_) if lives => Next::Wait,
        _ => Next::Start,
    }
}

impl PidFile {
    /// The lines: pid, data folder, start time, port, socket folder, listen address, shared memory, status.
    fn parse(text: &str) -> Option<PidFile> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok().filter(|&pid| pid > 1)?;
        let socket_dir = lines.nth(3).filter(|folder| folder.starts_with('/')).map(PathBuf::from);
        let ready = lines.nth(2).is_some_and(|status| status.trim() == "ready");
        Some(PidFile { pid, socket_dir, ready })
    }
}

/// Whether process `pid` is the server of `data`. After a reboot the number may belong to another program, so the
/// process is asked for its command line, which names the folder. A process that ended but was not collected has none.
pub(crate) fn lives(pid: i32, data: &Path) -> bool {
    let command_line = if Path::new("/proc/self/cmdline").exists() {
        fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
    } else {
        let output = Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output();
        output.map(|output| output.stdout).unwrap_or_default()
    };
    let data = data.as_os_str().as_encoded_bytes();
    command_line.windows(data.len()).any(|part| part == data)
}

/// Makes the left-overs of a server that is gone no obstacle. Postgres refuses to start while the number in its file
/// belongs to any process, be it another program or one that ended and was not collected; only its parent's number,
/// ours, it passes over. The file itself stays: by its last lines Postgres sees helpers of the old server that still
/// write to the data.
pub(crate) fn disown(data: &Path, socket_dir: &Path) -> Result<(), PostgresError> {
    let path = data.join("postmaster.pid");
    if let Ok(text) = fs::read_to_string(&path) {
        let rest = text.split_once('\n').map(|(_, rest)| rest).filter(|rest| !rest.is_empty());
        let written = match rest {
            Some(rest) => fs::write(&path, format!("{}\n{rest}", std::process::id())),
            None => fs::remove_file(&path),
        };
        written.map_err(at("clear", &path))?;
    }
    // There is none after a clean end.
    let _ = fs::remove_file(socket_path(socket_dir).with_extension(format!("{PORT}.lock")));
    Ok(())
}

fn accepts(socket_dir: &Path) -> bool {
    UnixStream::connect(socket_path(socket_dir)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_read_as_far_as_it_is_written() {
        let whole = "4711\n/d/data\n1790000000\n5432\n/d/run\n\n  1234  56\nready   \n";
        let file = |socket_dir: Option<&str>, ready| {
            Some(PidFile { pid: 4711, socket_dir: socket_dir.map(PathBuf::from), ready })
        };
        for (text, expected) in [
            (whole.to_owned(), file(Some("/d/run"), true)),
            (whole.replace("ready   ", "starting"), file(Some("/d/run"), false)),
            (whole.replace("ready   ", "stopping"), file(Some("/d/run"), false)),
            ("4711\n/d/data\n1790000000\n5432\n/d/run\n".to_owned(), file(Some("/d/run"), false)),
            ("4711\n/d/data\n1790000000\n5432\n\nlocalhost\n 1 2\nready\n".to_owned(), file(None, true)),
            ("4711\n".to_owned(), file(None, false)),
            ("-1\n/d/data\n".to_owned(), None),
            ("nonsense".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(PidFile::parse(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn only_a_live_and_ready_server_is_used_and_a_stale_file_is_no_obstacle() {
        let file = |ready| Some(PidFile { pid: 7, socket_dir: Some(PathBuf::from("/d/run")), ready });
        let used = Next::Use { pid: 7, socket_dir: PathBuf::from("/d/run") };
        for (file, lives, accepts, expected) in [
            (None, false, false, Next::Start),
            (file(true), false, false, Next::Start),
            (file(true), false, true, Next::Start),
            (file(true), true, true, used),
            (file(true), true, false, Next::Wait),
            (file(false), true, true, Next::Wait),
        ] {
            assert_eq!(next(file.clone(), lives, accepts), expected, "{file:?} {lives} {accepts}");
        }
    }

    #[test]
    fn another_program_with_the_same_number_is_not_the_server() {
        let ours = i32::try_from(std::process::id()).unwrap();
        assert!(!lives(ours, Path::new("/nowhere/data")));
        assert!(lives(ours, &std::env::current_exe().unwrap()));
    }
}
