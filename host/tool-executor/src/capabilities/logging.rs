//! What a tool says: `wasi:logging`, standard output and standard error, as lines of one capped log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tool_api::LogLine;
use wasmtime::{
    StoreContextMut,
    component::{HasSelf, Linker},
};
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError},
};

use crate::{bindings::wasi::logging::logging, meter::LimitReached, sandbox::Sandbox};

/// Longest line that is kept, in bytes. Longer ones are cut: logs are shown to people.
const LINE_BYTES_MAX: usize = 4 << 10;
/// Lines that are kept. A line costs the host more than its text.
const LINES_MAX: usize = 1_000;
/// What one write may bring, in bytes: the host copies it before it is counted.
const WRITE_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The log of one call.
#[derive(Debug, Default)]
pub(crate) struct Log {
    bytes_left: u64,
    /// Bytes that may still be kept: what is not UTF-8 takes more of them than it was written with.
    room: usize,
    lines: Vec<(&'static str, String)>,
    truncated: bool,
    /// What was written since the last line's end, by stream.
    open: [Vec<u8>; 2],
    /// The last whole line on standard error that says something.
    last_words: Option<String>,
}

pub(crate) type SharedLog = Arc<Mutex<Log>>;

impl Log {
    pub(crate) fn shared(bytes_max: u64) -> SharedLog {
        let room = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Arc::new(Mutex::new(Log { bytes_left: bytes_max, room, ..Log::default() }))
    }

    /// All bytes count, kept or not: a tool that says more than its limit is ended.
    fn charge(&mut self, bytes: usize) -> Result<(), LimitReached> {
        match self.bytes_left.checked_sub(bytes as u64) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => {
                self.truncated = true;
                Err(LimitReached::Logs)
            }
        }
    }

    fn say(&mut self, level: &'static str, context: &str, message: &str) -> Result<(), LimitReached> {
        let text = if context.is_empty() { message.to_owned() } else { format!("{context}: {message}") };
        self.charge(text.len())?;
        self.keep(level, text);
        Ok(())
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), LimitReached> {
        self.charge(bytes.len())?;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            let open = &mut self.open[stream as usize];
            let room = LINE_BYTES_MAX.saturating_sub(open.len());
            if text.len() > room {
                self.truncated = true;
            }
            open.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                self.end_line(stream);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, stream: Stream) {
        let line = std::mem::take(&mut self.open[stream as usize]);
        let text = String::from_utf8_lossy(&line).into_owned();
        match stream {
            Stream::Stdout => self.keep("stdout", text),
            Stream::Stderr => {
                // A Rust panic ends with a hint about a variable that no tool can set.
                if !text.trim().is_empty() && !text.starts_with("note: run with `RUST_BACKTRACE") {
                    self.last_words = Some(text.clone());
                }
                self.keep("stderr", text);
            }
        }
    }

    fn keep(&mut self, level: &'static str, mut text: String) {
        if self.lines.len() >= LINES_MAX {
            self.truncated = true;
            return;
        }
        let bytes_max = LINE_BYTES_MAX.min(self.room);
        if text.len() > bytes_max {
            text.truncate(text.floor_char_boundary(bytes_max));
            self.truncated = true;
        }
        self.room -= text.len();
        self.lines.push((level, text));
    }

    /// Ends the log: the lines, whether something is missing, and the tool's last line on standard error.
    pub(crate) fn finish(&mut self) -> (Vec<LogLine>, bool, Option<String>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.open[stream as usize].is_empty() {
                self.end_line(stream);
            }
        }
        let lines = std::mem::take(&mut self.lines)
            .into_iter()
            .map(|(level, text)| LogLine { level: level.into(), text })
            .collect();
        (lines, self.truncated, self.last_words.take())
    }
}

/// A panic of ours while the lock was held leaves a log that is still readable.
pub(crate) fn locked(log: &SharedLog) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

