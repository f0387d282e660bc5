//! The bell jar: runs one tool call in a store of its own and says what it consumed.
//!
//! Owns: no table.
//! May use: domain, egress, tool-api.
//! Never: touches the database; compiles inside a call; lets anything survive a call but its outcome and receipt.
//! Start at: `call::Executor::call`.

mod bindings;
mod cache;
mod call;
mod capabilities;
mod check;
mod clean;
pub mod compile;
mod contract;
pub mod control;
mod engine;
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod meter;
mod outcome;
mod redact;
mod replay;
mod sandbox;
mod turns;
mod typed;

use std::{ffi::OsString, num::NonZero, path::PathBuf, sync::Arc, time::Duration};

use domain::{Clock, TenantId};
use egress::Egress;
use tool_api::{CallError, Share};
use wasmtime::{Engine, component::Linker};
use zeroize::Zeroizing;

use crate::{
    cache::Cache,
    capabilities::scratch::Room,
    compile::{COMPILATIONS_MAX, Compiler},
    sandbox::Sandbox,
    turns::{Line, Turn},
};

/// Calls that run at the same time when nobody says: the engine reserves address space for each.
pub const CONCURRENCY_DEFAULT: u32 = 64;
/// Longest wait for a place in the pool: a call is one step of a chat, and somebody waits for it.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(2);

/// What an executor is started with.
pub struct Settings {
    /// Where compiled code is kept. Created with mode 0700; nobody else may write there.
    pub cache_dir: PathBuf,
    /// Where calls have their scratch directories. Created with mode 0700; executors may share it.
    pub scratch_dir: PathBuf,
    /// Authenticates compiled code. Not in the database: who has both can run native code here.
    pub mac_key: Zeroizing<[u8; 32]>,
    /// Starts a process that runs `compile::child_main`.
    pub compile_command: Vec<OsString>,
    /// Calls at the same time.
    pub concurrency: u32,
    /// Compiled code that stays mapped, in bytes.
    pub memory_cache_bytes: u64,
    /// What tools read as the time of day.
    pub clock: Arc<dyn Clock>,
    /// Where tools' requests go out.
    pub egress: Egress,
}

/// Why an executor did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the directory for compiled code cannot be used: {0}")]
    CacheDir(#[source] std::io::Error),
    #[error("the directory for scratch files cannot be used: {0}")]
    ScratchDir(#[source] std::io::Error),
    #[error("the WebAssembly engine does not start on this machine")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no command for the compile child is given")]
    NoCompileCommand,
}

/// Compiles, inspects and calls tools. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    jar: Arc<Jar>,
}

struct Jar {
    engine: Engine,
    linker: Linker<Sandbox>,
    cache: Cache,
    compiler: Compiler,
    /// One turn a place of the engine's pool: who holds one never finds the pool full.
    places: Line,
    /// One turn a core: a guest runs for about 0.1 ms, then whoever is next.
    cores: Line,
    /// Turns at the compiler.
    compilations: Line,
    /// The scratch directories of calls.
    room: Arc<Room>,
    clock: Arc<dyn Clock>,
    egress: Egress,
}

impl Executor {
    pub fn start(settings: Settings) -> Result<Executor, StartError> {
        if settings.compile_command.is_empty() {
            return Err(StartError::NoCompileCommand);
        }
        let concurrency = settings.concurrency.max(1);
        let engine = engine::for_calls(concurrency).map_err(|error| StartError::Engine(error.into()))?;
        let linker = capabilities::link(&engine).map_err(|error| StartError::Engine(error.into()))?;
        let cache = Cache::open(&engine, settings.cache_dir, settings.mac_key, settings.memory_cache_bytes)
            .map_err(StartError::CacheDir)?;
        let room = Room::open(&settings.scratch_dir).map_err(StartError::ScratchDir)?;
        Ok(Executor {
            jar: Arc::new(Jar {
                engine,
                linker,
                cache,
                compiler: Compiler::new(settings.compile_command),
                places: Line::new(concurrency as usize),
                cores: Line::new(std::thread::available_parallelism().map_or(1, NonZero::get)),
                compilations: Line::new(COMPILATIONS_MAX),
                room: Arc::new(room),
                clock: settings.clock,
                egress: settings.egress,
            }),
        })
    }
}

impl Jar {
    /// Waits for a place in the pool, in the tenant's turn and within its share.
    async fn place(&self, tenant: TenantId, share: Share) -> Result<Turn, CallError> {
        let place = self.places.turn(tenant, share);
        tokio::time::timeout(PLACE_WAIT_MAX, place).await.map_err(|_| CallError::Busy)
    }
}
