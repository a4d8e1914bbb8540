//! A writable NBD export as a target.
//!
//! An acknowledged write is not a safe one: a server that restarts may have lost what it had not flushed. So everything written is
//! noted until a FLUSH that was answered while no connection was lost since the note was begun ([`Pool::losses`]); what is still noted
//! after a loss is given back to be written again. A request whose connection was lost before its reply is simply made again: it
//! writes the same bytes to the same place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, ready};
use nbd_export::proto::{Command, Errno, TransmissionFlags};
use tokio::sync::Semaphore;
use volmap::range::ByteRange;

use super::limits::{FLUSH_EVERY, ZERO_REQUEST, ZERO_UNIT, ZERO_UNITS, ZEROES};
use super::nbd_source::is_writable;
use super::ranges::RangeSet;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{NbdError, Pool};

/// An export as a target.
pub(crate) struct NbdWriter {
    pool: Arc<Pool>,
    /// Whether zeroes are there already, as the operator vouches.
    is_zero: bool,
    /// Whether the server does WRITE_ZEROES, as far as is known.
    zeroes_by_server: AtomicBool,
    notes: Mutex<Notes>,
    /// Blocks that are written in part are read, changed and written, one at a time: two pieces may share one.
    edges: tokio::sync::Mutex<()>,
    /// Held by who flushes on the way.
    flushing: tokio::sync::Mutex<()>,
    /// Room for zeroes in flight, in [`ZERO_UNIT`]s.
    zeroing: Semaphore,
}

/// What was acknowledged and is not known to be safe.
#[derive(Default)]
struct Notes {
    /// Written since `losses` was sampled.
    written: RangeSet,
    bytes: u64,
    losses: u64,
    /// To be written again.
    unsure: RangeSet,
}

