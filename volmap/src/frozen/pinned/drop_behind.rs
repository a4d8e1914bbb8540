//! A backup reads everything once, and does not push out of the page cache what the host's own programs have there: what was fetched
//! for it is given back behind it.
//!
//! By advice after the read, and not by reads that keep nothing (`RWF_DONTCACHE`, Linux 6.14): those take whole folios away, with what is
//! in them for the next read, and earlier kernels do not know them.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::{Mutex, PoisonError};

use crate::range::ByteRange;
use crate::sys::page_cache;

/// What is given back at a time, in bytes.
const CHUNK: u64 = 4 << 20;

/// Chunks that are kept for requests that are still to come: several connections do not read in order.
const KEPT: usize = 4;

/// Chunks that are looked at ahead of a read, before the kernel's own reading ahead has come to them.
const AHEAD: u64 = 3;

/// A chunk of which this part was there, in bytes, is one that somebody has use of.
const IN_USE: u64 = CHUNK / 8;

/// What was fetched for the readers of one file.
#[derive(Default)]
pub(super) struct DropBehind {
    chunks: Mutex<Chunks>,
}

#[derive(Default)]
struct Chunks {
    /// Those that were fetched; the one that was read last is at the end.
    kept: VecDeque<u64>,
    /// Those that were looked at before anything of them was read.
    seen: Set,
    /// Those that are left to the kernel: they were in use before anybody read them, or were given back. Who reads one again after
    /// that has use of the page cache.
    left: Set,
}

/// Numbers of chunks, a bit each, 64 to an entry.
#[derive(Default)]
struct Set(BTreeMap<u64, u64>);

impl DropBehind {
    /// That `range` is read through the page cache: to be called before it is.
    pub(super) fn read(&self, file: &File, range: ByteRange) {
        // Where nobody tells what was there, nothing is given back: it may be somebody's.
        let in_use = |chunk: u64| {
            page_cache::cached_bytes(file, chunk * CHUNK, CHUNK).map_or(true, |cached| cached >= IN_USE)
        };
        for chunk in range.start() / CHUNK..=(range.end() - 1) / CHUNK {
            if let Some(behind) = self.next_behind(chunk, in_use) {
                // It is advice: where it is not taken, nothing is wrong.
                let _ = page_cache::drop_clean(file, behind * CHUNK, CHUNK);
            }
        }
    }

    /// The chunk to give back when this one is read.
    fn next_behind(&self, chunk: u64, in_use: impl Fn(u64) -> bool) -> Option<u64> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.kept.back() == Some(&chunk) {
            return None;
        }
        for ahead in chunk..=chunk.saturating_add(AHEAD) {
            if !chunks.seen.has(ahead) {
                chunks.seen.add(ahead);
                if in_use(ahead) {
                    chunks.left.add(ahead);
                }
            }
        }
        if chunks.left.has(chunk) {
            return None;
        }
        if let Some(at) = chunks.kept.iter().position(|&kept| kept == chunk) {
            chunks.kept.remove(at);
        }
        chunks.kept.push_back(chunk);
        if chunks.kept.len() <= KEPT {
            return None;
        }
        let behind = chunks.kept.pop_front()?;
        chunks.left.add(behind);
        Some(behind)
    }
}

impl Set {
    fn has(&self, chunk: u64) -> bool {
        let bits = self.0.get(&(chunk / 64));
        bits.is_some_and(|bits| bits >> (chunk % 64) & 1 == 1)
    }

    fn add(&mut self, chunk: u64) {
        *self.0.entry(chunk / 64).or_default() |= 1 << (chunk % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given back as these are read, while these are in use.
    fn given_back(behind: &DropBehind, chunks: &[u64], in_use: &[u64]) -> Vec<u64> {
        let read = |&chunk: &u64| behind.next_behind(chunk, |chunk| in_use.contains(&chunk));
        chunks.iter().filter_map(read).collect()
    }

    const NONE: [u64; 0] = [];

    #[test]
    fn what_lies_behind_the_readers_is_given_back_once() {
        let behind = DropBehind::default();
        assert_eq!(given_back(&behind, &[0, 0, 1, 2, 3], &[]), NONE);
        // What is read still stays before what was read earlier.
        assert_eq!(given_back(&behind, &[0, 4, 100, 5], &[]), [1, 2, 3]);
        assert_eq!(given_back(&behind, &[1, 2, 3, 1, 2, 3], &[]), NONE, "once each");
        assert_eq!(given_back(&behind, &[6, 7, 64, 65], &[]), [0, 4, 100, 5]);
    }

    #[test]
    fn what_was_in_use_before_is_left_there() {
        let behind = DropBehind::default();
        assert_eq!(given_back(&behind, &[0, 1, 2, 3, 4, 5, 6], &[0, 2, 6]), NONE);
        assert_eq!(given_back(&behind, &[7], &[]), [1]);
    }

    #[test]
    fn what_was_read_ahead_is_nobody_elses() {
        let behind = DropBehind::default();
        assert_eq!(given_back(&behind, &[0], &[]), NONE);
        // The kernel has fetched these since.
        assert_eq!(given_back(&behind, &[1, 2, 3, 4], &[1, 2, 3]), [0]);
        assert_eq!(given_back(&behind, &[5, 6], &[]), [1, 2]);
    }
}
