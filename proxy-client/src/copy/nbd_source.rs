//! An NBD export that is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nbd_export::proto::TransmissionFlags;
use volmap::range::ByteRange;

use super::mapped_reader::{RandomAccess, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{NbdError, Pool};

/// `base:allocation`.
pub(crate) const ALLOCATION: &str = "base:allocation";
/// Its bit 1: reads as zeroes. A hole that does not promise zeroes has to be read.
const STATE_ZERO: u64 = 2;

/// An export as a source.
pub(crate) struct NbdSource {
    pool: Arc<Pool>,
    /// Once the server failed to tell its holes it is not asked again: everything else is data.
    tells_holes: AtomicBool,
}

impl NbdSource {
    /// The export of a pool, with its holes where it selected `base:allocation`.
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        let selected = pool.session().context_id(ALLOCATION).is_some();
        Self {
            pool,
            tells_holes: AtomicBool::new(selected),
        }
    }

    async fn ask(&self, range: ByteRange) -> Result<Vec<Run>> {
        let data = vec![Run {
            length: range.len(),
            is_zero: false,
        }];
        if !self.tells_holes.load(Ordering::Relaxed) {
            return Ok(data);
        }
        match self.pool.status(range, ALLOCATION).await {
            Ok(descriptors) => Ok(descriptors
                .iter()
                .map(|descriptor| Run {
                    length: descriptor.length,
                    is_zero: descriptor.status & STATE_ZERO != 0,
                })
                .collect()),
            Err(error @ NbdError::Server(_)) if !error.is_gone() => {
                tracing::warn!(%error, %range, "the server fails to tell holes, so everything is read");
                self.tells_holes.store(false, Ordering::Relaxed);
                Ok(data)
            }
            Err(error) => Err(self.failed(error, range)),
        }
    }

    fn failed(&self, error: NbdError, range: ByteRange) -> Error {
        Error::from(error)
            .while_doing("reading the source")
            .of_volume(self.pool.session().requested.as_str())
            .in_range(range)
    }
}

impl RandomAccess for NbdSource {
    fn size(&self) -> u64 {
        self.pool.session().export.size
    }

    fn granule(&self) -> u64 {
        self.pool.session().export.block.minimum.max(1).into()
    }

    fn longest(&self) -> u64 {
        self.pool.session().export.block.payload_limit().into()
    }

    fn runs(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Run>>> {
        Box::pin(self.ask(range))
    }

    fn read(self: Arc<Self>, range: ByteRange) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async move {
            let length = u32::try_from(range.len())
                .map_err(|_| Error::new(ErrorKind::HostIncompatible, "a read is too long"))?;
            let read = self.pool.read(range.start(), length).await;
            read.map_err(|error| self.failed(error, range))
        })
    }
}

/// Whether the export can be written to.
pub(crate) fn is_writable(pool: &Pool) -> bool {
    !pool.session().offers(TransmissionFlags::READ_ONLY)
}
