//! Compiled code: on disk by content and engine, in memory by content. Compiled code is native code, so a file is mapped
//! only after its MAC was verified, through the same descriptor. Here is the only `unsafe` line of the workspace.

use std::{
    fs::{DirBuilder, File},
    hash::{Hash, Hasher},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tool_api::{ArtifactHash, InspectError, Rejection};
use wasmtime::{
    Engine,
    component::{Component, Linker},
};
use zeroize::Zeroizing;

use crate::{
    Jar, check,
    contract::Tool,
    sandbox::Sandbox,
    typed::{self, Typed},
};

/// Part of every file name: raise it when code must be compiled again although the engine does not say so.
const CODE_VERSION: u32 = 3;
/// Compiled code on disk, in bytes: about ten thousand tools. Past it what was written first goes first, and is compiled
/// again when its component is inspected again.
const DISK_BYTES_MAX: u64 = 20 << 30;
/// What is read at once while a MAC is computed.
const READ_BYTES: usize = 64 << 10;
/// Longest compilation that is believed: no child is left alone for longer.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(600);
/// How long the compilation took, in milliseconds, and a MAC of that and of the code.
const SIDECAR_BYTES: usize = 8 + 32;

/// A component that can be called.
pub(crate) struct Loaded {
    pub(crate) tool: Tool,
    /// `belljar:tool@1.0.0`; `wit` for plain typed exports.
    pub(crate) contract: String,
    /// Mapped code.
    bytes: u64,
}

pub(crate) struct Cache {
    disk: Arc<Disk>,
    memory: moka::future::Cache<ArtifactHash, Arc<Loaded>>,
}

/// Why code could not be loaded. Shared by all who wait for the same component.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("the component is not on this host")]
    Missing,
    #[error("the engine does not take its own code: {0}")]
    Unusable(String),
    #[error(transparent)]
    Rejected(Rejection),
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

/// As `LoadError`. A type of its own: whoever waits only for the disk must not be given to whoever would compile.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct FindError(LoadError);

impl Cache {
    pub(crate) fn open(
        engine: &Engine,
        dir: PathBuf,
        key: Zeroizing<[u8; 32]>,
        memory_bytes: u64,
    ) -> io::Result<Cache> {
        let memory = moka::future::Cache::builder()
            .max_capacity(memory_bytes)
            .weigher(|_, loaded: &Arc<Loaded>| u32::try_from(loaded.bytes).unwrap_or(u32::MAX))
            .build();
        Ok(Cache { disk: Arc::new(Disk::open(engine, dir, key)?), memory })
    }

    /// Compiled code for another engine with the same settings of code; see `control`.
    pub(crate) fn component(&self, engine: &Engine, artifact: ArtifactHash) -> io::Result<Option<Component>> {
        let mapped = self.disk.load(engine, artifact)?;
        mapped.map(|(component, _)| component.map_err(io::Error::other)).transpose()
    }

    /// Gives code that this host vouches for to another hash as well; see `control`.
    pub(crate) fn twin(&self, engine: &Engine, artifact: ArtifactHash, twin: ArtifactHash) -> io::Result<()> {
        self.component(engine, artifact)?.ok_or(io::ErrorKind::NotFound)?;
        let code = std::fs::read(self.disk.code_path(artifact))?;
        self.disk.write(twin, &code, Duration::ZERO)
    }
}

impl Jar {
    /// Code that was compiled before: from memory, else from disk. Never compiles.
    pub(crate) async fn find(
        &self,
        artifact: ArtifactHash,
    ) -> Result<Option<Arc<Loaded>>, Arc<impl std::error::Error + use<>>> {
        if let Some(loaded) = self.cache.memory.get(&artifact).await {
            return Ok(Some(loaded));
        }
        let load = async { self.load_from_disk(artifact).await.map_err(FindError) };
        match self.cache.memory.try_get_with(artifact, load).await {
            Ok(loaded) => Ok(Some(loaded)),
            // What was refused is refused again by whoever has its bytes, in words for its author.
            Err(error) if !matches!(error.0, LoadError::Failed(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How long this host once took to compile a component; `None` when it has not.
    pub(crate) async fn compile_time(&self, artifact: ArtifactHash) -> Result<Option<Duration>, InspectError> {
        let disk = Arc::clone(&self.cache.disk);
        let found = blocking(move || disk.compile_time(artifact)).await;
        found.map_err(|error| InspectError::Failed(error.into()))
    }

    /// The code of a component that passed the structural check: from memory or disk, else compiled. Whoever asks for
    /// the same component meanwhile waits for the same compilation.
    pub(crate) async fn find_or_compile(
        &self,
        artifact: ArtifactHash,
        component: &Bytes,
    ) -> Result<Arc<Loaded>, InspectError> {
        let load = async {
            match self.load_from_disk(artifact).await {
                Err(LoadError::Missing | LoadError::Unusable(_)) => {}
                found => return found,
            }
            let began = Instant::now();
            let code = self.compiler.compile(component).await.map_err(|error| match error {
                InspectError::Rejected(rejection) => LoadError::Rejected(rejection),
                InspectError::Failed(error) => LoadError::Failed(error),
            })?;
            let (disk, took) = (Arc::clone(&self.cache.disk), began.elapsed());
            blocking(move || disk.write(artifact, &code, took)).await?;
            self.load_from_disk(artifact).await
        };
        self.cache.memory.try_get_with(artifact, load).await.map_err(|error| match &*error {
            LoadError::Rejected(rejection) => InspectError::Rejected(rejection.clone()),
            // The pool has no room for it: too many memories, tables or instances, or too large ones.
            LoadError::Unusable(words) => Rejection::new("component.too_complex", words.clone()).into(),
            LoadError::Missing | LoadError::Failed(_) => InspectError::Failed(error.into()),
        })
    }

    async fn load_from_disk(&self, artifact: ArtifactHash) -> Result<Arc<Loaded>, LoadError> {
        let (disk, engine, linker) = (Arc::clone(&self.cache.disk), self.engine.clone(), self.linker.clone());
        let code = blocking(move || {
            let Some((component, bytes)) = disk.load(&engine, artifact)? else { return Ok(Err(LoadError::Missing)) };
            let component = component.map_err(|error| LoadError::Unusable(format!("{error:#}")));
            let prepare = |component| prepare(&linker, component, bytes).map_err(LoadError::Rejected);
            Ok(component.and_then(prepare))
        });
        code.await?.map(Arc::new)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, LoadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| LoadError::Failed(error.into())),
        Err(error) => Err(LoadError::Failed(error.into())),
    }
}

/// Links a component. The linker has the last word on what may be imported.
fn prepare(linker: &Linker<Sandbox>, component: Component, bytes: u64) -> Result<Loaded, Rejection> {
    let (engine, ty) = (linker.engine(), component.component_type());
    let pre = linker
        .instantiate_pre(&component)
        .map_err(|error| Rejection::new("component.unknown_import", format!("{error:#}")))?;
    if let Some(contract) = ty.exports(engine).find_map(|(name, _)| check::contract_of(name)) {
        return Ok(Loaded { tool: Tool::new(pre, &contract)?, contract, bytes });
    }
    let typed = Typed::new(engine, &component, pre)?;
    let typed = typed.ok_or_else(|| check::no_toolbox(ty.exports(engine).map(|(name, _)| name)))?;
    let bytes = bytes + typed.bytes as u64;
    Ok(Loaded { tool: Tool::Typed(Arc::new(typed)), contract: typed::CONTRACT.into(), bytes })
}

/// A directory of compiled code: `<content>-<engine>.cwasm`, and its MAC beside it.
struct Disk {
    dir: PathBuf,
    key: Zeroizing<[u8; 32]>,
    /// Everything that shapes code: the engine's version, its settings, its price of each operation.
    engine: String,
}

impl Disk {
    fn open(engine: &Engine, dir: PathBuf, key: Zeroizing<[u8; 32]>) -> io::Result<Disk> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // The directory may be older than this program, and wider open.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))?;
        let mut digest = Hashed(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut digest);
        digest.0.update(CODE_VERSION.to_le_bytes());
        Ok(Disk { dir, key, engine: hex::encode(&digest.0.finalize()[..16]) })
    }

    fn code_path(&self, artifact: ArtifactHash) -> PathBuf {
        self.dir.join(format!("{}-{}.cwasm", artifact.hex(), self.engine))
    }

    /// BLAKE3 in its keyed mode: the first call of a tool waits for this, and it is three times as fast as HMAC-SHA256.
    fn mac(&self, artifact: ArtifactHash) -> blake3::Hasher {
        let mut mac = blake3::Hasher::new_keyed(&self.key);
        mac.update(artifact.as_bytes());
        mac.update(self.engine.as_bytes());
        mac
    }

    fn write(&self, artifact: ArtifactHash, code: &[u8], compile_time: Duration) -> io::Result<()> {
        let compile_ms = u64::try_from(compile_time.as_millis()).unwrap_or(u64::MAX).to_le_bytes();
        let mut mac = self.mac(artifact);
        mac.update(&compile_ms);
        mac.update(code);
        let path = self.code_path(artifact);
        // Code without its MAC is compiled again; a MAC without its code is not looked at. So either may come first.
        self.write_file(&path, code)?;
        self.write_file(&mac_path(&path), &[&compile_ms[..], mac.finalize().as_bytes()].concat())?;
        make_room(&self.dir, DISK_BYTES_MAX)
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    }

    /// Maps code that this key vouches for. What it does not vouch for is removed and not loaded.
    fn load(&self, engine: &Engine, artifact: ArtifactHash) -> io::Result<Option<(wasmtime::Result<Component>, u64)>> {
        let path = self.code_path(artifact);
        let (Some(mut file), Some(mut sidecar)) = (open(&path)?, open(&mac_path(&path))?) else { return Ok(None) };
        let mut words = Vec::with_capacity(SIDECAR_BYTES);
        Read::by_ref(&mut sidecar).take(SIDECAR_BYTES as u64 + 1).read_to_end(&mut words)?;
        let (compile_ms, expected) = words.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
        let mut mac = self.mac(artifact);
        mac.update(compile_ms);
        let mut bytes = 0;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => {
                    mac.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        // Compared in constant time.
        let is_ours = <[u8; 32]>::try_from(expected).is_ok_and(|expected| mac.finalize() == expected);
        if !is_ours {
            tracing::warn!(artifact = %artifact, "compiled code does not match its MAC; it is compiled again");
            self.remove(&path);
            return Ok(None);
        }
        Ok(Some((map(engine, &file), bytes)))
    }

    /// What stands before the MAC in the sidecar.
    fn compile_time(&self, artifact: ArtifactHash) -> io::Result<Option<Duration>> {
        let Some(mut sidecar) = open(&mac_path(&self.code_path(artifact)))? else { return Ok(None) };
        let mut compile_ms = [0; 8];
        sidecar.read_exact(&mut compile_ms)?;
        Ok(Some(Duration::from_millis(u64::from_le_bytes(compile_ms)).min(COMPILE_TIME_MAX)))
    }

    fn remove(&self, path: &Path) {
        for path in [path, &mac_path(path)] {
            if let Err(error) = std::fs::remove_file(path).or_else(ignore_missing) {
                tracing::warn!(error = %error, "compiled code that is not trusted cannot be removed");
            }
        }
    }
}

/// Removes the oldest files, until all together have at most `bytes_max`. Code that is mapped stays mapped.
fn make_room(dir: &Path, bytes_max: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // Another process may have removed it meanwhile.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    if bytes > bytes_max {
        files.sort();
        for (_, file_bytes, path) in files {
            if bytes <= bytes_max {
                break;
            }
            std::fs::remove_file(path).or_else(ignore_missing)?;
            bytes -= file_bytes;
        }
    }
    Ok(())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Maps the open file itself, so that what was verified is what runs, whatever is renamed meanwhile.
#[expect(unsafe_code, reason = "mapping compiled code is running it; this is where it is vouched for")]
fn map(engine: &Engine, file: &File) -> wasmtime::Result<Component> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the bytes of this very inode carry a MAC by a key that only this host holds, so a compiler of this host
    // wrote them for this engine. They lie in a directory with mode 0700 and are replaced by rename, never in place.
    unsafe { Component::deserialize_file(engine, path) }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn mac_path(path: &Path) -> PathBuf {
    path.with_extension("mac")
}

/// Hashes with SHA-256 what only knows `Hasher`.
struct Hashed(Sha256);

impl Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Nobody asks: the digest is taken instead.
    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_code_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        for (second, name) in ["first", "second", "third"].iter().enumerate() {
            let path = dir.path().join(name);
            std::fs::write(&path, [0; 100]).unwrap();
            let age = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second as u64);
            File::options().write(true).open(path).unwrap().set_modified(age).unwrap();
        }
        let left = |bytes_max| {
            make_room(dir.path(), bytes_max).unwrap();
            let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(left(300), ["first", "second", "third"]);
        assert_eq!(left(299), ["second", "third"]);
        assert_eq!(left(0), [""; 0]);
    }
}