impl logging::Host for Sandbox {
    fn log(&mut self, level: logging::Level, context: String, message: String) -> wasmtime::Result<()> {
        self.meter.handled(context.len() + message.len());
        let level = match level {
            logging::Level::Trace => "trace",
            logging::Level::Debug => "debug",
            logging::Level::Info => "info",
            logging::Level::Warn => "warn",
            logging::Level::Error => "error",
            logging::Level::Critical => "critical",
        };
        Ok(locked(&self.log).say(level, &context, &message)?)
    }
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    use logging::Host as _;

    logging::add_to_linker::<Sandbox, HasSelf<Sandbox>>(linker, Sandbox::counted)?;
    // Older toolchains import the interface without a version.
    linker.instance("wasi:logging/logging")?.func_wrap(
        "log",
        |mut store: StoreContextMut<'_, Sandbox>, (level, context, message): (logging::Level, String, String)| {
            store.data_mut().counted().log(level, context, message)
        },
    )
}

/// Standard output or standard error. Its own sink, because the engine's queues empty writes without a limit
/// (GHSA-5m8g-xhq4-4h93).
pub(crate) struct Output {
    log: SharedLog,
    stream: Stream,
}

impl Output {
    pub(crate) fn new(log: &SharedLog, stream: Stream) -> Output {
        Output { log: Arc::clone(log), stream }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Output::new(&self.log, self.stream))
    }

    /// Only WASI 0.3 asks for this one, and it is not linked.
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        locked(&self.log).write(self.stream, &bytes).map_err(|limit| StreamError::Trap(limit.into()))
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(bytes_max: u64, write: impl FnOnce(&mut Log)) -> (Vec<String>, bool, Option<String>) {
        let log = Log::shared(bytes_max);
        write(&mut locked(&log));
        let (lines, truncated, last_words) = locked(&log).finish();
        (lines.into_iter().map(|line| format!("{} {}", line.level, line.text)).collect(), truncated, last_words)
    }

    #[test]
    fn writes_become_lines() {
        let (lines, truncated, _) = finished(100, |log| {
            log.write(Stream::Stdout, b"a\nb").unwrap();
            log.say("info", "part", "hello").unwrap();
            log.write(Stream::Stdout, b"c\n\nopen").unwrap();
        });
        assert_eq!(lines, ["stdout a", "info part: hello", "stdout bc", "stdout ", "stdout open"]);
        assert!(!truncated);
    }

    #[test]
    fn a_panic_leaves_its_words() {
        let (_, _, last_words) = finished(1_000, |log| {
            log.write(Stream::Stderr, b"thread 'main' panicked at src/lib.rs:1:1:\nno such zone\n").unwrap();
            log.write(Stream::Stderr, b"note: run with `RUST_BACKTRACE=1` environment variable\n").unwrap();
        });
        assert_eq!(last_words.as_deref(), Some("no such zone"));
    }

    #[test]
    fn the_log_is_bounded() {
        let (lines, truncated, _) = finished(10, |log| {
            assert_eq!(log.write(Stream::Stdout, b"0123456789\n"), Err(LimitReached::Logs));
            assert_eq!(log.say("info", "", "0123456789"), Ok(()));
        });
        assert_eq!((lines.len(), truncated), (1, true));
        let (lines, truncated, _) = finished(10, |log| log.write(Stream::Stdout, &[0xff; 10]).unwrap());
        assert_eq!((lines, truncated), (vec![format!("stdout {}", "\u{fffd}".repeat(3))], true));
        let (lines, truncated, _) = finished(1 << 20, |log| {
            log.write(Stream::Stdout, &vec![b'\n'; LINES_MAX + 1]).unwrap();
        });
        assert_eq!((lines.len(), truncated), (LINES_MAX, true));
        let (lines, truncated, _) = finished(1 << 20, |log| {
            log.write(Stream::Stderr, &vec![b'x'; LINE_BYTES_MAX + 1]).unwrap();
        });
        assert_eq!((lines[0].len(), truncated), ("stderr ".len() + LINE_BYTES_MAX, true));
    }
}
