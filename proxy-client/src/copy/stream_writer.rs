//! Standard output as a target.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use volmap::range::ByteRange;

use super::limits::ZEROES;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::output::{Output, StdoutOutput};

/// A stream that is written front to back.
pub(crate) struct StreamWriter(Arc<Mutex<Option<StdoutOutput>>>);

impl StreamWriter {
    /// Standard output.
    ///
    /// # Errors
    /// It is a terminal, or closed.
    pub(crate) fn stdout() -> Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Some(StdoutOutput::new()?)))))
    }

    fn blocking(
        &self,
        work: impl FnOnce(&mut StdoutOutput) -> Result<()> + Send + 'static,
    ) -> BoxFuture<'static, Result<()>> {
        let output = Arc::clone(&self.0);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                output.as_mut().map_or(Ok(()), work)
            });
            done.await.unwrap_or_else(|panicked| Err(broken(panicked)))
        })
    }
}

fn broken(panicked: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Io, "a thread broke off").caused_by(panicked)
}

impl Writer for StreamWriter {
    fn is_stream(&self) -> bool {
        true
    }

    fn write(&self, _: u64, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        self.blocking(move |output| output.write(&bytes))
    }

    fn zero(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut left = range.len();
            while left > 0 {
                let part = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
                // One at a time, so that an interrupt gets in between.
                self.blocking(move |output| output.write(&ZEROES[..part])).await?;
                left -= part as u64;
            }
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<Vec<ByteRange>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn finish(self: Arc<Self>, _: u64) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let output = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            let committed = tokio::task::spawn_blocking(move || match output {
                Some(output) => Box::new(output).commit(),
                None => Ok(()),
            });
            committed.await.unwrap_or_else(|panicked| Err(broken(panicked)))
        })
    }
}
