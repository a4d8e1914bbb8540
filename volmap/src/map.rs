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
pub struct ContentMap(Runs<Content>);

impl ContentMap {
    /// A map of `size` bytes of one content.
    pub fn uniform(size: u64, content: Content) -> Self {
        let mut runs = Runs::default();
        runs.push(size, content);
        Self(runs)
    }

    /// A total map from sorted, disjoint extents: clipped at `size`, with holes in the gaps, neighbours joined.
    ///
    /// # Panics
    /// The extents are not sorted and disjoint: a mistake of the caller.
    pub fn from_extents(size: u64, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut runs = Runs::default();
        for extent in extents {
            let covered = runs.end();
            assert!(
                covered <= extent.range.start() || covered >= size,
                "extents are sorted and disjoint"
            );
            runs.push(extent.range.start().min(size), Content::Hole);
            runs.push(extent.range.end().min(size), extent.content);
        }
        runs.push(size, Content::Hole);
        Self::from_runs(runs)
    }

    /// A map of these.
    pub(crate) fn from_runs(mut runs: Runs<Content>) -> Self {
        runs.shrink();
        Self(runs)
    }

    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.0.end()
    }

    /// All extents in order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        self.0.all().map(Extent::from)
    }

    /// The extents that touch `range`, clipped to it.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = Extent> {
        self.0.within(range).map(Extent::from)
    }

    /// Whether all of `range` reads as zeroes.
    pub fn is_zero(&self, range: ByteRange) -> bool {
        self.within(range).all(|e| e.content != Content::Data)
    }
}

impl From<(ByteRange, Content)> for Extent {
    fn from((range, content): (ByteRange, Content)) -> Self {
        Self { range, content }
    }
}

/// Runs that follow each other from 0 on, neighbours of different kinds. One takes 8 bytes beside its kind: there may be
/// millions of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Runs<K> {
    ends: Vec<u64>,
    kinds: Vec<K>,
}

impl<K> Default for Runs<K> {
    fn default() -> Self {
        Self {
            ends: Vec::new(),
            kinds: Vec::new(),
        }
    }
}

impl<K: Copy + PartialEq> Runs<K> {
    /// Where the last run ends.
    pub(crate) fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Appends what goes on to `end`; nothing, if that is covered already.
    pub(crate) fn push(&mut self, end: u64, kind: K) {
        if end <= self.end() {
            return;
        }
        match self.ends.last_mut() {
            Some(last) if self.kinds.last() == Some(&kind) => *last = end,
            _ => {
                self.ends.push(end);
                self.kinds.push(kind);
            }
        }
    }

    /// Gives back memory that was taken for more runs.
    pub(crate) fn shrink(&mut self) {
        self.ends.shrink_to_fit();
        self.kinds.shrink_to_fit();
    }

    /// All runs in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ByteRange, K)> {
        self.from(0)
    }

    fn from(&self, first: usize) -> impl Iterator<Item = (ByteRange, K)> {
        let start = first.checked_sub(1).map_or(0, |before| self.ends[before]);
        let ends = self.ends[first..].iter();
        (ends.zip(&self.kinds[first..])).scan(start, |start, (&end, &kind)| {
            let range = ByteRange::from_bounds(*start, end)?;
            *start = end;
            Some((range, kind))
        })
    }

    /// The runs that touch `range`, clipped to it.
    pub(crate) fn within(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, K)> {
        let first = self.ends.partition_point(|&end| end <= range.start());
        self.from(first)
            .map_while(move |(run, kind)| Some((run.intersection(range)?, kind)))
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
        assert_eq!(ContentMap::uniform(0, Content::Data).extents().count(), 0);
        let clipped = ContentMap::from_extents(0, [extent(0, 4096, Content::Data)]);
        assert_eq!(clipped.extents().count(), 0);
    }

    #[test]
    fn the_last_extent_is_clipped_at_the_end_of_the_volume() {
        let map = ContentMap::from_extents(4097, [extent(0, 8192, Content::Data)]);
        let extents: Vec<Extent> = map.extents().collect();
        assert_eq!(extents, [extent(0, 4097, Content::Data)]);
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
            let all: Vec<Extent> = map.extents().collect();
            for pair in all.windows(2) {
                prop_assert_ne!(pair[0].content, pair[1].content);
            }
            for e in &all {
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
