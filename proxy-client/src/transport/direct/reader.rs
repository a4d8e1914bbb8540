//! The narrow interface to one path to a LUN.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use volmap::range::ByteRange;

use super::memory::{Memory, MemoryPool};
use super::threads::ReadThreads;

/// What of the identity of a disk is no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes; `None`: it is no block device.
    pub block_size: Option<u64>,
}

/// One path to a LUN; test harnesses wrap it to let a writer or a fault in at a chosen point.
pub trait LunReader: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// What offsets and lengths of reads must be multiples of, a power of two.
    fn block_size(&self) -> u64;

    /// Size and block size of what was opened; `None`: it is nothing that has them.
    fn geometry(&self) -> Option<Geometry> {
        None
    }

    /// Reads into `buf`, whose length and `offset` are multiples of the block size. Short only at the end of the LUN.
    ///
    /// # Errors
    /// What the system says of the read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads `blocks`, which are whole blocks, to the beginning of memory of `pool` while the caller goes on: the memory, and how much of
    /// it is filled. A disk is waited for on one of the threads of its path; a reader that has nothing to wait for does it its own way.
    fn read_meanwhile(
        self: Arc<Self>,
        blocks: ByteRange,
        pool: &MemoryPool,
        threads: &ReadThreads,
    ) -> ReadMeanwhile
    where
        Self: 'static,
    {
        let pool = pool.clone();
        threads.read(blocks.len(), move || {
            let len = memory_len(blocks.len())?;
            // Only now: what was given back last is in the cache of the processor still.
            let mut memory = pool.take(len);
            let filled = self.read_at(blocks.start(), &mut memory[..len])?;
            Ok((memory, filled))
        })
    }
}

/// A read under way.
pub type ReadMeanwhile = Pin<Box<dyn Future<Output = io::Result<(Memory, usize)>> + Send>>;

/// Opens paths to LUNs; the job's only way to one.
pub trait LunOpener: Send + Sync {
    /// The LUN at `path`, for direct reads.
    ///
    /// # Errors
    /// It cannot be opened, or refuses O_DIRECT.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LunReader>>;
}

pub(super) fn memory_len(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the range does not fit the address space",
        )
    })
}
