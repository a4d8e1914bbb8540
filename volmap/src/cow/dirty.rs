//! Units that were written to, a bit each.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cow::unit::Unit;

/// Words that are allocated together, once one of their units is written: 4 KiB, for 2 GiB of volume in units of 64 KiB.
const CHUNK_WORDS: usize = 512;
const WORD_UNITS: u64 = u64::BITS as u64;

type Chunk = OnceLock<Box<[AtomicU64]>>;

/// The bits. Any number of threads may mark at once; nothing is ever unmarked.
pub(super) struct DirtyBits {
    words: usize,
    chunks: Box<[Chunk]>,
}

impl DirtyBits {
    /// Nothing of `units` is written.
    pub(super) fn new(units: u64) -> Self {
        let words = usize::try_from(units.div_ceil(WORD_UNITS)).expect("units can be counted");
        let chunks = words.div_ceil(CHUNK_WORDS);
        Self {
            words,
            chunks: std::iter::repeat_with(Chunk::new).take(chunks).collect(),
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let chunk = self.chunks[index / CHUNK_WORDS].get_or_init(|| {
            std::iter::repeat_with(AtomicU64::default)
                .take(CHUNK_WORDS)
                .collect()
        });
        &chunk[index % CHUNK_WORDS]
    }

    /// Marks consecutive units.
    pub(super) fn mark(&self, units: Range<Unit>) {
        let mut at = units.start;
        while at < units.end {
            let (word, bit) = (at / WORD_UNITS, at % WORD_UNITS);
            let count = (units.end - at).min(WORD_UNITS - bit);
            let bits = (u64::MAX >> (WORD_UNITS - count)) << bit;
            let word = self.word(usize::try_from(word).expect("a unit that was counted"));
            // Most writes find their unit marked, and leave the cache line to others. The gate orders marks and readers.
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Relaxed);
            }
            at += count;
        }
    }

    /// Adds what is marked to plain words.
    pub(super) fn add_to(&self, words: &mut [u64]) {
        for (chunk, words) in self.chunks.iter().zip(words.chunks_mut(CHUNK_WORDS)) {
            let Some(marked) = chunk.get() else { continue };
            for (word, marked) in words.iter_mut().zip(marked) {
                *word |= marked.load(Ordering::Relaxed);
            }
        }
    }

    /// Adds what `other` has marked, of the same volume.
    pub(super) fn add(&self, other: &Self) {
        for (index, chunk) in other.chunks.iter().enumerate() {
            let Some(marked) = chunk.get() else { continue };
            for (nth, marked) in marked.iter().enumerate() {
                let bits = marked.load(Ordering::Relaxed);
                if bits != 0 {
                    self.word(index * CHUNK_WORDS + nth)
                        .fetch_or(bits, Ordering::Relaxed);
                }
            }
        }
    }

    /// Plain words for all units, nothing marked.
    pub(super) fn no_words(&self) -> Vec<u64> {
        vec![0; self.words]
    }

    /// Bytes of memory that the bits take.
    #[cfg(test)]
    fn allocated(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.get().is_some()).count() * CHUNK_WORDS * 8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marked(bits: &DirtyBits, units: u64) -> Vec<Unit> {
        let mut words = bits.no_words();
        bits.add_to(&mut words);
        (0..units)
            .filter(|unit| words[(unit / 64) as usize] >> (unit % 64) & 1 == 1)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn exactly_what_was_marked_is(units in 1u64..70_000, ranges in proptest::collection::vec((any::<u64>(), 0u64..400), 0..20)) {
            let ranges: Vec<_> = ranges.iter().map(|&(at, len)| {
                let start = at % units;
                start..(start + len).min(units)
            }).collect();
            let (whole, first, second) = (DirtyBits::new(units), DirtyBits::new(units), DirtyBits::new(units));
            for (nth, range) in ranges.iter().enumerate() {
                whole.mark(range.clone());
                if nth % 2 == 0 { &first } else { &second }.mark(range.clone());
            }
            let mut expected: Vec<Unit> = ranges.into_iter().flatten().collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(&marked(&whole, units), &expected);
            first.add(&second);
            prop_assert_eq!(&marked(&first, units), &expected);
        }
    }

    #[test]
    fn memory_is_a_bit_a_unit_at_most_and_taken_where_something_is_written() {
        // 1 TiB in units of 64 KiB.
        let units = 1 << 24;
        let bits = DirtyBits::new(units);
        assert_eq!(bits.allocated(), 0);
        bits.mark(units - 1..units);
        assert_eq!(bits.allocated(), 4096);
        bits.mark(0..units);
        assert_eq!(bits.allocated(), 2 << 20);
    }
}
