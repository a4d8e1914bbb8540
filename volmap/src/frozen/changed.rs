//! What changed of a volume between two of its frozen images.

use crate::limits::{CHANGED_PIECE_MIN, CHANGED_PIECES_MAX};
use crate::range::ByteRange;

const WORD_BITS: u64 = u64::BITS as u64;

/// Bytes of a piece: what most file systems count in, or as much as keeps the bits of a volume below [`CHANGED_PIECES_MAX`].
fn granule(size: u64) -> u64 {
    let least = size.div_ceil(CHANGED_PIECES_MAX).max(CHANGED_PIECE_MIN);
    least.checked_next_power_of_two().unwrap_or(size)
}

/// Why it is not known what changed between two frozen images.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoLineage {
    /// Its provider cannot tell at all.
    #[error("frozen images by {0} do not tell what changed")]
    NotTold(&'static str),
    /// Their contents have nothing to do with each other, as far as the provider knows.
    #[error("the older frozen image is of another volume, or was frozen in another way")]
    Unrelated,
    /// Not all writes between the two are remembered.
    #[error("what was written since the older frozen image is not known any more")]
    Forgotten,
    /// The older one cannot be relied upon any more.
    #[error("the older frozen image is not what it was: {0}")]
    Older(String),
    /// The same of the newer one.
    #[error("the newer frozen image is not what it was: {0}")]
    Newer(String),
    /// The two could not be looked at.
    #[error("they cannot be compared: {0}")]
    Unreadable(String),
    /// It was waited for something that would let them be compared, for as long as is waited for that.
    #[error("they cannot be compared now: {0}")]
    NotNow(String),
}

/// For every piece of a volume whether it may differ between an older frozen image and a newer one: what is not changed is
/// certainly the same, byte for byte. A piece that was written to counts as changed, whatever was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangedMap {
    size: u64,
    granule: u64,
    words: Vec<u64>,
}

impl ChangedMap {
    /// A bit for each piece of `granule` bytes, the lowest of the first word for the first piece.
    ///
    /// # Panics
    /// There are not as many bits as pieces: a mistake of the caller.
    pub(crate) fn new(size: u64, granule: u64, words: Vec<u64>) -> Self {
        let bits = words.len() as u64 * WORD_BITS;
        assert!(bits >= size.div_ceil(granule), "a bit for every piece");
        Self { size, granule, words }
    }

    /// Of a volume of `size` bytes of which only `same` is known to be the same: ranges in rising order, none of which overlaps the next.
    /// A piece counts as the same if all of it lies in them.
    pub fn all_but(size: u64, same: impl IntoIterator<Item = ByteRange>) -> Self {
        let granule = granule(size);
        let words = size.div_ceil(granule).div_ceil(WORD_BITS);
        let words = usize::try_from(words).expect("pieces were made so large that they can be counted");
        let mut map = Self::new(size, granule, vec![u64::MAX; words]);
        let mut run: Option<ByteRange> = None;
        for next in same {
            run = match run {
                Some(last) if last.end() == next.start() => ByteRange::from_bounds(last.start(), next.end()),
                other => {
                    map.clear(other);
                    Some(next)
                }
            };
        }
        map.clear(run);
        map
    }

