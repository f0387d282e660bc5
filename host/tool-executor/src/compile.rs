//! Bytes to code, in a killable child process: the engine promises nothing about what a hostile component costs the
//! compiler, so address space and processor time are limited from outside.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use rustix::process::{Resource, Rlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
};
use tool_api::{InspectError, Rejection};

use crate::engine;

/// Address space of the child. A Python component of 18 MB takes 380 MB.
const CHILD_MEMORY_BYTES: u64 = 1 << 30;
/// Processor time of the child: a start, and a share for each MiB of the component (a Python component takes 0.8 s alone
/// on a machine, and twice that beside others that share its caches).
const CHILD_CPU_SECONDS: u64 = 10;
const CHILD_CPU_MILLIS_PER_MIB: u64 = 3_000;
/// Wall time for each second of processor time, for a child that others leave no core to. It says nothing about the
/// component, so passing it rejects nothing.
const CHILD_WALL_FACTOR: u32 = 3;
/// Calls come first, but not so that the child starves: at 19 it gets a seventieth of a shared core, at 10 a tenth.
const CHILD_NICE: i32 = 10;
/// Open files of the child: its pipes, and what its libraries look at.
const CHILD_FILES: u64 = 16;
/// Code that one component becomes, in bytes.
const CODE_BYTES_MAX: u64 = 512 << 20;
/// What is kept of a compiler's message.
const MESSAGE_BYTES_MAX: usize = 2 << 10;
/// Compilations at the same time on one host: each takes a core and up to a GiB from the calls.
pub(crate) const COMPILATIONS_MAX: usize = 1;

/// The child could not compile, and its standard error says why in words for the component's author.
const EXIT_REFUSED: u8 = 3;
/// The child could not begin; standard error is for the operator.
const EXIT_BROKEN: u8 = 4;

/// Compiles components, each in a process of its own. Whoever asks has waited for a turn.
pub struct Compiler {
    command: Vec<OsString>,
}

impl Compiler {
    /// `command` starts a process that runs `child_main`.
    pub fn new(command: Vec<OsString>) -> Compiler {
        Compiler { command }
    }

    /// Dropping the future kills the child.
    pub async fn compile(&self, component: &Bytes) -> Result<Vec<u8>, InspectError> {
        let cpu_seconds = cpu_seconds(component.len());
        self.run(component, cpu_seconds, Duration::from_secs(cpu_seconds) * CHILD_WALL_FACTOR).await
    }

