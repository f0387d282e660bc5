//! What a tool may import. All of it is linked for every tool; what a call was not granted is denied when it asks,
//! because guests in Python and JavaScript import much that they never use.

mod config;
mod context;
pub(crate) mod denied;
pub(crate) mod http;
pub(crate) mod key_value;
pub(crate) mod ledger;
pub(crate) mod logging;
pub(crate) mod progress;
pub(crate) mod scratch;
pub(crate) mod secrets;
pub(crate) mod wasi;

use wasmtime::{Engine, component::Linker};

use crate::sandbox::Sandbox;

/// Names of config values and secrets, in bytes: a longer one is nobody's.
const NAME_BYTES_MAX: usize = 1 << 10;

/// Packages that a component may import, with the versions that are linked. `0.2` stands for every 0.2 release.
pub(crate) const PACKAGES: &[(&str, &str)] = &[
    ("wasi:io", "0.2"),
    ("wasi:cli", "0.2"),
    ("wasi:clocks", "0.2"),
    ("wasi:filesystem", "0.2"),
    ("wasi:sockets", "0.2"),
    ("wasi:random", "0.2"),
    ("wasi:http", "0.2"),
    ("wasi:config", "0.2.0-rc.1"),
    ("wasi:logging", ""),
    ("wasi:logging", "0.1.0-draft"),
    ("wasi:keyvalue", "0.2.0-draft"),
    ("belljar:tool", "0.1"),
    ("belljar:tool", "1.0"),
];

/// The linker of every call.
pub(crate) fn link(engine: &Engine) -> wasmtime::Result<Linker<Sandbox>> {
    let mut linker = Linker::new(engine);
    wasi::link(&mut linker)?;
    scratch::link(&mut linker)?;
    denied::link(&mut linker)?;
    http::link(&mut linker)?;
    logging::link(&mut linker)?;
    context::link(&mut linker)?;
    config::link(&mut linker)?;
    secrets::link(&mut linker)?;
    progress::link(&mut linker)?;
    key_value::link(&mut linker)?;
    Ok(linker)
}