impl NbdWriter {
    /// The export of a pool; `is_zero`: its content is known to be zeroes.
    ///
    /// # Errors
    /// It is read-only.
    pub(crate) fn new(pool: Arc<Pool>, is_zero: bool) -> Result<Self> {
        if !is_writable(&pool) {
            return Err(Error::new(ErrorKind::TargetUnfit, "the export is read-only")
                .of_volume(pool.session().requested.as_str()));
        }
        Ok(Self {
            is_zero,
            zeroes_by_server: AtomicBool::new(pool.session().offers(TransmissionFlags::SEND_WRITE_ZEROES)),
            notes: Mutex::new(Notes {
                losses: pool.losses(),
                ..Notes::default()
            }),
            edges: tokio::sync::Mutex::new(()),
            flushing: tokio::sync::Mutex::new(()),
            zeroing: Semaphore::new(ZERO_UNITS),
            pool,
        })
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granule(&self) -> u64 {
        self.pool.session().export.block.minimum.max(1).into()
    }

    fn failed(&self, error: NbdError, range: ByteRange) -> Error {
        self.unlocated(error).in_range(range)
    }

    fn unlocated(&self, error: NbdError) -> Error {
        Error::from(error)
            .while_doing("writing the target")
            .of_volume(self.pool.session().requested.as_str())
    }

    /// A stream may turn out to be longer than the target.
    fn check_room(&self, range: ByteRange) -> Result<()> {
        let size = self.pool.session().export.size;
        if range.end() > size {
            let message = format!("the source has more than the {size} bytes of the target");
            return Err(Error::new(ErrorKind::TargetTooSmall, message)
                .of_volume(self.pool.session().requested.as_str()));
        }
        Ok(())
    }

    /// Writes a range, whole blocks at once and the rest of a block by reading it.
    async fn write_range(&self, range: ByteRange, bytes: Option<Bytes>) -> Result<()> {
        self.check_room(range)?;
        let began = self.pool.losses();
        let granule = self.granule();
        let start = range.start().next_multiple_of(granule).min(range.end());
        let end = (range.end() - range.end() % granule).max(start);
        let head = ByteRange::from_bounds(range.start(), start);
        let inner = ByteRange::from_bounds(start, end);
        let tail = ByteRange::from_bounds(end, range.end());
        let part = |part: ByteRange| {
            bytes.as_ref().map(|bytes| {
                let from = usize::try_from(part.start() - range.start()).unwrap_or(usize::MAX);
                let to = usize::try_from(part.end() - range.start()).unwrap_or(usize::MAX);
                bytes.slice(from..to)
            })
        };
        for edge in [head, tail].into_iter().flatten() {
            self.write_edge(edge, part(edge)).await?;
        }
        if let Some(inner) = inner {
            match part(inner) {
                Some(bytes) => self.write_blocks(inner, bytes).await?,
                None => self.zero_blocks(inner).await?,
            }
        }
        self.note(range, began).await
    }

    async fn write_blocks(&self, range: ByteRange, mut bytes: Bytes) -> Result<()> {
        let granule = usize::try_from(self.granule()).unwrap_or(1);
        let longest = usize::try_from(self.pool.session().export.block.payload_limit()).unwrap_or(usize::MAX);
        let longest = (longest - longest % granule).max(granule);
        let mut offset = range.start();
        while !bytes.is_empty() {
            let data = bytes.split_to(longest.min(bytes.len()));
            let next = offset + data.len() as u64;
            let write = Command::Write {
                offset,
                data,
                fua: false,
            };
            self.pool
                .request(write)
                .await
                .map_err(|error| self.failed(error, range))?;
            offset = next;
        }
        Ok(())
    }

    /// Zeroes by the server, and as data where it cannot.
    async fn zero_blocks(&self, range: ByteRange) -> Result<()> {
        let mut at = range.start();
        while let Some(left) = ByteRange::from_bounds(at, range.end()) {
            if !self.zeroes_by_server.load(Ordering::Relaxed) {
                return self.write_zeroes(left).await;
            }
            let length = left.len().min(ZERO_REQUEST);
            let zeroes = Command::WriteZeroes {
                offset: at,
                length,
                fua: false,
                no_hole: false,
                fast: false,
            };
            let room = u32::try_from(length.div_ceil(ZERO_UNIT)).unwrap_or(u32::MAX);
            let _in_flight = self.zeroing.acquire_many(room).await;
            match self.pool.request(zeroes).await {
                Ok(()) => at += length,
                // It offered what it does not do; what it does is to take data.
                Err(NbdError::Server(error)) if matches!(error.errno, Errno::NotSup | Errno::Inval) => {
                    tracing::warn!(%error, "zeroes are sent as data from here on");
                    self.zeroes_by_server.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(self.failed(error, left)),
            }
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: ByteRange) -> Result<()> {
        let mut at = range.start();
        while let Some(left) = ByteRange::from_bounds(at, range.end()) {
            let length = left.len().min(ZEROES.len() as u64);
            let data = Bytes::from_static(&ZEROES[..usize::try_from(length).unwrap_or(ZEROES.len())]);
            let part = ByteRange::new(at, length).unwrap_or(left);
            self.write_blocks(part, data).await?;
            at += length;
        }
        Ok(())
    }

    /// Writes a part of one block. `bytes` of `None` are zeroes.
    async fn write_edge(&self, range: ByteRange, bytes: Option<Bytes>) -> Result<()> {
        let failed = |error| self.failed(error, range);
        let _alone = self.edges.lock().await;
        let losses = self.pool.losses();
        let granule = self.granule();
        let offset = range.start() - range.start() % granule;
        let length = u32::try_from(granule).unwrap_or(u32::MAX);
        let mut block = BytesMut::from(&self.pool.read(offset, length).await.map_err(failed)?[..]);
        let from = usize::try_from(range.start() - offset).unwrap_or(usize::MAX);
        let to = usize::try_from(range.end() - offset).unwrap_or(usize::MAX);
        match bytes {
            Some(bytes) => block[from..to].copy_from_slice(&bytes),
            None => block[from..to].fill(0),
        }
        let write = Command::Write {
            offset,
            data: block.freeze(),
            fua: false,
        };
        self.pool.request(write).await.map_err(failed)?;
        // The lost request may still be carried out, behind a later change of the same block.
        if self.pool.losses() != losses {
            let message = "the connection was lost while a part of a block was written";
            return Err(Error::new(ErrorKind::HostLost, message).in_range(range));
        }
        Ok(())
    }

    /// Notes what was acknowledged, by a write that began when `losses` were counted, and flushes on the way once that is much.
    async fn note(&self, range: ByteRange, losses: u64) -> Result<()> {
        let much = {
            let mut notes = self.notes();
            if losses < notes.losses {
                // A connection was lost under it, and the notes were begun anew since.
                notes.unsure.insert(range);
            } else {
                notes.written.insert(range);
            }
            notes.bytes += range.len();
            notes.bytes >= FLUSH_EVERY
        };
        if much
            && self.pool.session().offers(TransmissionFlags::SEND_FLUSH)
            && let Ok(_alone) = self.flushing.try_lock()
        {
            self.settle().await?;
        }
        Ok(())
    }

    /// Flushes, and finds out whether what was acknowledged before is safe now.
    async fn settle(&self) -> Result<()> {
        let losses = self.pool.losses();
        let (written, since) = {
            let mut notes = self.notes();
            let since = std::mem::replace(&mut notes.losses, losses);
            notes.bytes = 0;
            (std::mem::take(&mut notes.written), since)
        };
        if self.pool.session().offers(TransmissionFlags::SEND_FLUSH) {
            self.pool
                .request(Command::Flush)
                .await
                .map_err(|error| self.unlocated(error))?;
        }
        if self.pool.losses() != since {
            self.notes().unsure.extend(written);
        }
        Ok(())
    }
}

impl Writer for NbdWriter {
    fn write(&self, offset: u64, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        match ByteRange::new(offset, bytes.len() as u64) {
            Some(range) => Box::pin(self.write_range(range, Some(bytes))),
            None => Box::pin(ready(Ok(()))),
        }
    }

    fn zero(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        if self.is_zero {
            // What cannot be there is not zero either.
            return Box::pin(ready(self.check_room(range)));
        }
        Box::pin(self.write_range(range, None))
    }

    fn flush(&self) -> BoxFuture<'_, Result<Vec<ByteRange>>> {
        Box::pin(async move {
            self.settle().await?;
            let unsure = std::mem::take(&mut self.notes().unsure);
            Ok(unsure.into_ranges())
        })
    }

    fn finish(self: Arc<Self>, _: u64) -> BoxFuture<'static, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}
