//! A file or block device that is served read-write as it is.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::unistd::{Whence, lseek};

use crate::layers::{Layers, VolumeKind};
use crate::map::{Content, Extent};
use crate::range::ByteRange;
use crate::storage::backing::Backing;
use crate::storage::error::{StorageError, at};
use crate::storage::storage_file::{Caching, StorageFile};
use crate::storage::write_back::WriteBack;
use crate::sys::file_system::FileSystemType;
use crate::sys::{block_device, file_system, page_cache};

/// How zeroes may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zeroing {
    /// Whether blocks may be given back.
    pub may_punch: bool,
    /// Whether it has to be faster than writing zeroes, or not to be done at all.
    pub fast: bool,
}

/// A volume that is ours alone to write, through the page cache.
///
/// Any number of threads may call; a sync covers what any of them wrote, because all write through one open file.
pub struct LiveVolume {
    storage: StorageFile,
    /// What the kernel writes at least.
    block: u64,
    shows_holes: bool,
    write_back: WriteBack,
}

impl LiveVolume {
    /// Opens a file or block device, guarded as origins are.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(path: &Path, layers: &Layers) -> Result<Self, StorageError> {
        let storage = StorageFile::open(path, Caching::PageCache, layers)?;
        let block =
            block_device::logical_block_size(&storage.file).map_err(at(path, "asking for its block size"))?;
        let shows_holes = storage.kind != VolumeKind::BlockDevice
            && file_system::of(&storage.file).is_ok_and(|system| tells_holes_for_certain(system.kind));
        Ok(Self {
            storage,
            block: block.into(),
            shows_holes,
            write_back: WriteBack::default(),
        })
    }

    /// Size in bytes, as it was when it was opened.
    pub fn size(&self) -> u64 {
        self.storage.size()
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// What the storage says.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.storage.read_at(offset, buf)
    }

    /// As [`read_at`](Self::read_at) where all of it is in the page cache; `false`, and nothing of use in `buf`, where it is not.
    ///
    /// # Errors
    /// As `read_at`.
    pub fn read_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        Ok(page_cache::read_cached(&self.storage.file, buf, offset)? == buf.len())
    }

    /// Writes all of `data` at `offset`; with `fua` it is on stable storage at the return.
    ///
    /// # Errors
    /// What the storage says; any part may have been written.
    pub fn write_at(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.storage.write_at(offset, data)?;
        self.sync_if(fua)
    }

    /// Returns when everything that was written before is on stable storage.
    ///
    /// # Errors
    /// What the storage says, and what it said before.
    pub fn flush(&self) -> io::Result<()> {
        self.write_back.sync(|| self.storage.sync_data())
    }

    fn sync_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }

    /// Tells the storage that nobody needs `range`; what it reads as afterwards is not defined. Storage that takes no such advice
    /// keeps the bytes.
    ///
    /// # Errors
    /// What the storage says.
    pub fn trim(&self, range: ByteRange, fua: bool) -> io::Result<()> {
        let trimmed = if self.storage.kind == VolumeKind::BlockDevice {
            self.whole_blocks(range).map_or(Ok(()), |range| {
                block_device::discard(&self.storage.file, range.start(), range.len()).map_err(unsupported)
            })
        } else {
            self.storage.punch_at(range.start(), range.len())
        };
        match trimmed {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => other?,
        }
        self.sync_if(fua)
    }

    /// Makes `range` read as zeroes.
    ///
    /// # Errors
    /// `Unsupported`: it would not be fast, and nothing was changed. Else what the storage says.
    pub fn write_zeroes(&self, range: ByteRange, how: Zeroing, fua: bool) -> io::Result<()> {
        if self.storage.kind == VolumeKind::BlockDevice {
            self.zero_blocks(range, how)?;
        } else {
            self.zero(range, how)?;
        }
        self.sync_if(fua)
    }

    /// The kernel zeroes whole blocks of a device; what sticks out at either end is less than a block.
    fn zero_blocks(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let Some(whole) = self.whole_blocks(range) else {
            return self.storage.write_zeroes_at(range.start(), range.len());
        };
        // First, since it may not be done at all.
        self.zero(whole, how)?;
        for end in [(range.start(), whole.start()), (whole.end(), range.end())] {
            if let Some(end) = ByteRange::from_bounds(end.0, end.1) {
                self.storage.write_zeroes_at(end.start(), end.len())?;
            }
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let (start, len) = (range.start(), range.len());
        let is_device = self.storage.kind == VolumeKind::BlockDevice;
        if how.may_punch {
            // Of a device: only if it guarantees zeroes, and has not to write them.
            match self.storage.punch_at(start, len) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                done => return done,
            }
        }
        if is_device && how.fast {
            // What comes now, the kernel may do by writing.
            return Err(io::ErrorKind::Unsupported.into());
        }
        match file_system::zero_range(&self.storage.file, start, len).map_err(unsupported) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported && !how.fast => {
                self.storage.write_zeroes_at(start, len)
            }
            done => done,
        }
    }

    /// The whole blocks within a range.
    fn whole_blocks(&self, range: ByteRange) -> Option<ByteRange> {
        let end = range.end() - range.end() % self.block;
        ByteRange::from_bounds(range.start().checked_next_multiple_of(self.block)?, end)
    }

    /// What `range` holds now, at most `limit` extents from its start on. Only what certainly reads as zeroes is a hole.
    ///
    /// # Errors
    /// What the storage says.
    pub fn extents(&self, range: ByteRange, limit: usize) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut from = range.start();
        while extents.len() < limit
            && let Some(rest) = ByteRange::from_bounds(from, range.end())
        {
            let extent = self.extent(rest)?;
            from = extent.range.end();
            extents.push(extent);
        }
        Ok(extents)
    }

    /// The first extent of a range.
    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        let data = Extent {
            range,
            content: Content::Data,
        };
        if !self.shows_holes {
            return Ok(data);
        }
        let upto = |end: u64, content| {
            let range = ByteRange::from_bounds(range.start(), end.min(range.end())).unwrap_or(range);
            Extent { range, content }
        };
        match self.seek(range.start(), Whence::SeekData)? {
            Some(start) if start > range.start() => Ok(upto(start, Content::Hole)),
            Some(_) => Ok(match self.seek(range.start(), Whence::SeekHole)? {
                // Punched since: "data" is right of anything.
                Some(end) if end <= range.start() => {
                    upto((range.start() + 1).next_multiple_of(self.block), Content::Data)
                }
                Some(end) => upto(end, Content::Data),
                None => data,
            }),
            // No data from here on. Of a file that somebody cut short that says nothing: there a read fails.
            None if block_device::size(&self.storage.file)? >= range.end() => {
                Ok(upto(range.end(), Content::Hole))
            }
            None => Ok(data),
        }
    }

    /// Where the next data or hole is, from `at` on.
    fn seek(&self, at: u64, whence: Whence) -> io::Result<Option<u64>> {
        let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
        match lseek(&self.storage.file, at, whence) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Has `range` read into the page cache, in the background.
    ///
    /// # Errors
    /// What the storage says.
    pub fn warm(&self, range: ByteRange) -> io::Result<()> {
        let offset = |at: u64| libc::off_t::try_from(at).map_err(io::Error::other);
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        Ok(posix_fadvise(
            &self.storage.file,
            offset(range.start())?,
            offset(range.len())?,
            advice,
        )?)
    }
}

