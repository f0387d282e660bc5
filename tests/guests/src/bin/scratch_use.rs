//! Uses the scratch directory as any program uses a directory.

use belljar_tool::{tool, toolbox};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

const ROOT: &str = "/scratch";

/// Writes, reads, moves and removes, and tells what it saw.
#[tool]
fn work() -> Result<Vec<String>, String> {
    let mut saw = Vec::new();
    let step = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let root = Path::new(ROOT);
    fs::create_dir_all(root.join("a/b")).map_err(|e| step("create", e))?;
    fs::write(root.join("a/b/z.txt"), "hello").map_err(|e| step("write", e))?;
    fs::write(root.join("a/b/c.txt"), vec![b'x'; 200_000]).map_err(|e| step("write much", e))?;
    let mut log = OpenOptions::new().append(true).open(root.join("a/b/z.txt")).map_err(|e| step("append", e))?;
    log.write_all(b", world").map_err(|e| step("append", e))?;
    drop(log);
    saw.push(fs::read_to_string(root.join("a/b/z.txt")).map_err(|e| step("read", e))?);

    let mut file =
        OpenOptions::new().read(true).write(true).open(root.join("a/b/c.txt")).map_err(|e| step("open", e))?;
    file.seek(SeekFrom::Start(100_000)).map_err(|e| step("seek", e))?;
    file.write_all(b"middle").map_err(|e| step("write in the middle", e))?;
    file.set_len(100_003).map_err(|e| step("cut", e))?;
    file.seek(SeekFrom::Start(99_999)).map_err(|e| step("seek", e))?;
    let mut end = String::new();
    file.read_to_string(&mut end).map_err(|e| step("read the end", e))?;
    file.sync_all().map_err(|e| step("sync", e))?;
    drop(file);
    saw.push(end);

    fs::rename(root.join("a/b"), root.join("moved")).map_err(|e| step("rename", e))?;
    fs::remove_dir(root.join("a")).map_err(|e| step("remove a directory", e))?;
    let names = fs::read_dir(root.join("moved")).map_err(|e| step("list", e))?;
    let names = names.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    saw.push(names.collect::<Result<Vec<_>, _>>().map_err(|e| step("list", e))?.join(" "));
    let stat = fs::metadata(root.join("moved/c.txt")).map_err(|e| step("stat", e))?;
    saw.push(format!("{} bytes, a file: {}", stat.len(), stat.is_file()));
    saw.push(format!("times: {}", stat.modified().is_ok_and(|time| time != std::time::UNIX_EPOCH)));
    fs::remove_dir_all(root.join("moved")).map_err(|e| step("remove all", e))?;
    saw.push(format!("{} left", fs::read_dir(root).map_err(|e| step("list", e))?.count()));
    Ok(saw)
}

/// Leaves a file behind, and tells what lay there before.
#[tool]
fn leave(text: String) -> Result<Vec<String>, String> {
    let before = fs::read_dir(ROOT).map_err(|e| e.to_string())?;
    let before = before.map(|entry| entry.map(|entry| entry.path().to_string_lossy().into_owned()));
    let before = before.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    fs::write(format!("{ROOT}/left.txt"), text).map_err(|e| e.to_string())?;
    Ok(before)
}

/// Writes one file of a size, and tells how that went.
#[tool]
fn write(bytes: usize) -> Result<String, String> {
    fs::write(format!("{ROOT}/file"), vec![1; bytes]).map_err(|error| format!("{:?}: {error}", error.kind()))?;
    Ok("written".into())
}

/// Fills and empties a file again and again: what is freed can be used again.
#[tool]
fn churn(bytes: usize, times: u32) -> Result<String, String> {
    for time in 0..times {
        let path = format!("{ROOT}/{}", time % 3);
        let went = match time % 4 {
            0 => fs::write(&path, vec![1; bytes]).and_then(|()| fs::remove_file(&path)),
            1 => File::create(&path)
                .and_then(|file| file.set_len(bytes as u64))
                .and_then(|()| File::create(&path))
                .map(drop),
            2 => fs::write(&path, vec![1; bytes]).and_then(|()| fs::write(&path, "")),
            _ => fs::write(&path, vec![1; bytes]).and_then(|()| fs::rename(&path, format!("{ROOT}/over"))),
        };
        went.and_then(|()| fs::write(format!("{ROOT}/over"), "")).map_err(|error| format!("{time}: {error}"))?;
    }
    Ok("done".into())
}

toolbox!(work, leave, write, churn);
fn main() {}
