//! Memory that is fit for `O_DIRECT`.

use std::ops::{Deref, DerefMut};

/// Alignment of memory, offsets and lengths: the largest logical block size of Linux disks.
pub(crate) const ALIGNMENT: usize = 4096;

/// Zeroed bytes that begin at a multiple of [`ALIGNMENT`].
pub(crate) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    pub(crate) fn zeroed(len: usize) -> Self {
        let storage = vec![0; len + ALIGNMENT];
        // A Vec that is never pushed to does not move.
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        assert!(start <= ALIGNMENT, "bytes can be aligned to any power of two");
        Self { storage, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}
/// Whether `data` may go to an `O_DIRECT` file at `offset` as it is.
pub(crate) fn is_aligned(offset: u64, data: &[u8]) -> bool {
    offset.is_multiple_of(ALIGNMENT as u64)
        && data.len().is_multiple_of(ALIGNMENT)
        && data.as_ptr().addr().is_multiple_of(ALIGNMENT)
}
