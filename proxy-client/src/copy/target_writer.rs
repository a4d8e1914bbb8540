//! A file or block device as a target.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::Semaphore;
use volmap::range::ByteRange;

use super::limits::FILE_WRITES;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::Target;

/// A [`Target`], written by threads that may wait for the disk.
pub(crate) struct TargetWriter {
    target: Arc<Target>,
    room: Arc<Semaphore>,
}

impl TargetWriter {
    /// Writes to a target.
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target: Arc::new(target),
            room: Arc::new(Semaphore::new(FILE_WRITES)),
        }
    }

    fn blocking(
        &self,
        work: impl FnOnce(&Target) -> Result<()> + Send + 'static,
    ) -> BoxFuture<'static, Result<()>> {
        let (target, room) = (Arc::clone(&self.target), Arc::clone(&self.room));
        Box::pin(async move {
            let _permit = room.acquire_owned().await;
            let done = tokio::task::spawn_blocking(move || work(&target));
            done.await.unwrap_or_else(|panicked| Err(broken(panicked)))
        })
    }
}

fn broken(panicked: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "a thread broke off").caused_by(panicked)
}

impl Writer for TargetWriter {
    fn write(&self, offset: u64, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        match ByteRange::new(offset, bytes.len() as u64) {
            Some(range) => self.blocking(move |target| target.write(range, &bytes)),
            None => Box::pin(ready(Ok(()))),
        }
    }

    fn zero(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        if self.target.is_zero_already() {
            // What cannot be there is not zero either.
            return Box::pin(ready(self.target.check_room(range)));
        }
        self.blocking(move |target| target.zero(range))
    }

    /// The whole is made durable when it is finished.
    fn flush(&self) -> BoxFuture<'_, Result<Vec<ByteRange>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn finish(self: Arc<Self>, size: u64) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let target = Arc::into_inner(self).and_then(|writer| Arc::into_inner(writer.target));
            let Some(target) = target else {
                return Err(Error::new(ErrorKind::Io, "the target is still being written"));
            };
            let done = tokio::task::spawn_blocking(move || target.finish(size));
            done.await.unwrap_or_else(|panicked| Err(broken(panicked)))
        })
    }
}
