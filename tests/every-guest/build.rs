//! Lists the guests of the tests, as a macro.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let guests = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../guests");
    let mut names = BTreeSet::new();
    for (folder, kind) in [("src/bin", "rs"), ("wat", "wat")] {
        let folder = guests.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == kind) {
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    let mut out = fs::File::create(Path::new(&variable("OUT_DIR")?).join("guests.rs"))?;
    writeln!(out, "/// Name and row of every guest: `$rows` is a module with a function for each.")?;
    writeln!(out, "#[macro_export]\nmacro_rules! foreach_guest {{\n    ($rows:ident) => {{\n        [")?;
    for name in names {
        writeln!(out, "            ({name:?}, $rows::{name}()),")?;
    }
    writeln!(out, "        ]\n    }};\n}}")
}

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script where it is through the environment")]
fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(io::Error::other)
}
