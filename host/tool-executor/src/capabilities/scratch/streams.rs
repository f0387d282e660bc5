//! Streams of a file. The engine's own ones know no quota: each write is counted here before it begins.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError};

use super::{
    opened::Opened,
    quota::{Full, Inode},
};

type StreamResult<T> = Result<T, StreamError>;

/// One of the streams that a call may have at the same time.
pub(super) type Place = Arc<()>;

#[derive(Debug, Clone, Copy)]
pub(super) enum Position {
    At(u64),
    End,
}

pub(super) struct Reader {
    pub(super) engine: DynInputStream,
    pub(super) opened: Arc<Opened>,
    pub(super) _place: Place,
}

impl Reader {
    fn told<T>(&self, result: StreamResult<T>, bytes: impl FnOnce(&T) -> usize) -> StreamResult<T> {
        result.inspect(|read| self.opened.read(bytes(read)))
    }
}

#[async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        self.engine.ready().await;
    }
}

#[async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let read = self.engine.read(size);
        self.told(read, Bytes::len)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        let read = self.engine.blocking_read(size).await;
        self.told(read, Bytes::len)
    }

    async fn cancel(&mut self) {
        self.engine.cancel().await;
    }
}

pub(super) struct Writer {
    pub(super) engine: DynOutputStream,
    pub(super) opened: Arc<Opened>,
    pub(super) position: Position,
    pub(super) write: Write,
    pub(super) _place: Place,
}

/// A write that goes on after its host function has returned.
pub(super) enum Write {
    None,
    UnderWay {
        _until_dropped: UnderWay,
    },
    /// The quota refused one: as after any failure, the stream is closed.
    Refused,
}

/// See `Inode::write_began`.
pub(super) struct UnderWay(Arc<Inode>);

impl UnderWay {
    fn on(inode: &Arc<Inode>) -> UnderWay {
        inode.write_began();
        UnderWay(Arc::clone(inode))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.write_ended();
    }
}

impl Writer {
    /// Counts a write before it begins.
    fn count(&mut self, bytes: usize) -> StreamResult<()> {
        if let Write::Refused = self.write {
            return Err(StreamError::Closed);
        }
        let counted = match self.position {
            Position::At(offset) => self.opened.inode.write(offset, bytes),
            Position::End => self.opened.inode.append(bytes),
        };
        if let Err(full) = counted {
            self.write = Write::Refused;
            self.opened.failed("quota");
            return Err(failed(full));
        }
        if let Position::At(offset) = &mut self.position {
            *offset = offset.saturating_add(bytes as u64);
        }
        self.opened.wrote(bytes);
        Ok(())
    }

    fn ended(&mut self) {
        if let Write::UnderWay { .. } = self.write {
            self.write = Write::None;
        }
    }
}

#[async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        self.engine.ready().await;
        self.ended();
    }
}

#[async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if let Write::UnderWay { .. } = self.write {
            return Err(StreamError::trap("write not permitted: check_write not called first"));
        }
        self.count(bytes.len())?;
        self.write = Write::UnderWay { _until_dropped: UnderWay::on(&self.opened.inode) };
        self.engine.write(bytes)
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.ready().await;
        self.count(bytes.len())?;
        self.engine.blocking_write_and_flush(bytes).await
    }

    fn flush(&mut self) -> StreamResult<()> {
        if let Write::Refused = self.write {
            return Err(StreamError::Closed);
        }
        self.engine.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        if let Write::Refused = self.write {
            return Err(StreamError::Closed);
        }
        self.engine.check_write()
    }

    async fn cancel(&mut self) {
        self.engine.cancel().await;
        self.ended();
    }
}

fn failed(full: Full) -> StreamError {
    StreamError::LastOperationFailed(full.into())
}
