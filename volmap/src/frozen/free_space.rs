//! What nobody has of a file system in a frozen image: told by the file system's own records, as they are in the frozen bytes.
//!
//! The live file system could only tell of another instant. So the frozen image itself is mounted, read-only, for as long as the question takes.
//! That is right only where the file system was frozen for the image, so that nothing of its records waits in a log.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use super::FrozenError;
use crate::limits::{FREE_RUN_MIN, FREE_RUNS_MAX};
use crate::map::Runs;
use crate::range::ByteRange;
use crate::storage::read_direct;
use crate::sys::{DeviceNumber, detached_mount, fsmap};

/// Where the word is by which XFS is known, and that word.
const XFS_MAGIC: (usize, &[u8]) = (0, b"XFSB");
/// The same of ext2, ext3 and ext4.
const EXT_MAGIC: (usize, &[u8]) = (1080, &[0x53, 0xef]);
/// Both lie in this much of the device.
const SUPERBLOCKS: usize = 4096;

/// Fields of the superblock of ext: where each begins, of how many bytes, and the bit that is looked at.
mod ext {
    /// `s_state`: the kernel found something wrong in it.
    pub(super) const STATE_HAS_ERRORS: (usize, usize, u32) = (1024 + 58, 2, 2);
    /// `s_feature_compat`: it has a journal.
    pub(super) const HAS_JOURNAL: (usize, usize, u32) = (1024 + 92, 4, 4);
    /// `s_feature_incompat`: what it holds may be in its journal only. A freeze takes that back, once all is written out.
    pub(super) const NEEDS_RECOVERY: (usize, usize, u32) = (1024 + 96, 4, 4);
}

/// An option of a mount, and its value if it has one.
type MountOption = (&'static CStr, Option<&'static CStr>);

