//! Lists the files that `belljar tool new` writes, so that the program carries them.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// What of the SDK a tool needs. Its own tests are ours.
const SDK: [&str; 5] = ["Cargo.toml", "README.md", "src", "macros", "wit"];

fn main() -> io::Result<()> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let mut out = fs::File::create(Path::new(&variable("OUT_DIR")?).join("embedded.rs"))?;
    let sdk = root.join("guest-sdk");
    write_list(&mut out, "SDK", &sdk, &SDK.map(|name| sdk.join(name)))?;
    let template = root.join("templates/tool");
    write_list(&mut out, "TEMPLATE", &template, std::slice::from_ref(&template))
}

fn write_list(out: &mut fs::File, name: &str, base: &Path, from: &[PathBuf]) -> io::Result<()> {
    writeln!(out, "/// Path and bytes of each file.\npub(crate) static {name}: &[(&str, &[u8])] = &[")?;
    for path in from {
        println!("cargo::rerun-if-changed={}", path.display());
        for file in files(path)? {
            let inside = file.strip_prefix(base).map_err(io::Error::other)?;
            writeln!(out, "    ({inside:?}, include_bytes!({file:?})),")?;
        }
    }
    writeln!(out, "];")
}

/// All files below `path`, which may be a link to a folder, in order.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.retain(|entry| !entry.ends_with("target"));
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        found.extend(files(&entry)?);
    }
    Ok(found)
}

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script where it is through the environment")]
fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(io::Error::other)
}
