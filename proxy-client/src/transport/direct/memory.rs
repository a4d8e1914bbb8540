//! Memory for direct reads, used again and again: fresh pages cost as much time as a good part of the read.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volmap::storage::AlignedBuffer;

use super::limits::{POOLED_LEN, SLAB_LEN, SMALL_LEN};

/// Buffers side by side, those that nobody uses at the moment.
#[derive(Debug)]
struct Slab {
    number: u64,
    free: Vec<AlignedBuffer>,
}

/// Buffers of one length.
#[derive(Debug, Default)]
struct Slabs {
    slabs: Vec<Slab>,
    made: u64,
}

/// Buffers of one length, whose memory comes and goes by slabs.
#[derive(Clone, Debug)]
struct Kept {
    slabs: Arc<Mutex<Slabs>>,
    /// Bytes of each.
    len: usize,
}

impl Kept {
    fn new(len: usize) -> Self {
        Self {
            slabs: Arc::default(),
            len,
        }
    }

    /// Buffers of a slab.
    fn side_by_side(&self) -> usize {
        SLAB_LEN.div_ceil(self.len)
    }

    fn slabs(&self) -> MutexGuard<'_, Slabs> {
        self.slabs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer, and the number of its slab: the first that has one, so that the last ones are emptied.
    fn take(&self) -> (AlignedBuffer, u64) {
        let mut all = self.slabs();
        if let Some((slab, buffer)) = all
            .slabs
            .iter_mut()
            .find_map(|slab| slab.free.pop().map(|buffer| (slab.number, buffer)))
        {
            return (buffer, slab);
        }
        all.made += 1;
        let number = all.made;
        let mut free = AlignedBuffer::side_by_side(self.side_by_side(), self.len);
        let buffer = free.pop().expect("a slab has buffers");
        all.slabs.push(Slab { number, free });
        (buffer, number)
    }

    /// A slab that nobody uses is kept only if all others are in use.
    fn give_back(&self, buffer: AlignedBuffer, slab: u64) {
        let mut all = self.slabs();
        if let Some(slab) = all.slabs.iter_mut().find(|found| found.number == slab) {
            slab.free.push(buffer);
        }
        let mut unused = 0;
        all.slabs.retain(|slab| {
            let is_unused = slab.free.len() == self.side_by_side();
            unused += usize::from(is_unused);
            !is_unused || unused == 1
        });
    }
}

/// Buffers that nobody uses at the moment: a few blocks would hold the memory of a long read for as long as they are kept.
#[derive(Clone, Debug)]
pub struct MemoryPool {
    short: Kept,
    long: Kept,
}

impl Default for MemoryPool {
    fn default() -> Self {
        Self {
            short: Kept::new(SMALL_LEN),
            long: Kept::new(POOLED_LEN),
        }
    }
}

impl MemoryPool {
    /// Memory of at least `len` bytes, with anything in it.
    pub fn take(&self, len: usize) -> Memory {
        let Some(pool) = [&self.short, &self.long].into_iter().find(|kept| len <= kept.len) else {
            return Memory {
                buffer: Some(AlignedBuffer::zeroed(len)),
                from: None,
            };
        };
        let (buffer, slab) = pool.take();
        Memory {
            buffer: Some(buffer),
            from: Some((pool.clone(), slab)),
        }
    }
}

/// Aligned memory that goes back to where it came from.
#[derive(Debug)]
pub struct Memory {
    /// Taken by the drop alone.
    buffer: Option<AlignedBuffer>,
    /// Its pool, and the number of its slab.
    from: Option<(Kept, u64)>,
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
        if let (Some(buffer), Some((pool, slab))) = (self.buffer.take(), &self.from) {
            pool.give_back(buffer, *slab);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_of(kept: &Kept) -> Vec<usize> {
        kept.slabs().slabs.iter().map(|slab| slab.free.len()).collect()
    }

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
            let count = kept.side_by_side();
            let mut many: Vec<Memory> = (0..5 * count / 2).map(|_| pool.take(len)).collect();
            assert_eq!(free_of(kept), [0, 0, count / 2]);
            // One in use keeps its slab; the first slabs are used first, and those that nobody uses go.
            let last = many.pop().unwrap();
            drop(many);
            assert_eq!(free_of(kept), [count, count - 1]);
            let one = pool.take(len);
            assert_eq!(free_of(kept), [count - 1, count - 1]);
            drop((last, one));
            assert_eq!(free_of(kept), [count]);
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
        assert_eq!(
            (free_of(&pool.short), free_of(&pool.long)),
            (vec![pool.short.side_by_side()], vec![pool.long.side_by_side()])
        );
    }
}
