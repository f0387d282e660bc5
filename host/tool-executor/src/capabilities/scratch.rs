//! `wasi:filesystem`: one private, empty directory for a call that was granted one, seen as `/scratch`.
//!
//! The engine does the work and knows no quota, so its functions are taken in place of its own linking and asked only
//! after the quota was. What a tool sees does not depend on the machine: entries are sorted, identities are numbered, and
//! times of files are not told, which would be a finer clock than a tool may have.

mod directory;
mod files;
mod opened;
mod quota;
mod streams;

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Weak},
    time::Instant,
};

use tool_api::HostCall;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::{
    FsPerms, OpenMode,
    filesystem::{Descriptor, Dir, WasiFilesystemCtx, WasiFilesystemCtxView},
    p2::{
        FsError, FsResult,
        bindings::filesystem::{
            preopens,
            types::{self, ErrorCode, HostDescriptor as _},
        },
    },
};

pub(crate) use directory::{Directory, Room};
use opened::Opened;
use quota::{Full, Inode, Quota};
use streams::Place;

use crate::{
    capabilities::ledger::{Ledger, micros_since, use_of},
    meter::Meter,
    sandbox::Sandbox,
};

/// How a tool sees the directory.
const PREOPEN: &str = "/scratch";
/// Files and directories that a call may have open at the same time: the process has a thousand descriptors or so, for
/// all calls together.
const OPEN_MAX: usize = 32;
/// Streams of files that a call may have at the same time: each may keep a thread of the host busy.
const STREAMS_MAX: usize = 32;
/// Fuel for one piece of work on another thread: about what its time would buy in plain work.
const HOP_FUEL: usize = 10_000;
/// Longest path that is kept for the receipt, in bytes.
const PATH_BYTES_MAX: usize = 300;

/// The scratch directory of one call. By default it has none.
#[derive(Default)]
pub(crate) struct Scratch {
    granted: Option<Granted>,
    engine: WasiFilesystemCtx,
}

struct Granted {
    dir: Dir,
    root: Arc<Inode>,
    quota: Quota,
    /// Everything that has a name.
    inodes: HashMap<FileId, Arc<Inode>>,
    /// By descriptor, as the table numbers them.
    open: HashMap<u32, Arc<Opened>>,
    /// All that is not told yet, descriptors and streams.
    untold: Vec<Weak<Opened>>,
    streams: Place,
}

/// What the engine says of device and inode number. Nothing else ever works in the directory, so between a look at a
/// path and the work on it nothing changes.
type FileId = u64;

impl Scratch {
    /// A fresh directory of at most so many bytes. It lives for as long as the `Directory`.
    pub(crate) async fn open(room: Arc<Room>, bytes_max: u64) -> wasmtime::Result<(Scratch, Directory)> {
        let (directory, file) = tokio::task::spawn_blocking(move || room.directory()).await??;
        Ok((Scratch::at(file, bytes_max).await?, directory))
    }

    async fn at(file: File, bytes_max: u64) -> wasmtime::Result<Scratch> {
        let dir = Dir::new(file, FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE, false);
        let (mut engine, mut table) = (WasiFilesystemCtx::default(), ResourceTable::new());
        let descriptor = table.push(Descriptor::Dir(dir.clone()))?;
        let mut view = WasiFilesystemCtxView { ctx: &mut engine, table: &mut table };
        let id = view.metadata_hash(descriptor).await.map_err(wasmtime::Error::from)?.lower;
        let quota = Quota::new(bytes_max);
        let root = Arc::new(quota.inode()?);
        let inodes = HashMap::from([(id, Arc::clone(&root))]);
        let (open, untold, streams) = Default::default();
        Ok(Scratch { granted: Some(Granted { dir, root, quota, inodes, open, untold, streams }), engine })
    }

    /// Tells of what is still open. At the end of a call, before its ledger is read.
    pub(crate) fn finish(&mut self) {
        let untold = self.granted.iter_mut().flat_map(|granted| granted.untold.drain(..));
        untold.filter_map(|opened| opened.upgrade()).for_each(|opened| opened.end());
    }
}

/// A call's files, for one host function.
pub(crate) struct View<'a> {
    scratch: &'a mut Scratch,
    table: &'a mut ResourceTable,
    meter: &'a mut Meter,
    ledger: &'a Ledger,
}

struct Files;

impl HasData for Files {
    type Data<'a> = View<'a>;
}

