//! The bell jar: runs one tool call in a store of its own and says what it consumed.
//!
//! Owns: no table.
//! May use: domain, tool-api.
//! Never: touches the database; compiles inside a call; lets anything survive a call but its outcome and receipt.
//! Start at: `call::Executor::call`.

mod bindings;
mod cache;
mod call;
mod capabilities;
mod check;
pub mod compile;
mod engine;
mod inspect;
mod meter;
mod outcome;
mod sandbox;

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use domain::Clock;
use tokio::sync::{Semaphore, SemaphorePermit};
use tool_api::CallError;
use wasmtime::{Engine, component::Linker};
use zeroize::Zeroizing;

pub use call::BareCall;

use crate::{cache::Cache, compile::Compiler, sandbox::Sandbox};

/// Calls that run at the same time when nobody says: the engine reserves address space for each.
pub const CONCURRENCY_DEFAULT: u32 = 64;
/// Longest wait for a place in the pool. Admission above this crate queues by tenant; a wait here is a surge.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(2);

/// What an executor is started with.
pub struct Settings {
    /// Where compiled code is kept. Created with mode 0700; nobody else may write there.
    pub cache_dir: PathBuf,
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
}

/// Why an executor did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the directory for compiled code cannot be used: {0}")]
    CacheDir(#[source] std::io::Error),
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
    /// One permit a place of the engine's pool: who holds one never finds the pool full.
    places: Semaphore,
    clock: Arc<dyn Clock>,
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
        Ok(Executor {
            jar: Arc::new(Jar {
                engine,
                linker,
                cache,
                compiler: Compiler::new(settings.compile_command),
                places: Semaphore::new(concurrency as usize),
                clock: settings.clock,
            }),
        })
    }
}

impl Jar {
    /// Waits for a place in the pool.
    async fn place(&self) -> Result<SemaphorePermit<'_>, CallError> {
        if let Ok(permit) = self.places.try_acquire() {
            return Ok(permit);
        }
        match tokio::time::timeout(PLACE_WAIT_MAX, self.places.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(CallError::Busy),
        }
    }
}
