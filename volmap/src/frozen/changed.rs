//! What changed of a volume between two of its frozen images.

use crate::range::ByteRange;

const WORD_BITS: u64 = u64::BITS as u64;

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

    /// `range` in order and without gaps, each part with whether it may have changed; neighbours differ.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, bool)> {
        let mut at = range.start();
        std::iter::from_fn(move || {
            if at >= range.end() {
                return None;
            }
            let changed = self.is_changed(at);
            let mut piece = at / self.granule + 1;
            while piece.saturating_mul(self.granule) < range.end() && self.bit(piece) == changed {
                piece += 1;
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

    #[test]
    #[should_panic(expected = "a bit for every piece")]
    fn bits_that_do_not_suffice_are_refused() {
        ChangedMap::new(65, 1, vec![0]);
    }
}
