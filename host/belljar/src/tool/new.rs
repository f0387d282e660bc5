//! `belljar tool new`: a folder with a tool that builds.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use domain::ToolName;

use super::embedded::{SDK, TEMPLATE};
use crate::cli;

/// Where the SDK goes, in the tool's folder.
const SDK_FOLDER: &str = "belljar-tool";

pub(crate) fn new(name: &str) -> anyhow::Result<ExitCode> {
    let name: ToolName = name.parse()?;
    write_tool(&name, Path::new(name.as_str()))?;
    let component = format!("target/wasm32-wasip2/release/{}.wasm", name.as_str().replace('-', "_"));
    let me = cli::me();
    println!(
        "`{name}/` is a tool. The next steps:\n\n  \
         cd {name}\n  \
         cargo test\n  \
         cargo build --release --target wasm32-wasip2\n  \
         {me} tool run {component} greet '{{\"name\": \"Ada\"}}'\n  \
         {me} tool push {component}\n\n\
         The target comes with `rustup target add wasm32-wasip2`. `{name}/README.md` says more."
    );
    Ok(ExitCode::SUCCESS)
}

fn write_tool(name: &ToolName, folder: &Path) -> anyhow::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("`{}` exists already; choose another name, or remove it", folder.display());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot create `{}`", folder.display())),
    }
    for (path, bytes) in TEMPLATE {
        let text = std::str::from_utf8(bytes).with_context(|| format!("the template's `{path}` is not text"))?;
        write(folder.join(path), text.replace("{{name}}", name.as_str()).as_bytes())?;
    }
    for (path, bytes) in SDK {
        write(folder.join(SDK_FOLDER).join(path), bytes)?;
    }
    Ok(())
}

fn write(path: PathBuf, bytes: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().map_or(Ok(()), fs::create_dir_all);
    parent.and_then(|()| fs::write(&path, bytes)).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tool_carries_its_name_and_the_sdk() {
        let folder = tempfile::tempdir().unwrap();
        let (name, folder) = ("my-tool".parse().unwrap(), folder.path().join("my-tool"));
        write_tool(&name, &folder).unwrap();
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"my-tool\"") && !manifest.contains("{{"), "{manifest}");
        for file in
            ["src/lib.rs", "belljar-tool/Cargo.toml", "belljar-tool/macros/Cargo.toml", "belljar-tool/wit/tool.wit"]
        {
            assert!(folder.join(file).is_file(), "{file}");
        }
        let again = write_tool(&name, &folder).unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
    }
}
