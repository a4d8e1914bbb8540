//! The superblock, or the copy of it that a metadata snapshot begins with.

use super::limits::{DATA_BLOCK_SECTORS_MAX, DATA_BLOCK_SECTORS_MIN};
use super::source::{u32_at, u64_at};
use super::{BLOCK_SIZE, MetadataError, checksum};

const MAGIC: u64 = 27_022_010;
const CHECKSUM_XOR: u32 = 160_774;
/// Version 1 lacks only the flag that asks for a check.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
const SECTOR: u64 = 512;

/// Byte offsets of `struct thin_disk_superblock` in the kernel's `dm-thin-metadata.c`; all numbers are little-endian.
mod at {
    pub(super) const MAGIC: usize = 32;
    pub(super) const VERSION: usize = 40;
    pub(super) const MAPPING_ROOT: usize = 320;
    pub(super) const DETAILS_ROOT: usize = 328;
    pub(super) const DATA_BLOCK_SECTORS: usize = 336;
    pub(super) const METADATA_BLOCK_SECTORS: usize = 340;
    pub(super) const INCOMPATIBLE_FLAGS: usize = 360;
}

/// What of a superblock leads to mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Superblock {
    /// Root of the tree of devices, whose values are roots of their mappings.
    pub(super) mapping_root: u64,
    /// Root of the tree of details.
    pub(super) details_root: u64,
    /// Bytes of a data block.
    pub(super) data_block_size: u64,
}

impl Superblock {
    /// Reads the superblock that was found as `block`.
    ///
    /// # Errors
    /// It is none, or of a kind that is not known.
    pub(super) fn parse(block: u64, bytes: &[u8]) -> Result<Self, MetadataError> {
        checksum::check(block, bytes, CHECKSUM_XOR)?;
        let unknown = |what, found: u64| Err(MetadataError::Unknown { what, found });
        let number = |at| u32_at(bytes, at);
        let magic = u64_at(bytes, at::MAGIC);
        if magic != MAGIC {
            return unknown("the mark", magic);
        }
        let version = number(at::VERSION);
        if !VERSIONS.contains(&version) {
            return unknown("version", version.into());
        }
        let flags = number(at::INCOMPATIBLE_FLAGS);
        if flags != 0 {
            return unknown("incompatible features", flags.into());
        }
        let block_sectors = number(at::METADATA_BLOCK_SECTORS);
        if u64::from(block_sectors) * SECTOR != BLOCK_SIZE as u64 {
            return unknown("metadata blocks of so many sectors:", block_sectors.into());
        }
        let data_sectors = number(at::DATA_BLOCK_SECTORS);
        let known = (DATA_BLOCK_SECTORS_MIN..=DATA_BLOCK_SECTORS_MAX).contains(&data_sectors);
        if !known || data_sectors % DATA_BLOCK_SECTORS_MIN != 0 {
            return unknown("data blocks of so many sectors:", data_sectors.into());
        }
        Ok(Self {
            mapping_root: u64_at(bytes, at::MAPPING_ROOT),
            details_root: u64_at(bytes, at::DETAILS_ROOT),
            data_block_size: u64::from(data_sectors) * SECTOR,
        })
    }
}
