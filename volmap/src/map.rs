//! What a frozen image holds, for every byte of it.

use crate::range::ByteRange;

/// What an extent of a frozen image holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    /// Bytes that have to be read.
    Data,
    /// Allocated, and reads as zeroes (preallocated, unwritten).
    Zero,
    /// Not allocated, and reads as zeroes.
    Hole,
}

/// A piece of a [`ContentMap`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The bytes of the volume.
    pub range: ByteRange,
    /// What they hold.
    pub content: Content,
}

/// A total map: extents that cover `0..size` once, in order, neighbours of different content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentMap {
    size: u64,
    extents: Vec<Extent>,
}

impl ContentMap {
    /// A map of `size` bytes of one content.
    pub fn uniform(size: u64, content: Content) -> Self {
        let extents = ByteRange::new(0, size)
            .map(|range| Extent { range, content })
            .into_iter()
            .collect();
        Self { size, extents }
    }

    /// A total map from sorted, disjoint extents: clipped at `size`, with holes in the gaps, neighbours joined.
    ///
    /// # Panics
    /// The extents are not sorted and disjoint: a mistake of the caller.
    pub fn from_extents(size: u64, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut map = Self {
            size,
            extents: Vec::new(),
        };
        let mut covered = 0;
        for extent in extents {
            assert!(
                covered <= extent.range.start() || covered >= size,
                "extents are sorted and disjoint"
            );
            map.append(covered, extent.range.start().min(size), Content::Hole);
            map.append(extent.range.start(), extent.range.end().min(size), extent.content);
            covered = extent.range.end().min(size);
        }
        map.append(covered, size, Content::Hole);
        map
    }

    fn append(&mut self, start: u64, end: u64, content: Content) {
        let Some(mut range) = ByteRange::from_bounds(start, end) else {
            return;
        };
        if let Some(last) = self.extents.last_mut()
            && last.content == content
            && last.range.end() == start
            && let Some(joined) = ByteRange::from_bounds(last.range.start(), end)
        {
            range = joined;
            self.extents.pop();
        }
        self.extents.push(Extent { range, content });
    }

    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All extents in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extents that touch `range`, clipped to it.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = Extent> {
        let first = self.extents.partition_point(|e| e.range.end() <= range.start());
        self.extents[first..].iter().map_while(move |e| {
            e.range.intersection(range).map(|clipped| Extent {
                range: clipped,
                content: e.content,
            })
        })
    }

    /// Whether all of `range` reads as zeroes.
    pub fn is_zero(&self, range: ByteRange) -> bool {
        self.within(range).all(|e| e.content != Content::Data)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(start: u64, len: u64, content: Content) -> Extent {
        Extent {
            range: ByteRange::new(start, len).unwrap(),
            content,
        }
    }

    #[test]
    fn an_empty_volume_has_no_extents() {
        assert!(ContentMap::uniform(0, Content::Data).extents().is_empty());
        assert!(
            ContentMap::from_extents(0, [extent(0, 4096, Content::Data)])
                .extents()
                .is_empty()
        );
    }

    #[test]
    fn the_last_extent_is_clipped_at_the_end_of_the_volume() {
        let map = ContentMap::from_extents(4097, [extent(0, 8192, Content::Data)]);
        assert_eq!(map.extents(), [extent(0, 4097, Content::Data)]);
    }

    fn contents() -> impl Strategy<Value = Content> {
        prop_oneof![Just(Content::Data), Just(Content::Zero), Just(Content::Hole)]
    }

    proptest! {
        #[test]
        fn map_is_total(size in 0u64..5000, pieces in proptest::collection::vec((0u64..60, 1u64..90, contents()), 0..60)) {
            let mut at = 0;
            let extents: Vec<Extent> = pieces.iter().map(|&(gap, len, content)| {
                let e = extent(at + gap, len, content);
                at = e.range.end();
                e
            }).collect();
            let map = ContentMap::from_extents(size, extents.clone());

            let mut end = 0;
            for pair in map.extents().windows(2) {
                prop_assert_ne!(pair[0].content, pair[1].content);
            }
            for e in map.extents() {
                prop_assert_eq!(e.range.start(), end);
                end = e.range.end();
            }
            prop_assert_eq!(end, size);
            for offset in (0..size).step_by(7) {
                let expected = extents.iter().find(|e| e.range.contains(offset)).map_or(Content::Hole, |e| e.content);
                let byte = ByteRange::new(offset, 1).unwrap();
                let found: Vec<_> = map.within(byte).collect();
                prop_assert_eq!(found, vec![Extent { range: byte, content: expected }]);
            }
        }
    }
}