    /// The pieces that lie in `same`.
    fn clear(&mut self, same: Option<ByteRange>) {
        let Some(same) = same else { return };
        let first = same.start().div_ceil(self.granule);
        // The last piece ends with the volume.
        let end = match same.end() >= self.size {
            true => self.size.div_ceil(self.granule),
            false => same.end() / self.granule,
        };
        let mut piece = first;
        while piece < end {
            let (word, bit) = (piece / WORD_BITS, piece % WORD_BITS);
            let count = (end - piece).min(WORD_BITS - bit);
            let word = usize::try_from(word).ok();
            if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
                *word &= !((u64::MAX >> (WORD_BITS - count)) << bit);
            }
            piece += count;
        }
    }

    /// Every piece that has a part in `changed` has changed.
    pub(crate) fn mark(&mut self, changed: ByteRange) {
        let pieces = self.size.div_ceil(self.granule);
        let mut piece = changed.start() / self.granule;
        let end = changed.end().div_ceil(self.granule).min(pieces);
        while piece < end {
            let (word, bit) = (piece / WORD_BITS, piece % WORD_BITS);
            let count = (end - piece).min(WORD_BITS - bit);
            let word = usize::try_from(word).ok();
            if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
                *word |= (u64::MAX >> (WORD_BITS - count)) << bit;
            }
            piece += count;
        }
    }

    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a piece, as a whole changed or not.
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Whether the byte at `offset`, within the size, may have changed.
    pub fn is_changed(&self, offset: u64) -> bool {
        self.bit(offset / self.granule)
    }

    fn bit(&self, piece: u64) -> bool {
        let word = usize::try_from(piece / WORD_BITS)
            .ok()
            .and_then(|word| self.words.get(word));
        // What no bit tells of is not known to be the same.
        word.is_none_or(|word| word >> (piece % WORD_BITS) & 1 == 1)
    }

    /// How many pieces from this one on are certainly as it is: 1, or all of a word.
    fn alike(&self, piece: u64) -> u64 {
        let word = usize::try_from(piece / WORD_BITS).ok();
        match word.and_then(|word| self.words.get(word)) {
            Some(0 | &u64::MAX) if piece.is_multiple_of(WORD_BITS) => WORD_BITS,
            _ => 1,
        }
    }

    /// `range` in order and without gaps, each part with whether it may have changed; neighbours differ.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, bool)> {
        let mut at = range.start();
        std::iter::from_fn(move || {
            if at >= range.end() {
                return None;
            }
            let changed = self.is_changed(at);
            let pieces = range.end().div_ceil(self.granule);
            let mut piece = at / self.granule + 1;
            while piece < pieces && self.bit(piece) == changed {
                piece += self.alike(piece);
            }
            let end = piece.saturating_mul(self.granule).min(range.end());
            let part = ByteRange::from_bounds(at, end)?;
            at = end;
            Some((part, changed))
        })
    }

    /// Bytes that may have changed.
    pub fn changed_bytes(&self) -> u64 {
        let whole = ByteRange::new(0, self.size);
        let parts = whole.into_iter().flat_map(|whole| self.within(whole));
        parts
            .filter(|(_, changed)| *changed)
            .map(|(part, _)| part.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_cover_a_range_once_and_tell_what_the_bits_say(
            size in 1u64..20_000,
            granule in prop_oneof![Just(1u64), Just(7), Just(64), Just(4096)],
            seed in proptest::collection::vec(any::<u64>(), 320),
            from in 0u64..20_000,
            len in 1u64..20_000,
        ) {
            let bits = usize::try_from(size.div_ceil(granule).div_ceil(64)).unwrap();
            let map = ChangedMap::new(size, granule, seed.iter().map(|word| word & word.rotate_left(9)).take(bits).collect());
            let start = from % size;
            let range = ByteRange::from_bounds(start, size.min(start + len)).unwrap();
            let mut at = range.start();
            let mut before = None;
            for (part, changed) in map.within(range) {
                prop_assert_eq!(part.start(), at);
                prop_assert_ne!(before, Some(changed));
                for offset in part.start()..part.end() {
                    prop_assert_eq!(map.is_changed(offset), changed);
                }
                at = part.end();
                before = Some(changed);
            }
            prop_assert_eq!(at, range.end());
            let counted = (0..size).filter(|&offset| map.is_changed(offset)).count() as u64;
            prop_assert_eq!(map.changed_bytes(), counted);
        }
    }

    proptest! {
        #[test]
        fn only_pieces_of_which_all_is_the_same_are(
            size in 1u64..300_000,
            cuts in proptest::collection::vec((0u64..30_000, 1u64..40_000), 0..12),
        ) {
            let mut at = 0;
            let mut same = Vec::new();
            for (gap, len) in cuts {
                // Many follow each other without a gap.
                let start = at + gap / 3 * u64::from(gap > 9_000);
                let Some(range) = ByteRange::from_bounds(start.min(size), (start + len).min(size)) else { break };
                same.push(range);
                at = range.end();
            }
            let map = ChangedMap::all_but(size, same.clone());
            prop_assert_eq!((map.size(), map.granule()), (size, CHANGED_PIECE_MIN));
            for start in (0..size).step_by(4096) {
                let piece = ByteRange::from_bounds(start, size.min(start + 4096)).unwrap();
                let parts = same.iter().filter_map(|range| range.intersection(piece));
                let known: u64 = parts.map(ByteRange::len).sum();
                prop_assert_eq!(map.is_changed(start), known < piece.len());
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_marked_has_changed_and_nothing_else(
            size in 1u64..2_000_000,
            marks in proptest::collection::vec((0u64..2_000_000, 1u64..600_000), 0..6),
        ) {
            let mut map = ChangedMap::all_but(size, ByteRange::new(0, size));
            let marks: Vec<_> = marks.into_iter().filter_map(|(start, len)| {
                ByteRange::from_bounds(start.min(size), (start + len).min(size))
            }).collect();
            for &mark in &marks {
                map.mark(mark);
            }
            for start in (0..size).step_by(4096) {
                let piece = ByteRange::from_bounds(start, size.min(start + 4096)).unwrap();
                let marked = marks.iter().any(|mark| mark.intersection(piece).is_some());
                prop_assert_eq!(map.is_changed(start), marked);
            }
        }
    }

    #[test]
    fn a_volume_of_any_size_takes_no_more_than_so_many_bits() {
        let largest = CHANGED_PIECES_MAX * CHANGED_PIECE_MIN;
        for (size, piece) in [
            (1, CHANGED_PIECE_MIN),
            (largest, CHANGED_PIECE_MIN),
            (largest + 1, 2 * CHANGED_PIECE_MIN),
            (16 << 40, 64 << 10),
            (u64::MAX / 2, 1 << 35),
        ] {
            assert_eq!(granule(size), piece, "{size}");
            assert!(size.div_ceil(granule(size)) <= CHANGED_PIECES_MAX);
        }
    }

    #[test]
    #[should_panic(expected = "a bit for every piece")]
    fn bits_that_do_not_suffice_are_refused() {
        ChangedMap::new(65, 1, vec![0]);
    }
}