pub(crate) fn link(linker: &mut Linker<Sandbox>) -> wasmtime::Result<()> {
    fn view(sandbox: &mut Sandbox) -> View<'_> {
        let Sandbox { scratch, table, meter, ledger, .. } = sandbox.counted();
        View { scratch, table, meter, ledger }
    }
    linker.allow_shadowing(true);
    types::add_to_linker::<Sandbox, Files>(linker, view)?;
    preopens::add_to_linker::<Sandbox, Files>(linker, view)?;
    linker.allow_shadowing(false);
    Ok(())
}

impl preopens::Host for View<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let Some(granted) = &mut self.scratch.granted else { return Ok(Vec::new()) };
        let descriptor = self.table.push(Descriptor::Dir(granted.dir.clone()))?;
        let opened = Opened::new(Arc::clone(&granted.root), String::new(), self.ledger.clone(), None);
        granted.open.insert(descriptor.rep(), Arc::new(opened));
        Ok(vec![(descriptor, PREOPEN.to_owned())])
    }
}

impl From<Full> for FsError {
    fn from(_: Full) -> FsError {
        ErrorCode::Quota.into()
    }
}

impl View<'_> {
    /// The engine's own functions: each works on another thread.
    fn engine(&mut self) -> WasiFilesystemCtxView<'_> {
        self.meter.handled(HOP_FUEL);
        WasiFilesystemCtxView { ctx: &mut self.scratch.engine, table: self.table }
    }

    /// Without a grant there is no descriptor, and so no call of anything that asks here.
    fn granted(&mut self) -> FsResult<&mut Granted> {
        self.scratch.granted.as_mut().ok_or_else(|| ErrorCode::BadDescriptor.into())
    }

    fn opened(&mut self, descriptor: &Resource<Descriptor>) -> FsResult<Arc<Opened>> {
        let opened = self.granted()?.open.get(&descriptor.rep()).cloned();
        opened.ok_or_else(|| ErrorCode::BadDescriptor.into())
    }

    /// As `opened`, where a directory will not do.
    fn opened_file(&mut self, descriptor: &Resource<Descriptor>) -> FsResult<Arc<Opened>> {
        match self.table.get(descriptor)? {
            Descriptor::File(_) => self.opened(descriptor),
            Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor.into()),
        }
    }

    /// What a path leads to. `None`: to nothing, or it cannot be said; then whoever works with it fails.
    async fn id_at(
        &mut self,
        descriptor: &Resource<Descriptor>,
        flags: types::PathFlags,
        path: &str,
    ) -> Option<FileId> {
        let found = self.engine().metadata_hash_at(borrowed(descriptor), flags, path.to_owned()).await;
        found.ok().map(|hash| hash.lower)
    }

    /// A path as the receipt tells it.
    fn path_at(&mut self, descriptor: &Resource<Descriptor>, path: &str) -> String {
        self.meter.handled(path.len());
        let base = self.opened(descriptor).ok();
        let mut told = match &base {
            Some(base) if !base.path.is_empty() => format!("{}/{path}", base.path),
            _ => path.to_owned(),
        };
        told.truncate(told.floor_char_boundary(PATH_BYTES_MAX));
        told
    }

    /// A place for one more stream.
    fn stream(&mut self) -> FsResult<Place> {
        let streams = &self.granted()?.streams;
        if Arc::strong_count(streams) > STREAMS_MAX {
            return Err(ErrorCode::Quota.into());
        }
        Ok(Arc::clone(streams))
    }

    /// Puts one use that has ended on the receipt.
    fn tell<T>(&self, function: &str, path: String, started: Instant, result: FsResult<T>) -> FsResult<T> {
        self.ledger.tell(HostCall { error: error_of(&result), ..this_use(function, path, started) });
        result
    }
}

impl Granted {
    /// What is opened, to be told when it is closed.
    fn open(&mut self, descriptor: &Resource<Descriptor>, opened: Opened) {
        let opened = Arc::new(opened);
        if self.untold.len() >= 2 * (OPEN_MAX + STREAMS_MAX) {
            self.untold.retain(|opened| opened.strong_count() > 0);
        }
        self.untold.push(Arc::downgrade(&opened));
        self.open.insert(descriptor.rep(), opened);
    }
}

fn this_use(function: &str, path: String, started: Instant) -> HostCall {
    HostCall {
        target: Some(path),
        duration_us: micros_since(started),
        grant: Some("scratch".to_owned()),
        ..use_of("wasi:filesystem", function)
    }
}

fn error_of<T>(result: &FsResult<T>) -> Option<String> {
    let error = result.as_ref().err()?;
    Some(error.downcast_ref().map_or("trap", ErrorCode::name).to_owned())
}

fn borrowed<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}