    async fn run(&self, component: &Bytes, cpu_seconds: u64, wall: Duration) -> Result<Vec<u8>, InspectError> {
        let (program, arguments) = self.command.split_first().ok_or_else(|| failed("no compile command"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg(cpu_seconds.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("the compile child has no pipes"));
        };
        let work = async {
            let send = async {
                // A child that gave up stops reading; how it ended says more than the broken pipe.
                let _ = stdin.write_all(component).await;
                drop(stdin);
            };
            let ((), code, message) =
                tokio::join!(send, read(stdout, CODE_BYTES_MAX), read(stderr, MESSAGE_BYTES_MAX as u64));
            Ok::<_, io::Error>((child.wait().await?, code?, message?))
        };
        // The child's own limit is of processor time. That it did not end for so long is this host's load, not its fault.
        let Ok(ended) = tokio::time::timeout(wall, work).await else {
            return Err(failed(format!("the compile child did not end within {} s", wall.as_secs())));
        };
        let (status, code, message) = ended.map_err(failed)?;
        if code.len() as u64 > CODE_BYTES_MAX {
            return Err(compile_limit(format_args!("{CODE_BYTES_MAX} bytes of code")));
        }
        if status.success() { Ok(code) } else { Err(refusal(status, &String::from_utf8_lossy(&message), cpu_seconds)) }
    }
}

/// Reads one byte more than `max` at most, and then to the end without keeping it, so that the child is not stuck.
async fn read(mut from: impl AsyncRead + Unpin, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (&mut from).take(max + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > max {
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

fn cpu_seconds(component_bytes: usize) -> u64 {
    CHILD_CPU_SECONDS + (component_bytes as u64 * CHILD_CPU_MILLIS_PER_MIB / 1_000).div_ceil(1 << 20)
}

/// What a child's end means.
fn refusal(status: ExitStatus, message: &str, cpu_seconds: u64) -> InspectError {
    let message = message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].trim();
    // Signals by number: a killed child ran out of something, any other crash is the compiler's.
    const SIGABRT: i32 = 6;
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(EXIT_REFUSED) => {
            Rejection::new("component.compile_failed", format!("the component does not compile: {message}")).into()
        }
        (_, Some(SIGXCPU | SIGKILL)) => compile_limit(format_args!("{cpu_seconds} s of processor time")),
        // The allocator aborts when the address space is used up.
        (_, Some(SIGABRT)) => compile_limit(format_args!("{} MiB of memory", CHILD_MEMORY_BYTES >> 20)),
        (_, Some(_)) | (Some(101), _) => Rejection::new(
            "component.compile_failed",
            "the compiler crashed on this component; build it with another version of its toolchain, or report it",
        )
        .into(),
        _ => failed(format!("the compile child did not begin: {status}: {message}")),
    }
}

fn compile_limit(what: impl std::fmt::Display) -> InspectError {
    let words = format!("compiling the component takes more than {what}; make it smaller or simpler");
    Rejection::new("component.compile_limit", words).into()
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> InspectError {
    InspectError::Failed(error.into())
}

/// What the child runs: a component on standard input, code on standard output. Its last argument is the processor time
/// it may take, in seconds.
pub fn child_main() -> ExitCode {
    let seconds = std::env::args().next_back().and_then(|text| text.parse().ok());
    let component = match limit_myself(seconds.unwrap_or(CHILD_CPU_SECONDS)).and_then(|()| read_component()) {
        Ok(component) => component,
        Err(error) => return end(EXIT_BROKEN, &error.to_string()),
    };
    let engine = match engine::for_compiling() {
        Ok(engine) => engine,
        Err(error) => return end(EXIT_BROKEN, &format!("{error:#}")),
    };
    match engine.precompile_component(&component) {
        Ok(code) => match io::stdout().write_all(&code) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => end(EXIT_BROKEN, &error.to_string()),
        },
        Err(error) => end(EXIT_REFUSED, &format!("{error:#}")),
    }
}

fn read_component() -> io::Result<Vec<u8>> {
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component)?;
    Ok(component)
}

/// Lowers the limits of this process, before it has seen a byte of a stranger.
fn limit_myself(cpu_seconds: u64) -> io::Result<()> {
    let both = |value| Rlimit { current: Some(value), maximum: Some(value) };
    rustix::process::setrlimit(Resource::As, both(CHILD_MEMORY_BYTES))?;
    // The soft limit ends the process with a signal of its own, the hard one kills.
    let cpu = Rlimit { current: Some(cpu_seconds), maximum: Some(cpu_seconds + 1) };
    rustix::process::setrlimit(Resource::Cpu, cpu)?;
    rustix::process::setrlimit(Resource::Core, both(0))?;
    rustix::process::setrlimit(Resource::Fsize, both(0))?;
    rustix::process::setrlimit(Resource::Nofile, both(CHILD_FILES))?;
    rustix::process::nice(CHILD_NICE)?;
    Ok(())
}

fn end(code: u8, message: &str) -> ExitCode {
    // Nobody else is left to tell when this cannot be written.
    let _ = io::stderr().write_all(message.as_bytes());
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_with_the_component() {
        let wall = |bytes| cpu_seconds(bytes) * u64::from(CHILD_WALL_FACTOR);
        assert_eq!(wall(0), 30);
        assert_eq!(cpu_seconds(64 << 20), 10 + 192);
    }

    #[tokio::test]
    async fn a_child_that_gets_no_processor_rejects_nothing() {
        let compiler = Compiler::new(vec!["sleep".into()]);
        let ended = compiler.run(&Bytes::new(), 10, Duration::from_millis(50)).await;
        assert!(matches!(ended, Err(InspectError::Failed(_))), "{ended:?}");
    }

    #[test]
    fn each_end_of_a_child_has_one_meaning() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        for (status, code) in [
            (exit(3), Some("component.compile_failed")),
            (exit(101), Some("component.compile_failed")),
            (ExitStatus::from_raw(11), Some("component.compile_failed")),
            (ExitStatus::from_raw(6), Some("component.compile_limit")),
            (ExitStatus::from_raw(9), Some("component.compile_limit")),
            (ExitStatus::from_raw(24), Some("component.compile_limit")),
            (exit(4), None),
            (exit(127), None),
        ] {
            let told = match refusal(status, "words", 10) {
                InspectError::Rejected(rejection) => Some(rejection.code),
                InspectError::Failed(_) => None,
            };
            assert_eq!(told.as_deref(), code, "{status:?}");
        }
    }
}
