//! FIEMAP: where the extents of a file lie in its file system.

use std::fs::File;
use std::io;
use std::ops::{BitOr, ControlFlow};

use nix::libc;

use super::ioctl;

const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;
const FIEMAP_FLAG_SYNC: u32 = 1;

/// Extents for one call. 256 are enough to hide the cost of the call; 1024 are 56 KiB.
const BATCH: usize = 1024;

/// Flags of an extent, raw (`include/uapi/linux/fiemap.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ExtentFlags(pub u32);

impl ExtentFlags {
    /// The last extent of the file.
    pub const LAST: Self = Self(0x1);
    /// The location is not known.
    pub const UNKNOWN: Self = Self(0x2);
    /// Not yet allocated: waits for writeback.
    pub const DELALLOC: Self = Self(0x4);
    /// Compressed or otherwise not the bytes of the file.
    pub const ENCODED: Self = Self(0x8);
    /// What lies there is ciphertext.
    pub const DATA_ENCRYPTED: Self = Self(0x80);
    /// Offsets are not multiples of the block size.
    pub const NOT_ALIGNED: Self = Self(0x100);
    /// Lies among metadata.
    pub const DATA_INLINE: Self = Self(0x200);
    /// Packed together with the tails of other files.
    pub const DATA_TAIL: Self = Self(0x400);
    /// Allocated, reads as zeroes.
    pub const UNWRITTEN: Self = Self(0x800);
    /// Joined by the file system for this answer.
    pub const MERGED: Self = Self(0x1000);
    /// Shared with other files.
    pub const SHARED: Self = Self(0x2000);

    /// Whether any flag of `other` is set here.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flags without those of `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for ExtentFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An extent as the kernel tells it; the last one may reach past the end of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawExtent {
    /// Byte offset in the file.
    pub logical: u64,
    /// Byte offset in the file system; means nothing with some flags.
    pub physical: u64,
    /// Bytes.
    pub len: u64,
    /// Raw flags.
    pub flags: ExtentFlags,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; BATCH],
}

/// Flushes the file's dirty pages and tells `visit` every extent, in order, until it breaks off. Not atomic: hold a lease.
///
/// # Errors
/// `EOPNOTSUPP`: the file system has no FIEMAP. `InvalidData`: it answered nonsense.
pub fn visit_extents(file: &File, mut visit: impl FnMut(RawExtent) -> ControlFlow<()>) -> io::Result<()> {
    let mut request = Box::new(Fiemap {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: u32::try_from(BATCH).map_err(io::Error::other)?,
        reserved: 0,
        extents: [FiemapExtent::default(); BATCH],
    });
    loop {
        // SAFETY: the kernel writes the header and at most `extent_count` = BATCH extents behind it: exactly a Fiemap, all integers.
        unsafe { ioctl::with_argument(file, FS_IOC_FIEMAP, request.as_mut()) }?;
        let told = usize::try_from(request.mapped_extents).map_err(io::Error::other)?;
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "FIEMAP answered extents out of order");
        let extents = request.extents.get(..told).ok_or_else(nonsense)?;
        let mut next = request.start;
        let mut last = told == 0;
        for raw in extents {
            // The first one of an answer may begin before the start that was asked for: never with the starts used here.
            let end = raw.logical.checked_add(raw.length);
            let (true, Some(end)) = (raw.logical >= next && raw.length > 0, end) else {
                return Err(nonsense());
            };
            next = end;
            let extent = RawExtent {
                logical: raw.logical,
                physical: raw.physical,
                len: raw.length,
                flags: ExtentFlags(raw.flags),
            };
            last |= extent.flags.intersects(ExtentFlags::LAST);
            if visit(extent).is_break() {
                return Ok(());
            }
        }
        if last {
            return Ok(());
        }
        request.start = next;
        request.length = u64::MAX - next;
        request.mapped_extents = 0;
    }
}

/// [`visit_extents`], all of them at once.
///
/// # Errors
/// As [`visit_extents`].
pub fn extents(file: &File) -> io::Result<Vec<RawExtent>> {
    let mut all = Vec::new();
    visit_extents(file, |extent| {
        all.push(extent);
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<FiemapExtent>(), 56);
        assert_eq!(size_of::<Fiemap>(), 32 + 56 * BATCH);
        assert_eq!(std::mem::offset_of!(Fiemap, extents), 32);
        assert_eq!(FS_IOC_FIEMAP >> 16 & 0x3fff, 32);
    }
}
