//! `wasi:filesystem/types`: each function asks the quota, then the engine.
//!
//! Hard links and symbolic links are refused: with one name for each file a name that is removed frees exactly what it
//! held, and a path leads where it says. Nothing is synced: nothing of this outlives the call.

use std::{collections::VecDeque, fs::Permissions, os::unix::fs::PermissionsExt, sync::Arc, time::Instant};

use wasmtime::component::Resource;
use wasmtime_wasi::{
    filesystem::Descriptor,
    p2::{
        DynInputStream, DynOutputStream, FsError, FsResult,
        bindings::filesystem::types::{
            self, Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, DirectoryEntryStream,
            ErrorCode, Filesize, HostDescriptor as _, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
        },
    },
};

use super::{
    OPEN_MAX, View, borrowed,
    opened::Opened,
    quota::Full,
    streams::{Position, Reader, Write, Writer},
    this_use,
};

/// A listing that is being read. The engine's type for it cannot be made here, so the handle's number leads to this.
struct Entries(VecDeque<DirectoryEntry>);

impl types::Host for View<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        if self.table.get(&error)?.downcast_ref::<Full>().is_some() {
            return Ok(Some(ErrorCode::Quota));
        }
        self.engine().filesystem_error_code(error)
    }
}

impl types::HostDescriptor for View<'_> {
    async fn advise(&mut self, file: Resource<Descriptor>, _: Filesize, _: Filesize, _: Advice) -> FsResult<()> {
        self.opened_file(&file).map(|_| ())
    }

    async fn sync_data(&mut self, descriptor: Resource<Descriptor>) -> FsResult<()> {
        self.opened(&descriptor).map(|_| ())
    }

    async fn sync(&mut self, descriptor: Resource<Descriptor>) -> FsResult<()> {
        self.opened(&descriptor).map(|_| ())
    }

    async fn get_flags(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorFlags> {
        self.engine().get_flags(descriptor).await
    }

    async fn get_type(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorType> {
        self.engine().get_type(descriptor).await
    }

    async fn set_size(&mut self, file: Resource<Descriptor>, size: Filesize) -> FsResult<()> {
        let opened = self.opened_file(&file)?;
        if opened.inode.is_written() {
            return Err(ErrorCode::Busy.into());
        }
        opened.inode.reach(size).inspect_err(|_| opened.failed("quota"))?;
        self.engine().set_size(file, size).await?;
        opened.inode.shrunk(size);
        Ok(())
    }

    async fn set_times(
        &mut self,
        descriptor: Resource<Descriptor>,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FsResult<()> {
        self.engine().set_times(descriptor, accessed, modified).await
    }

    async fn read(&mut self, file: Resource<Descriptor>, len: Filesize, at: Filesize) -> FsResult<(Vec<u8>, bool)> {
        let opened = self.opened_file(&file)?;
        let read = self.engine().read(file, len, at).await?;
        opened.read(read.0.len());
        Ok(read)
    }

    async fn write(&mut self, file: Resource<Descriptor>, bytes: Vec<u8>, at: Filesize) -> FsResult<Filesize> {
        let opened = self.opened_file(&file)?;
        opened.inode.write(at, bytes.len()).inspect_err(|_| opened.failed("quota"))?;
        let written = self.engine().write(file, bytes, at).await?;
        opened.wrote(usize::try_from(written).unwrap_or(usize::MAX));
        Ok(written)
    }

    async fn read_directory(&mut self, dir: Resource<Descriptor>) -> FsResult<Resource<DirectoryEntryStream>> {
        let (started, path) = (Instant::now(), self.path_at(&dir, "."));
        let entries = self.entries(&dir).await;
        let entries = self.tell("read-directory", path, started, entries)?;
        self.meter.handled(entries.iter().map(|entry| entry.name.len()).sum());
        Ok(Resource::new_own(self.table.push(Entries(entries.into()))?.rep()))
    }

    async fn create_directory_at(&mut self, dir: Resource<Descriptor>, path: String) -> FsResult<()> {
        let (started, told) = (Instant::now(), self.path_at(&dir, &path));
        let created = self.create_directory(&dir, path).await;
        self.tell("create-directory-at", told, started, created)
    }

    async fn stat(&mut self, descriptor: Resource<Descriptor>) -> FsResult<DescriptorStat> {
        self.engine().stat(descriptor).await.map(without_times)
    }

    async fn stat_at(&mut self, dir: Resource<Descriptor>, flags: PathFlags, path: String) -> FsResult<DescriptorStat> {
        self.engine().stat_at(dir, flags, path).await.map(without_times)
    }

    async fn set_times_at(
        &mut self,
        dir: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FsResult<()> {
        self.engine().set_times_at(dir, flags, path, accessed, modified).await
    }

    async fn link_at(
        &mut self,
        _: Resource<Descriptor>,
        _: PathFlags,
        _: String,
        new_dir: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let told = self.path_at(&new_dir, &new_path);
        self.tell("link-at", told, Instant::now(), Err(ErrorCode::NotPermitted.into()))
    }

    async fn symlink_at(&mut self, dir: Resource<Descriptor>, _: String, path: String) -> FsResult<()> {
        let told = self.path_at(&dir, &path);
        self.tell("symlink-at", told, Instant::now(), Err(ErrorCode::NotPermitted.into()))
    }

    async fn readlink_at(&mut self, dir: Resource<Descriptor>, path: String) -> FsResult<String> {
        self.engine().readlink_at(dir, path).await
    }

    async fn open_at(
        &mut self,
        dir: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let (started, told) = (Instant::now(), self.path_at(&dir, &path));
        match self.open(&dir, path_flags, path, open_flags, flags).await {
            Ok((descriptor, inode)) => {
                let call = this_use("open-at", told.clone(), started);
                let opened = Opened::new(inode, told, self.ledger.clone(), Some(call));
                self.granted()?.open(&descriptor, opened);
                Ok(descriptor)
            }
            Err(error) => self.tell("open-at", told, started, Err(error)),
        }
    }

    fn drop(&mut self, descriptor: Resource<Descriptor>) -> wasmtime::Result<()> {
        if let Some(granted) = &mut self.scratch.granted {
            granted.open.remove(&descriptor.rep());
        }
        types::HostDescriptor::drop(&mut self.engine(), descriptor)
    }

    async fn remove_directory_at(&mut self, dir: Resource<Descriptor>, path: String) -> FsResult<()> {
        let (started, told) = (Instant::now(), self.path_at(&dir, &path));
        let id = self.id_at(&dir, PathFlags::empty(), &path).await;
        let removed = self.engine().remove_directory_at(dir, path).await;
        let removed = self.forget(id, removed);
        self.tell("remove-directory-at", told, started, removed)
    }

    async fn unlink_file_at(&mut self, dir: Resource<Descriptor>, path: String) -> FsResult<()> {
        let (started, told) = (Instant::now(), self.path_at(&dir, &path));
        let id = self.id_at(&dir, PathFlags::empty(), &path).await;
        let removed = self.engine().unlink_file_at(dir, path).await;
        let removed = self.forget(id, removed);
        self.tell("unlink-file-at", told, started, removed)
    }

    async fn rename_at(
        &mut self,
        old_dir: Resource<Descriptor>,
        old_path: String,
        new_dir: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let started = Instant::now();
        let told = format!("{} -> {}", self.path_at(&old_dir, &old_path), self.path_at(&new_dir, &new_path));
        let moved = self.id_at(&old_dir, PathFlags::empty(), &old_path).await;
        let replaced = self.id_at(&new_dir, PathFlags::empty(), &new_path).await.filter(|id| Some(*id) != moved);
        let renamed = self.engine().rename_at(old_dir, old_path, new_dir, new_path).await;
        let renamed = self.forget(replaced, renamed);
        self.tell("rename-at", told, started, renamed)
    }

    fn read_via_stream(&mut self, file: Resource<Descriptor>, at: Filesize) -> FsResult<Resource<DynInputStream>> {
        let Descriptor::File(_) = self.table.get(&file)? else { return Err(ErrorCode::IsDirectory.into()) };
        let (opened, place) = (self.opened(&file)?, self.stream()?);
        let stream = self.engine().read_via_stream(file, at)?;
        let engine = self.table.delete(stream)?;
        let reader: DynInputStream = Box::new(Reader { engine, opened, _place: place });
        Ok(self.table.push(reader)?)
    }

    fn write_via_stream(&mut self, file: Resource<Descriptor>, at: Filesize) -> FsResult<Resource<DynOutputStream>> {
        let stream = self.engine().write_via_stream(borrowed(&file), at)?;
        self.writer(&file, stream, Position::At(at))
    }

    fn append_via_stream(&mut self, file: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        let stream = self.engine().append_via_stream(borrowed(&file))?;
        self.writer(&file, stream, Position::End)
    }

    async fn is_same_object(&mut self, a: Resource<Descriptor>, b: Resource<Descriptor>) -> wasmtime::Result<bool> {
        self.engine().is_same_object(a, b).await
    }

    async fn metadata_hash(&mut self, descriptor: Resource<Descriptor>) -> FsResult<MetadataHashValue> {
        self.opened(&descriptor).map(|opened| identity(opened.inode.number))
    }

    async fn metadata_hash_at(
        &mut self,
        dir: Resource<Descriptor>,
        flags: PathFlags,
        path: String,
    ) -> FsResult<MetadataHashValue> {
        let id = self.engine().metadata_hash_at(dir, flags, path).await?.lower;
        let inode = self.granted()?.inodes.get(&id);
        inode.map(|inode| identity(inode.number)).ok_or_else(unknown)
    }
}

impl types::HostDirectoryEntryStream for View<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<DirectoryEntryStream>,
    ) -> FsResult<Option<DirectoryEntry>> {
        Ok(self.table.get_mut(&Resource::<Entries>::new_borrow(stream.rep()))?.0.pop_front())
    }

    fn drop(&mut self, stream: Resource<DirectoryEntryStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Entries>::new_own(stream.rep()))?;
        Ok(())
    }
}

