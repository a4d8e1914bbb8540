//! Memory that is fit for `O_DIRECT`.

use std::ops::{Deref, DerefMut};

use bytes::{Buf, BytesMut};

use crate::sys::heap::{HUGE_PAGE, prefer_huge_pages};

/// Alignment of memory, offsets and lengths: the largest logical block size of Linux disks.
pub const ALIGNMENT: usize = 4096;

/// Bytes that begin at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub struct AlignedBuffer(BytesMut);

impl AlignedBuffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self(aligned(len, ALIGNMENT))
    }

    /// `count` buffers of `len` zero bytes each, side by side in huge pages where the system has them: for memory that is used again and
    /// again. A disk is told of every run of memory in a read, and each page of the usual kind is one; telling it of 256 of them for 1 MiB
    /// halves the speed of some disks. The memory is given back when all of them have been dropped.
    pub fn side_by_side(count: usize, len: usize) -> Vec<Self> {
        let step = len.next_multiple_of(ALIGNMENT);
        let mut rest = aligned(count * step, HUGE_PAGE);
        prefer_huge_pages(&mut rest);
        let one = |_| {
            let mut buffer = rest.split_to(step);
            buffer.truncate(len);
            Self(buffer)
        };
        (0..count).map(one).collect()
    }
}

/// `len` zero bytes that begin at a multiple of `alignment`.
fn aligned(len: usize, alignment: usize) -> BytesMut {
    let mut bytes = BytesMut::zeroed(len + alignment);
    // What has its full length does not grow, and so does not move.
    bytes.advance(bytes.as_ptr().align_offset(alignment));
    bytes.truncate(len);
    bytes
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
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

    #[test]
    fn buffers_side_by_side_are_apart() {
        for len in [1, 512, ALIGNMENT, (1 << 20) + ALIGNMENT] {
            let mut buffers = AlignedBuffer::side_by_side(5, len);
            assert_eq!(buffers[0].as_ptr().align_offset(HUGE_PAGE), 0);
            for (value, buffer) in (1..).zip(&mut buffers) {
                assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
                assert!(buffer.len() == len && buffer.iter().all(|&b| b == 0));
                buffer.fill(value);
            }
            // One outlives the others.
            let last = buffers.pop().unwrap();
            for (value, buffer) in (1..).zip(&buffers) {
                assert!(buffer.iter().all(|&b| b == value));
            }
            drop(buffers);
            assert!(last.iter().all(|&b| b == 5));
        }
    }
}
