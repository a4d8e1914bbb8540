//! Memory that is fit for `O_DIRECT`.

use std::ops::{Deref, DerefMut};

/// Alignment of memory, offsets and lengths: the largest logical block size of Linux disks.
pub const ALIGNMENT: usize = 4096;

/// Bytes that begin at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        for len in [0, 1, 512, ALIGNMENT, ALIGNMENT + 1, 1 << 20] {
            let mut buffer = AlignedBuffer::zeroed(len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
            assert!(buffer.len() == len && buffer.iter().all(|&b| b == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|&b| b == 7));
        }
    }
}
