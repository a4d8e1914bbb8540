//! A set of bytes, as ranges.

use std::collections::BTreeMap;

use volmap::range::ByteRange;

/// Ranges that neither touch nor overlap, by their start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds the bytes of a range.
    pub(super) fn insert(&mut self, range: ByteRange) {
        let (mut start, mut end) = (range.start(), range.end());
        // The last that begins at or before the end, as long as it reaches the start.
        while let Some((&at, &until)) = self.0.range(..=end).next_back()
            && until >= start
        {
            self.0.remove(&at);
            (start, end) = (start.min(at), end.max(until));
        }
        self.0.insert(start, end);
    }

    /// Adds the bytes of another set.
    pub(super) fn extend(&mut self, other: Self) {
        other
            .into_ranges()
            .into_iter()
            .for_each(|range| self.insert(range));
    }

    /// The ranges in order.
    pub(super) fn into_ranges(self) -> Vec<ByteRange> {
        self.0
            .into_iter()
            .filter_map(|(start, end)| ByteRange::from_bounds(start, end))
            .collect()
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the volumes of these tests are small"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_was_inserted_and_no_more(ranges in proptest::collection::vec((0u64..200, 1u64..40), 0..30)) {
            let mut set = RangeSet::default();
            let mut bytes = [false; 240];
            for (start, len) in ranges {
                set.insert(ByteRange::new(start, len).unwrap());
                bytes[start as usize..(start + len) as usize].fill(true);
            }
            let mut found = [false; 240];
            let mut last = None;
            for range in set.into_ranges() {
                prop_assert!(last.is_none_or(|end| end < range.start()), "joined and in order");
                last = Some(range.end());
                found[range.start() as usize..range.end() as usize].fill(true);
            }
            prop_assert_eq!(bytes, found);
        }
    }
}
