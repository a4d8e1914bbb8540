//! Giving every block of a file its place, before a location in it is published.
//!
//! A write to a hole, or to a preallocated or shared block, allocates or moves; a write to a block that was written before and
//! is nobody else's does not (tried on ext4 and XFS: docs/law.md, "Witnesses").

use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::statvfs::fstatvfs;

use crate::layers::VolumeKind;
use crate::range::ByteRange;
use crate::storage::backing::Backing;
use crate::storage::error::{StorageError, at};
use crate::storage::storage_file::StorageFile;
use crate::sys::fiemap::{self, ExtentFlags, RawExtent};
use crate::sys::file_system;

/// Unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// Gives `storage` its size, a multiple of `unit`, and every block of it a place: of a file by writing zeroes wherever a block has
/// none of its own yet. The blocks of a device have their places at once; a layer below that moves them when they are written to is
/// not understood, and no location is given through it.
pub(crate) fn settle_all(storage: &mut StorageFile, size: u64, unit: u64) -> Result<(), StorageError> {
    let (path, available) = (storage.path.clone(), storage.size());
    if storage.kind == VolumeKind::BlockDevice && size > available {
        return Err(StorageError::DeviceTooSmall {
            path,
            wanted: size,
            available,
        });
    }
    settle(storage, size, unit).map_err(|error| {
        // What there is no room for is not left lying around half made. The first error is the one to tell of.
        let _ = storage.resize(available);
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                StorageError::NoRoom { path, size }
            }
            _ => at(&path, "writing it once all over")(error),
        }
    })
}

fn settle(storage: &mut StorageFile, size: u64, unit: u64) -> io::Result<()> {
    storage.resize(size)?;
    settle_again(storage, unit)
}

/// Of a file, writes zeroes wherever a block has no place of its own (any more): somebody may have cloned or punched the file.
pub(crate) fn settle_again(storage: &StorageFile, unit: u64) -> io::Result<()> {
    if storage.kind == VolumeKind::BlockDevice {
        return Ok(());
    }
    let size = storage.size();
    // Room first, and not by trial: a failing fallocate takes all that is left before it says so.
    let allocated = storage.file.metadata()?.blocks() * STAT_BLOCK;
    let room = fstatvfs(&storage.file)?;
    if u128::from(size - allocated.min(size))
        > u128::from(room.blocks_available()) * u128::from(room.fragment_size())
    {
        return Err(io::ErrorKind::StorageFull.into());
    }
    match file_system::allocate(&storage.file, 0, size) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
        other => other?,
    }
    let ranges: Vec<ByteRange> = match fiemap::extents(&storage.file) {
        Ok(extents) => unsettled(&extents, size, unit),
        // No FIEMAP, no locations; but what is written now cannot run out of room later.
        Err(_) => ByteRange::new(0, size).into_iter().collect(),
    };
    for range in ranges {
        storage.write_zeroes_at(range.start(), range.len())?;
    }
    storage.file.sync_all()
}

/// The parts of a file that may not stay where they are when they are overwritten, in whole units.
fn unsettled(extents: &[RawExtent], size: u64, unit: u64) -> Vec<ByteRange> {
    let harmless = ExtentFlags::LAST | ExtentFlags::MERGED;
    let mut found: Vec<ByteRange> = Vec::new();
    let mut add = |start: u64, end: u64| {
        let units = ByteRange::from_bounds(start, end.min(size)).and_then(|r| r.align_outward(unit));
        let Some(range) = units else { return };
        match found.last_mut() {
            Some(last) if last.end() >= range.start() => {
                *last = ByteRange::from_bounds(last.start(), range.end().max(last.end())).unwrap_or(*last);
            }
            _ => found.push(range),
        }
    };
    let mut covered = 0;
    for extent in extents {
        let end = extent.logical.saturating_add(extent.len);
        add(covered, extent.logical);
        if extent.flags.without(harmless) != ExtentFlags(0) {
            add(extent.logical, end);
        }
        covered = end;
    }
    add(covered, size);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, len: u64, flags: ExtentFlags) -> RawExtent {
        RawExtent {
            logical,
            physical: 1 << 20,
            len,
            flags,
        }
    }

    #[test]
    fn only_written_blocks_of_our_own_are_settled() {
        let written = ExtentFlags::MERGED | ExtentFlags::LAST;
        let pairs = |extents: &[RawExtent]| -> Vec<_> {
            unsettled(extents, 80, 10)
                .iter()
                .map(|r| (r.start(), r.end()))
                .collect()
        };
        assert_eq!(pairs(&[]), [(0, 80)]);
        assert_eq!(pairs(&[extent(0, 90, written)]), []);
        assert_eq!(
            pairs(&[
                extent(0, 20, ExtentFlags(0)),
                extent(20, 5, ExtentFlags::UNWRITTEN),
                extent(25, 15, ExtentFlags(0)),
                extent(41, 9, ExtentFlags(0)),
                extent(50, 10, ExtentFlags::SHARED | ExtentFlags::LAST),
                extent(60, 10, written),
            ]),
            [(20, 30), (40, 60), (70, 80)]
        );
        assert_eq!(
            pairs(&[extent(0, 80, ExtentFlags(0x8000_0000))]),
            [(0, 80)],
            "a flag of a later kernel"
        );
    }
}