/// Whether SEEK_DATA passes over nothing but zeroes, whatever is in the page cache: so in the kernel's own file systems that
/// were looked at. ZFS once passed over data that was not written yet, and of network file systems the server decides.
fn tells_holes_for_certain(kind: FileSystemType) -> bool {
    match kind {
        FileSystemType::Xfs | FileSystemType::Ext | FileSystemType::Btrfs | FileSystemType::Tmpfs => true,
        FileSystemType::Overlay | FileSystemType::Other(_) => false,
    }
}

/// The ways in which the kernel says that it cannot do this here.
fn unsupported(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY | Errno::EINVAL) => {
            io::Error::new(io::ErrorKind::Unsupported, error)
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn volume() -> (tempfile::TempDir, LiveVolume) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let layers = Layers::new(Vec::new()).unwrap();
        let volume = LiveVolume::open(&path, &layers).unwrap();
        (dir, volume)
    }

    #[test]
    fn beyond_the_end_of_a_file_that_was_cut_short_nothing_is_certain() {
        let (_dir, mut volume) = volume();
        volume.shows_holes = true;
        volume.storage.file.set_len(SIZE / 2).unwrap();
        let beyond = ByteRange::new(SIZE / 2, 4096).unwrap();
        let extents = volume.extents(beyond, 8).unwrap();
        assert_eq!(
            extents,
            [Extent {
                range: beyond,
                content: Content::Data
            }]
        );
        assert!(volume.read_at(SIZE / 2, &mut [0]).is_err());
    }

    #[test]
    fn holes_of_other_file_systems_are_data() {
        let (_dir, mut volume) = volume();
        volume.storage.punch_at(0, SIZE / 2).unwrap();
        volume.shows_holes = false;
        let all = ByteRange::new(0, SIZE).unwrap();
        let extents = volume.extents(all, 8).unwrap();
        assert_eq!((extents.len(), extents[0].content), (1, Content::Data));
        for certain in [
            FileSystemType::Xfs,
            FileSystemType::Ext,
            FileSystemType::Btrfs,
            FileSystemType::Tmpfs,
        ] {
            assert!(tells_holes_for_certain(certain));
        }
        assert!(!tells_holes_for_certain(FileSystemType::Overlay));
        // ZFS and NFS.
        for other in [0x2fc1_2fc1, 0x6969] {
            assert!(!tells_holes_for_certain(FileSystemType::Other(other)));
        }
    }

    #[test]
    fn it_is_ours_alone() {
        let (dir, volume) = volume();
        let layers = Layers::new(Vec::new()).unwrap();
        let second = LiveVolume::open(&dir.path().join("v"), &layers);
        assert!(matches!(second, Err(StorageError::InUse { .. })));
        drop(volume);
        LiveVolume::open(&dir.path().join("v"), &layers).unwrap();
    }
}