/// Why it is not known what nobody has.
#[derive(Debug, thiserror::Error)]
pub enum NoFreeSpace {
    /// Its provider has nothing that can be mounted.
    #[error("frozen images by {0} do not tell free space")]
    NotTold(&'static str),
    /// What its file system holds may be in its log only.
    #[error("its file system was not frozen for it")]
    NotFrozen,
    /// Its own records may not be right, or not all there is to know.
    #[error("its file system is not in order: {0}")]
    NotInOrder(&'static str),
    /// It is none that is known to tell.
    #[error("it holds neither ext4 nor XFS")]
    OtherFileSystem,
    /// The kernel does not tell.
    #[error("its file system cannot be asked: {0}")]
    NotAsked(#[from] io::Error),
    /// It is not frozen any more.
    #[error(transparent)]
    Gone(#[from] FrozenError),
}

/// The parts of a volume, each with whether nobody has it.
#[derive(Clone, Debug, Default)]
pub struct FreeSpace {
    runs: Runs<bool>,
    /// Asked for by everybody who looks at an export: there may be millions of runs.
    bytes: u64,
}

impl FreeSpace {
    /// Of the file system on a device that nobody writes to, and that its kernel has frozen before: nothing of it waits in a log. ext
    /// tells itself where that is not so; of XFS it is the caller's word.
    ///
    /// # Errors
    /// [`NoFreeSpace`].
    pub fn on_device(device: &File, number: DeviceNumber, size: u64) -> Result<Self, NoFreeSpace> {
        let mut start = vec![0; SUPERBLOCKS];
        read_direct(device, 0, &mut start)?;
        let (kind, options) = how_to_mount(&start)?;
        let root = detached_mount::read_only(device, kind, options)?;
        Ok(Self::of(size, |tell| fsmap::visit_free(&root, number, tell))?)
    }

    /// Of a volume of `size` bytes; `tell` calls for each run that nobody has, in rising order. Short runs do not count: each costs more to be
    /// told of than to be read.
    fn of(size: u64, tell: impl FnOnce(&mut dyn FnMut(u64, u64)) -> io::Result<()>) -> io::Result<Self> {
        let mut runs = Runs::default();
        let mut count = 0;
        tell(&mut |start, len| {
            let end = start.saturating_add(len).min(size);
            if end.saturating_sub(start) >= FREE_RUN_MIN && count < FREE_RUNS_MAX {
                runs.push(start, false);
                runs.push(end, true);
                count += 1;
            }
        })?;
        runs.push(size, false);
        runs.shrink();
        Ok(Self::new(runs))
    }

    fn new(runs: Runs<bool>) -> Self {
        let free = runs.all().filter(|(_, is_free)| *is_free);
        let bytes = free.map(|(range, _)| range.len()).sum();
        Self { runs, bytes }
    }

    /// These.
    #[cfg(test)]
    pub(super) fn of_runs(size: u64, free: &[ByteRange]) -> Self {
        let mut runs = Runs::default();
        for range in free {
            runs.push(range.start(), false);
            runs.push(range.end(), true);
        }
        runs.push(size, false);
        Self::new(runs)
    }

    /// Bytes that nobody has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The parts of `range` in order, each with whether nobody has it.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, bool)> {
        self.runs.within(range)
    }
}

/// What is mounted, without a look at its log: there is nothing in it. XFS takes one UUID once only, and the origin has it. ext may say of
/// itself that an error stops the kernel: an error in a copy must not.
///
/// # Errors
/// [`NoFreeSpace::OtherFileSystem`]; of ext, [`NoFreeSpace::NotFrozen`] and [`NoFreeSpace::NotInOrder`].
fn how_to_mount(start: &[u8]) -> Result<(&'static CStr, &'static [MountOption]), NoFreeSpace> {
    let has = |(at, magic): (usize, &[u8])| start.get(at..at + magic.len()) == Some(magic);
    if has(XFS_MAGIC) {
        return Ok((c"xfs", &[(c"norecovery", None), (c"nouuid", None)]));
    }
    if !has(EXT_MAGIC) {
        return Err(NoFreeSpace::OtherFileSystem);
    }
    let is_set = |(at, len, bit): (usize, usize, u32)| {
        let field = start.get(at..at + len).unwrap_or_default();
        field
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
            & bit
            != 0
    };
    if is_set(ext::NEEDS_RECOVERY) {
        return Err(NoFreeSpace::NotFrozen);
    }
    if is_set(ext::STATE_HAS_ERRORS) {
        return Err(NoFreeSpace::NotInOrder("an error was found in it: e2fsck"));
    }
    // Nobody knows whether it was mounted after a crash without a check.
    if !is_set(ext::HAS_JOURNAL) {
        return Err(NoFreeSpace::NotInOrder("it has no journal"));
    }
    Ok((c"ext4", &[(c"norecovery", None), (c"errors", Some(c"continue"))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_and_what_lies_behind_the_end_do_not_count() {
        let least = FREE_RUN_MIN;
        let size = 100 * least;
        let free = FreeSpace::of(size, |tell| {
            tell(0, least - 1);
            tell(least, least);
            tell(10 * least, 3 * least + 1);
            tell(99 * least, 5 * least);
            tell(200 * least, least);
            Ok(())
        })
        .unwrap();
        let parts: Vec<_> = free.runs.all().filter(|(_, is_free)| *is_free).collect();
        let range = |start, end| (ByteRange::from_bounds(start, end).unwrap(), true);
        assert_eq!(
            parts,
            [
                range(least, 2 * least),
                range(10 * least, 13 * least + 1),
                range(99 * least, size)
            ]
        );
        assert_eq!(free.bytes(), 5 * least + 1);
        assert_eq!(free.runs.end(), size);
    }
    #[test]
    fn an_error_in_a_copy_of_ext4_does_not_stop_the_kernel() {
        let mut start = vec![0; SUPERBLOCKS];
        start[EXT_MAGIC.0..][..2].copy_from_slice(EXT_MAGIC.1);
        start[ext::HAS_JOURNAL.0] = 4;
        let (kind, options) = how_to_mount(&start).unwrap();
        assert_eq!(kind, c"ext4");
        assert!(options.contains(&(c"errors", Some(c"continue"))), "{options:?}");
    }
}
