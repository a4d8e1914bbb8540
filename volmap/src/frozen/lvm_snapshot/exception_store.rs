//! The persistent exception store of the kernel's dm-snapshot target, version 1. All numbers are little-endian.
//!
//! ```text
//! chunk 0                     header: magic "SnAp", valid, version, chunk size in sectors, u32 each
//! chunk 1 + k·(entries + 1)   area k of the log: `entries` pairs of u64, old chunk and new chunk; a new chunk of 0 ends the log
//! all others                  old data, in the order of the log
//! ```
//!
//! The kernel allocates and commits exceptions in one order, so entry *i* always names data chunk *i*. Anything else in its place is
//! taken for the end of the log: a read that overtook a write only makes the list shorter.

use std::io;

use crate::limits::COPY_UNIT;
use crate::storage::AlignedBuffer;

/// Sectors are of 512 bytes in everything that the kernel tells.
const SECTOR: u64 = 512;
/// Chunks of the header.
const HEADER_CHUNKS: u64 = 1;
/// Bytes of an entry of the log.
const ENTRY: u64 = 16;
/// What the header begins with.
const MAGIC: u32 = 0x7041_6e53;
/// The only version there is.
const VERSION: u32 = 1;
/// Chunks are no smaller, so that each can be read past the page cache whatever the disk's block size is. LVM's smallest, too.
const CHUNK_MIN: u64 = 4096;
/// Chunks are no larger. LVM's largest are of 512 KiB.
const CHUNK_MAX: u64 = 16 << 20;
/// Bytes that are read of the log first, and what reads are aligned to: most looks find a few new entries only.
const FIRST_READ: u64 = 4096;
/// Bytes that are read at a time where there is more.
const NEXT_READ: u64 = 64 << 10;

/// Why a store is not believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("its copy area has no header of an exception store")]
    Header,
    #[error("the header of its copy area says that it is not valid")]
    Invalid,
    #[error("the header of its copy area names another chunk size than its table")]
    ChunkSize,
    #[error("its log names a chunk twice, or one behind the end of the volume")]
    Entry,
    #[error("its status counts fewer copies than its log holds")]
    Shrunk,
    #[error("its status cannot be the one of an exception store")]
    Status,
}

/// Where everything lies in a store of this chunk size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    chunk: u64,
}

impl Geometry {
    /// For chunks of so many sectors.
    pub(super) fn new(chunk_sectors: u64) -> Option<Self> {
        let chunk = chunk_sectors.checked_mul(SECTOR)?;
        let fits = chunk.is_power_of_two() && (CHUNK_MIN..=CHUNK_MAX).contains(&chunk);
        fits.then_some(Self { chunk })
    }

    /// Of the snapshots that we make.
    pub(super) fn ours() -> Self {
        Self { chunk: COPY_UNIT }
    }

    /// Bytes of a chunk.
    pub(super) fn chunk(self) -> u64 {
        self.chunk
    }

    fn entries_per_area(self) -> u64 {
        self.chunk / ENTRY
    }

    fn area_chunk(self, area: u64) -> u64 {
        HEADER_CHUNKS + area * (self.entries_per_area() + 1)
    }

    /// Where entry `index` of the log lies, in bytes.
    pub(super) fn entry_offset(self, index: u64) -> u64 {
        let (area, in_area) = (index / self.entries_per_area(), index % self.entries_per_area());
        self.area_chunk(area) * self.chunk + in_area * ENTRY
    }

    /// The chunk of the store that holds the old data of entry `index`.
    pub(super) fn data_chunk(self, index: u64) -> u64 {
        let (area, in_area) = (index / self.entries_per_area(), index % self.entries_per_area());
        self.area_chunk(area) + 1 + in_area
    }

    /// Bytes of a store that can keep `data` bytes of old data in whole chunks, header and areas included.
    pub(super) fn size_for(self, data: u64) -> u64 {
        // When an area is full the next one has to be there, if only to be empty.
        self.data_chunk(data.div_ceil(self.chunk))
            .saturating_mul(self.chunk)
    }

    /// How many copies have begun when the status says that so many sectors are allocated: header, areas, data, and the area that
    /// would come next.
    pub(super) fn begun(self, allocated_sectors: u64) -> Result<u64, StoreError> {
        let allocated = allocated_sectors.checked_mul(SECTOR).ok_or(StoreError::Status)?;
        let next = allocated / self.chunk;
        let areas = next
            .saturating_sub(HEADER_CHUNKS)
            .div_ceil(self.entries_per_area() + 1);
        let begun = next
            .checked_sub(HEADER_CHUNKS + areas)
            .ok_or(StoreError::Status)?;
        // Counted back: the next free chunk is the one that the next copy goes to, and no other.
        if allocated.is_multiple_of(self.chunk) && self.data_chunk(begun) == next {
            Ok(begun)
        } else {
            Err(StoreError::Status)
        }
    }

    /// Checks the first bytes of a store.
    pub(super) fn check_header(self, bytes: &[u8]) -> Result<(), StoreError> {
        let number = |at: usize| {
            let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map(|b| u32::from_le_bytes(*b)).ok_or(StoreError::Header)
        };
        if number(0)? != MAGIC || number(8)? != VERSION {
            Err(StoreError::Header)
        } else if number(4)? != 1 {
            Err(StoreError::Invalid)
        } else if u64::from(number(12)?) * SECTOR != self.chunk {
            Err(StoreError::ChunkSize)
        } else {
            Ok(())
        }
    }

    /// The old chunks of the entries from `first` on, as far as `bytes` (which begin with that entry) hold them.
    fn entries(self, first: u64, bytes: &[u8]) -> Vec<u64> {
        let number = |bytes: &[u8]| bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
        let entries = bytes
            .chunks_exact(16)
            .map(|entry| Some((number(entry)?, number(&entry[8..])?)));
        (first..)
            .zip(entries)
            .map_while(|(index, entry)| entry.filter(|(_, new)| *new == self.data_chunk(index)))
            .map(|(old, _)| old)
            .collect()
    }

    /// The old chunks of the entries of the log from `first` on, in order, until the log ends or `enough` entries are known in all.
    /// Reads go past every cache, in blocks of 4096 bytes.
    ///
    /// Every entry is read twice and has to be the same: a disk writes a sector as a whole, but not every stack above one does.
    ///
    /// # Errors
    /// Of `read`.
    pub(super) fn read_log(
        self,
        first: u64,
        enough: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Vec<u64>> {
        let mut found: Vec<u64> = Vec::new();
        let mut len = FIRST_READ;
        let mut next = first;
        while next < enough {
            let offset = self.entry_offset(next);
            let start = offset - offset % FIRST_READ;
            let area_end = self.entry_offset(next - next % self.entries_per_area()) + self.chunk;
            let len_here = len.min(area_end - start);
            let skipped = usize::try_from(offset - start).map_err(io::Error::other)?;
            let mut bytes = AlignedBuffer::zeroed(usize::try_from(len_here).map_err(io::Error::other)?);
            let mut look = || {
                read(start, &mut bytes)?;
                Ok::<_, io::Error>(self.entries(next, &bytes[skipped..]))
            };
            let once = look()?;
            if once.is_empty() {
                break;
            }
            let again = look()?;
            let same = once.iter().zip(&again).take_while(|(a, b)| a == b).count();
            found.extend_from_slice(&once[..same]);
            next += same as u64;
            if offset + same as u64 * ENTRY < start + len_here {
                break;
            }
            len = NEXT_READ;
        }
        Ok(found)
    }
}
