//! Memory for direct reads, used again and again: fresh pages cost as much time as a good part of the read.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volmap::storage::AlignedBuffer;

use super::limits::{KEPT_MEMORY, KEPT_SMALL_MEMORY, POOLED_LEN, SMALL_LEN};

/// Buffers of one length that nobody uses at the moment.
#[derive(Clone, Debug)]
struct Kept {
    buffers: Arc<Mutex<Vec<AlignedBuffer>>>,
    /// Bytes of each.
    len: usize,
    /// Bytes of all.
    most: usize,
}

impl Kept {
    fn new(len: usize, most: usize) -> Self {
        Self {
            buffers: Arc::default(),
            len,
            most,
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<AlignedBuffer>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> AlignedBuffer {
        let kept = self.buffers().pop();
        kept.unwrap_or_else(|| AlignedBuffer::zeroed(self.len))
    }

    fn give_back(&self, buffer: AlignedBuffer) {
        let mut kept = self.buffers();
        if (kept.len() + 1) * self.len <= self.most {
            kept.push(buffer);
        }
    }
}

/// Buffers that nobody uses at the moment: a few blocks would hold the memory of a long read for as long as they are kept.
#[derive(Clone, Debug)]
pub(super) struct MemoryPool {
    short: Kept,
    long: Kept,
}

impl Default for MemoryPool {
    fn default() -> Self {
        Self {
            short: Kept::new(SMALL_LEN, KEPT_SMALL_MEMORY),
            long: Kept::new(POOLED_LEN, KEPT_MEMORY),
        }
    }
}

impl MemoryPool {
    /// Memory of at least `len` bytes, with anything in it.
    pub(super) fn take(&self, len: usize) -> Memory {
        let pool = [&self.short, &self.long].into_iter().find(|kept| len <= kept.len);
        Memory {
            buffer: Some(pool.map_or_else(|| AlignedBuffer::zeroed(len), Kept::take)),
            pool: pool.cloned(),
        }
    }
}

/// Aligned memory that goes back to where it came from.
#[derive(Debug)]
pub struct Memory {
    /// Taken by the drop alone.
    buffer: Option<AlignedBuffer>,
    pool: Option<Kept>,
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (Some(buffer), Some(pool)) = (self.buffer.take(), &self.pool) {
            pool.give_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_what_is_kept_is_bounded() {
        let pool = MemoryPool::default();
        for (len, kept) in [(POOLED_LEN, &pool.long), (SMALL_LEN, &pool.short)] {
            let first = pool.take(len);
            let address = first.as_ptr();
            drop(first);
            let again = pool.take(len - 1);
            assert_eq!((again.as_ptr(), again.len()), (address, len));
            drop(again);
            let many: Vec<Memory> = (0..2 * kept.most / len).map(|_| pool.take(len)).collect();
            drop(many);
            assert_eq!(kept.buffers().len(), kept.most / len);
        }
    }

    /// What is kept of a short read must not hold the memory of a long one, and what is longer than any is kept nowhere.
    #[test]
    fn short_and_long_reads_have_memory_of_their_own() {
        let pool = MemoryPool::default();
        assert_eq!(pool.take(1).len(), SMALL_LEN);
        assert_eq!(pool.take(SMALL_LEN + 1).len(), POOLED_LEN);
        let longer = pool.take(POOLED_LEN + 1);
        assert_eq!(longer.len(), POOLED_LEN + 1);
        drop(longer);
        assert_eq!((pool.short.buffers().len(), pool.long.buffers().len()), (1, 1));
    }
}
