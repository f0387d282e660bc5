//! Takes more of the scratch directory than it was granted, one trick each. Each stops at the first refusal, tells which
//! one it was, and stays as it is until the host ends it, so that the host can look at what stands on its disk.

use belljar_tool::{progress, tool, toolbox};
use std::mem::forget;
use wasip2::{
    clocks::monotonic_clock,
    filesystem::{
        preopens,
        types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags, filesystem_error_code},
    },
    io::streams::{OutputStream, StreamError},
};

type Fs<T> = Result<T, ErrorCode>;
type Trick = (&'static str, fn(&Descriptor) -> Fs<()>);

const CHUNK: [u8; 4096] = [7; 4096];
/// More than any trick needs when it is refused in time.
const TRIES: u32 = 20_000;

const TRICKS: [Trick; 19] = [
    ("write", |root| {
        let file = create(root, "file")?;
        tries(|n| all(file.write(&CHUNK, n * 4096)?))
    }),
    ("many_files", |root| {
        tries(|n| {
            let file = create(root, &format!("{}", n % 500))?;
            all(file.write(&CHUNK, n / 500 * 4096)?)
        })
    }),
    ("sparse", |root| tries(|n| create(root, &format!("{n}"))?.write(&[1], 1 << 18).map(drop))),
    ("far_offset", |root| create(root, "file")?.write(&[1], u64::MAX - 1).map(drop)),
    ("set_size", |root| tries(|n| create(root, "file")?.set_size((n + 1) << 16))),
    ("set_size_huge", |root| create(root, "file")?.set_size(u64::MAX)),
    ("stream", |root| fill(&create(root, "file")?.write_via_stream(0)?)),
    ("stream_far", |root| fill(&create(root, "file")?.write_via_stream(1 << 40)?)),
    ("append", |root| fill(&create(root, "file")?.append_via_stream()?)),
    ("append_twice", |root| {
        let file = create(root, "file")?;
        let (a, b) = (file.append_via_stream()?, file.append_via_stream()?);
        tries(|_| {
            write_now(&a)?;
            write_now(&b)
        })
    }),
    ("zeroes", |root| {
        let stream = create(root, "file")?.write_via_stream(0)?;
        tries(|_| stream.blocking_write_zeroes_and_flush(4096).map_err(code))
    }),
    ("splice", |root| {
        let source = create(root, "source")?;
        source.write(&CHUNK, 0)?;
        tries(|n| {
            let target = create(root, &format!("target-{n}"))?;
            target.append_via_stream()?.blocking_splice(&source.read_via_stream(0)?, 4096).map(drop).map_err(code)
        })
    }),
    // A write that is not waited for might land after the file was cut, and be counted for nothing.
    ("cut_while_writing", |root| {
        (0..1_000).try_for_each(|n: u64| {
            let file = create(root, &format!("{}", n % 16))?;
            let stream = file.write_via_stream(n << 10)?;
            stream.check_write().and_then(|_| stream.write(&CHUNK)).map_err(code)?;
            match file.set_size(0) {
                Ok(()) | Err(ErrorCode::Busy) => {}
                Err(error) => return Err(error),
            }
            match root.open_at(PathFlags::empty(), &format!("{}", n % 16), OpenFlags::TRUNCATE, read_write()) {
                Ok(_) | Err(ErrorCode::Busy) => Ok(()),
                Err(error) => Err(error),
            }
        })?;
        // Nothing was refused, so as much as ever must be left.
        let sizes: u64 =
            (0..16).map(|n| root.stat_at(PathFlags::empty(), &format!("{n}")).map_or(0, |stat| stat.size)).sum();
        fill(&create(root, "rest")?.append_via_stream()?).map_err(|error| {
            progress::report(None, &format!("left {sizes}"));
            error
        })
    }),
    ("unlinked_but_open", |root| {
        tries(|_| {
            let file = create(root, "file")?;
            root.unlink_file_at("file")?;
            file.write(&CHUNK, 1 << 17)?;
            forget(file);
            Ok(())
        })
    }),
    ("unlinked_but_streamed", |root| {
        tries(|_| {
            let stream = create(root, "file")?.append_via_stream()?;
            root.unlink_file_at("file")?;
            for _ in 0..32 {
                write_now(&stream)?;
            }
            forget(stream);
            Ok(())
        })
    }),
    // What is replaced is gone; what replaced it still counts.
    ("renamed_over", |root| {
        tries(|n| {
            let file = create(root, "new")?;
            all(file.write(&CHUNK, n * 4096)?)?;
            root.rename_at("new", root, "old")
        })
    }),
    ("inodes", |root| tries(|n| create(root, &format!("{n}")).map(drop))),
    ("directories", |root| tries(|n| root.create_directory_at(&format!("{n}")))),
    // Deeper than any path can say, with names as long as they may be.
    ("deep", |root| {
        let name = "d".repeat(255);
        let mut inner =
            root.open_at(PathFlags::empty(), ".", OpenFlags::DIRECTORY, DescriptorFlags::MUTATE_DIRECTORY)?;
        tries(|_| {
            inner.create_directory_at(&name)?;
            inner =
                inner.open_at(PathFlags::empty(), &name, OpenFlags::DIRECTORY, DescriptorFlags::MUTATE_DIRECTORY)?;
            Ok(())
        })
    }),
];

/// The names of all tricks.
#[tool]
fn tricks() -> Vec<&'static str> {
    TRICKS.map(|(name, _)| name).into()
}

/// Does one trick, tells how it was refused, and waits.
#[tool]
fn run(trick: String) -> Result<String, String> {
    let (_, trick) = TRICKS.iter().find(|(name, _)| *name == trick).ok_or("no such trick")?;
    let (root, _) = preopens::get_directories().pop().ok_or("no directory")?;
    let told = match trick(&root) {
        Ok(()) => "was never refused".to_owned(),
        Err(code) => code.name().to_owned(),
    };
    progress::report(100, &told);
    monotonic_clock::subscribe_duration(u64::MAX / 2).block();
    Ok(told)
}

fn tries(mut once: impl FnMut(u64) -> Fs<()>) -> Fs<()> {
    (0..u64::from(TRIES)).try_for_each(|n| once(n))
}

fn create(root: &Descriptor, path: &str) -> Fs<Descriptor> {
    root.open_at(PathFlags::empty(), path, OpenFlags::CREATE, read_write())
}

fn read_write() -> DescriptorFlags {
    DescriptorFlags::READ | DescriptorFlags::WRITE
}

/// A write of a part is no refusal, and no success.
fn all(written: u64) -> Fs<()> {
    if written == CHUNK.len() as u64 { Ok(()) } else { Err(ErrorCode::Io) }
}

fn fill(stream: &OutputStream) -> Fs<()> {
    tries(|_| stream.blocking_write_and_flush(&CHUNK).map_err(code))
}

/// Writes without waiting for the end, but for room.
fn write_now(stream: &OutputStream) -> Fs<()> {
    stream.subscribe().block();
    stream.check_write().and_then(|_| stream.write(&CHUNK)).map_err(code)
}

fn code(error: StreamError) -> ErrorCode {
    match error {
        StreamError::Closed => ErrorCode::Pipe,
        StreamError::LastOperationFailed(error) => filesystem_error_code(&error).unwrap_or(ErrorCode::Io),
    }
}

toolbox!(tricks, run);
fn main() {}