impl View<'_> {
    async fn open(
        &mut self,
        dir: &Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<(Resource<Descriptor>, Arc<super::Inode>)> {
        if self.granted()?.open.len() >= OPEN_MAX {
            return Err(ErrorCode::Quota.into());
        }
        let found = self.id_at(dir, path_flags, &path).await;
        let granted = self.granted()?;
        let known = found.and_then(|id| granted.inodes.get(&id).cloned());
        let truncates = open_flags.contains(OpenFlags::TRUNCATE);
        if truncates && known.as_ref().is_some_and(|inode| inode.is_written()) {
            return Err(ErrorCode::Busy.into());
        }
        let new = match known {
            None if open_flags.contains(OpenFlags::CREATE) => Some(Arc::new(granted.quota.inode()?)),
            _ => None,
        };
        let descriptor = self.engine().open_at(borrowed(dir), path_flags, path, open_flags, flags).await?;
        let opened = self.inode_of(&descriptor, known, new).await;
        match opened {
            Ok(inode) => {
                if truncates {
                    inode.shrunk(0);
                }
                Ok((descriptor, inode))
            }
            Err(error) => {
                types::HostDescriptor::drop(&mut self.engine(), descriptor).map_err(FsError::trap)?;
                Err(error)
            }
        }
    }

    /// What was opened: `known` by its path, or `new` and private to this process.
    async fn inode_of(
        &mut self,
        descriptor: &Resource<Descriptor>,
        known: Option<Arc<super::Inode>>,
        new: Option<Arc<super::Inode>>,
    ) -> FsResult<Arc<super::Inode>> {
        if let Some(inode) = known {
            return Ok(inode);
        }
        let id = self.engine().metadata_hash(borrowed(descriptor)).await?.lower;
        let (Some(inode), Descriptor::File(file)) = (new, self.table.get(descriptor)?) else { return Err(unknown()) };
        let file = Arc::clone(&file.file);
        let private = move || file.set_permissions(Permissions::from_mode(0o600));
        tokio::task::spawn_blocking(private).await.map_err(FsError::trap)??;
        self.granted()?.inodes.insert(id, Arc::clone(&inode));
        Ok(inode)
    }

    async fn create_directory(&mut self, dir: &Resource<Descriptor>, path: String) -> FsResult<()> {
        let inode = Arc::new(self.granted()?.quota.inode()?);
        self.engine().create_directory_at(borrowed(dir), path.clone()).await?;
        let id = self.id_at(dir, PathFlags::empty(), &path).await.ok_or_else(unknown)?;
        self.granted()?.inodes.insert(id, inode);
        Ok(())
    }

    /// After a name was removed: what it led to counts only for as long as somebody holds it.
    fn forget(&mut self, id: Option<u64>, removed: FsResult<()>) -> FsResult<()> {
        removed?;
        if let Some(id) = id {
            self.granted()?.inodes.remove(&id);
        }
        Ok(())
    }

    /// All entries, by name: at most as many as there are inodes.
    async fn entries(&mut self, dir: &Resource<Descriptor>) -> FsResult<Vec<DirectoryEntry>> {
        let stream = self.engine().read_directory(borrowed(dir)).await?;
        let mut entries = self.table.delete(stream)?.into_iter().collect::<FsResult<Vec<_>>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn writer(
        &mut self,
        file: &Resource<Descriptor>,
        stream: Resource<DynOutputStream>,
        position: Position,
    ) -> FsResult<Resource<DynOutputStream>> {
        let engine = self.table.delete(stream)?;
        let (opened, place) = (self.opened_file(file)?, self.stream()?);
        let writer: DynOutputStream = Box::new(Writer { engine, opened, position, write: Write::None, _place: place });
        Ok(self.table.push(writer)?)
    }
}

fn without_times(stat: DescriptorStat) -> DescriptorStat {
    DescriptorStat {
        data_access_timestamp: None,
        data_modification_timestamp: None,
        status_change_timestamp: None,
        ..stat
    }
}

fn identity(number: u64) -> MetadataHashValue {
    MetadataHashValue { lower: number, upper: 0 }
}

/// A file that nobody made is in a directory that nobody else can enter. The call ends rather than count wrongly.
fn unknown() -> FsError {
    FsError::trap(wasmtime::Error::msg("a file of the scratch directory is not counted"))
}
