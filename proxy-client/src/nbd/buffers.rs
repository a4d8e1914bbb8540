//! Memory for large replies, used again and again.
//!
//! The memory of a reply is taken when its header has come, not when it is asked for, and the last that was given back is
//! the first to be taken: what is in flight costs no memory, and what is received lands where the processor has it cached.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::limits::{KEPT_BUFFER_MAX, KEPT_BYTES};

/// Buffers that nobody uses at the moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct BufferPool(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// May be longer than what was asked for.
    memory: Vec<u8>,
    length: usize,
    pool: BufferPool,
}

impl BufferPool {
    /// A buffer of `length` bytes, with anything in it.
    pub(crate) fn take(&self, length: usize) -> Buffer {
        let mut memory = {
            let mut idle = self.lock();
            let memory = idle.buffers.pop().unwrap_or_default();
            idle.bytes -= memory.len();
            memory
        };
        if memory.len() < length {
            memory.resize(length, 0);
        }
        Buffer {
            memory,
            length,
            pool: self.clone(),
        }
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut idle = self.lock();
        if memory.len() <= KEPT_BUFFER_MAX && idle.bytes + memory.len() <= KEPT_BYTES {
            idle.bytes += memory.len();
            idle.buffers.push(memory);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        // Nothing panics while it is held; and a list of buffers is good in any state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// The bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }

    /// The bytes, to be shared; the last who drops them gives the memory back.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_came_back_is_the_first_to_go() {
        let pool = BufferPool::default();
        let address = |buffer: &Buffer| buffer.as_ref().as_ptr();
        let (first, second) = (pool.take(1000), pool.take(1000));
        let last = address(&first);
        drop(second);
        drop(first.freeze().slice(10..20));
        assert_eq!(address(&pool.take(900)), last);
        assert_eq!(pool.take(5000).as_ref().len(), 5000);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let pool = BufferPool::default();
        drop(pool.take(KEPT_BUFFER_MAX + 1));
        assert_eq!(pool.lock().bytes, 0);
        let many: Vec<_> = (0..=KEPT_BYTES / KEPT_BUFFER_MAX)
            .map(|_| pool.take(KEPT_BUFFER_MAX))
            .collect();
        drop(many);
        assert_eq!(pool.lock().bytes, KEPT_BYTES);
    }
}
