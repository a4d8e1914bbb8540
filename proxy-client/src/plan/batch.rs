//! Batches: what is read, validated and encoded as one, on whole leaves and in volume order.

use std::collections::VecDeque;

use volmap::map::Content;
use volmap::range::ByteRange;

use super::mapped::{MappedExtent, join};

/// A run of leaves that are handled alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Whole leaves of the volume; the last leaf may be short.
    pub range: ByteRange,
    /// Whether no leaf of it holds data.
    pub zero: bool,
}

/// One piece of work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Whole leaves of the volume.
    pub range: ByteRange,
    /// What `range` holds, in order, exactly once, but for what is the same.
    pub extents: Vec<MappedExtent>,
    /// The same range as runs of leaves, in order, exactly once.
    pub stretches: Vec<Stretch>,
    /// Parts of `range` that are as in the parent image, in order: a stretch each, and no extents.
    pub same: Vec<ByteRange>,
    /// Whole blocks of its other leaves that are as in the parent image, in order: they are read with their leaves, for the leaf hashes, and
    /// not stored.
    pub same_blocks: Vec<ByteRange>,
}

impl Batch {
    /// Bytes of leaves with data.
    pub fn data(&self) -> u64 {
        let data = self.stretches.iter().filter(|stretch| !stretch.zero);
        data.map(|stretch| stretch.range.len()).sum()
    }

    /// Whole blocks in a range that are as in the parent image.
    pub fn same_blocks_in(&self, range: ByteRange, block: u64) -> impl Iterator<Item = ByteRange> {
        let first = self
            .same_blocks
            .partition_point(|same| same.end() <= range.start());
        let same = self.same_blocks[first..].iter();
        same.map_while(move |same| Some((same, same.intersection(range)?)))
            .filter_map(move |(same, part)| {
                // Where it is not cut, it ends on a block or with the volume.
                let end = match part.end() == same.end() {
                    true => part.end(),
                    false => part.end() - part.end() % block,
                };
                ByteRange::from_bounds(part.start().next_multiple_of(block), end)
            })
    }

    /// Appends `next`, which begins where `gap` ends; the gap is as in the parent image.
    ///
    /// # Panics
    /// The three do not lie one behind the other: our mistake.
    pub fn append(&mut self, gap: ByteRange, next: Self) {
        assert_eq!(self.range.end(), gap.start(), "a gap lies behind its batch");
        assert_eq!(gap.end(), next.range.start(), "a batch lies behind its gap");
        self.range = ByteRange::from_bounds(self.range.start(), next.range.end()).unwrap_or(next.range);
        self.extents.extend(next.extents);
        self.stretches.push(Stretch {
            range: gap,
            zero: true,
        });
        self.stretches.extend(next.stretches);
        self.same.push(gap);
        self.same.extend(next.same);
        self.same_blocks.extend(next.same_blocks);
    }
}

/// How large a batch may grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchLimits {
    /// Bytes of a leaf, a power of two.
    pub leaf: u64,
    /// Bytes of leaves with data, a multiple of `leaf`.
    pub data: u64,
    /// Extents.
    pub extents: usize,
    /// Bytes of the volume, holes included, a multiple of `leaf`: what is made of a batch in memory grows with it.
    pub range: u64,
}

/// Collects extents in volume order and gives them back as batches.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    size: u64,
    pending: VecDeque<MappedExtent>,
    /// Where the next extent has to begin.
    next: u64,
}

impl Batcher {
    /// A batcher for a volume of `size` bytes.
    pub fn new(size: u64, limits: BatchLimits) -> Self {
        Self::starting_at(0, size, limits)
    }

    /// A batcher for the rest of a volume of `size` bytes, from a leaf on.
    pub fn starting_at(start: u64, size: u64, limits: BatchLimits) -> Self {
        assert!(limits.leaf.is_power_of_two() && limits.data >= limits.leaf && limits.extents > 0);
        assert!(limits.range >= limits.leaf);
        assert!(start == size || start < size && start.is_multiple_of(limits.leaf));
        Self {
            limits,
            size,
            pending: VecDeque::new(),
            next: start,
        }
    }

    /// Where the last batch ends.
    pub fn end(&self) -> u64 {
        self.size
    }

    /// The first byte that no extent was given for yet.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Whether extents wait for a batch.
    pub fn holds_extents(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether every byte of the volume has been given.
    pub fn is_fed(&self) -> bool {
        self.next == self.size
    }

    /// Takes the extents that follow.
    ///
    /// # Panics
    /// They do not continue where the last ones ended, or pass the end of the volume: our mistake.
    pub fn feed(&mut self, extents: impl IntoIterator<Item = MappedExtent>) {
        for extent in extents {
            assert_eq!(extent.range.start(), self.next, "extents continue each other");
            assert!(extent.range.end() <= self.size, "extents end with the volume");
            self.next = extent.range.end();
            if !self.pending.back_mut().is_some_and(|last| join(last, &extent)) {
                self.pending.push_back(extent);
            }
        }
    }

    /// The next batch: a full one, or what is left when every byte has been given. `None`: more extents are needed, or the
    /// volume is done.
    pub fn take(&mut self) -> Option<Batch> {
        let start = self.pending.front()?.range.start();
        let known = if self.is_fed() {
            self.size
        } else {
            self.next - self.next % self.limits.leaf
        };
        let (end, full) = self.batch_end(start, known);
        let range = ByteRange::from_bounds(start, end).filter(|_| full || self.is_fed())?;

        let used = self.pending.partition_point(|e| e.range.start() < end);
        let rest = self.pending[used - 1].clipped(ByteRange::from_bounds(end, u64::MAX)?);
        let extents: Vec<_> = self
            .pending
            .drain(..used)
            .filter_map(|e| e.clipped(range))
            .collect();
        if let Some(rest) = rest {
            self.pending.push_front(rest);
        }
        let stretches = stretches(range, &extents, self.limits.leaf);
        Some(Batch {
            range,
            extents,
            stretches,
            same: Vec::new(),
            same_blocks: Vec::new(),
        })
    }

    /// Where a batch from `start` ends at most at `known`, and whether a limit ended it.
    fn batch_end(&self, start: u64, known: u64) -> (u64, bool) {
        let leaf = self.limits.leaf;
        let longest = start.saturating_add(self.limits.range);
        let (known, is_longest) = (known.min(longest), longest < known);
        // Leaves before this one are counted.
        let mut counted = start;
        let mut data = 0;
        for (index, extent) in self.pending.iter().enumerate() {
            if index >= self.limits.extents && counted > start {
                return (counted.min(known), true);
            }
            let end = extent.range.end().min(known);
            if extent.content == Content::Data {
                let from = (extent.range.start() - extent.range.start() % leaf).max(counted);
                let to = end.next_multiple_of(leaf);
                let room = self.limits.data - data;
                if to.saturating_sub(from) > room || room == 0 && to > from {
                    return ((from + room).min(known), true);
                }
                data += to.saturating_sub(from);
            }
            // A leaf boundary at or before the end of this extent: the batch may be cut there.
            counted = counted.max(if extent.content == Content::Data {
                end.next_multiple_of(leaf)
            } else {
                end - end % leaf
            });
            if end == known {
                break;
            }
        }
        (known, is_longest)
    }
}

/// Runs of leaves with and without data.
fn stretches(range: ByteRange, extents: &[MappedExtent], leaf: u64) -> Vec<Stretch> {
    let mut runs: Vec<Stretch> = Vec::new();
    let mut push = |start: u64, end: u64, zero: bool| {
        let Some(run) = ByteRange::from_bounds(start, end.min(range.end())) else {
            return;
        };
        match runs.last_mut() {
            Some(last) if last.zero == zero => {
                if let Some(joined) = ByteRange::from_bounds(last.range.start(), run.end()) {
                    last.range = joined;
                }
            }
            _ => runs.push(Stretch { range: run, zero }),
        }
    };
    let mut at = range.start();
    for extent in extents.iter().filter(|e| e.content == Content::Data) {
        let start = (extent.range.start() - extent.range.start() % leaf).max(at);
        let end = extent.range.end().next_multiple_of(leaf).min(range.end());
        if end > at {
            push(at, start, true);
            push(start, end, false);
            at = end;
        }
    }
    push(at, range.end(), true);
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volmap::generation::Generation;

    use super::*;
    use crate::plan::mapped::DiskPlace;

    const LEAF: u64 = 16;

    fn contents() -> impl Strategy<Value = Content> {
        prop_oneof![3 => Just(Content::Data), 1 => Just(Content::Zero), 2 => Just(Content::Hole)]
    }

    fn extents_of(pieces: &[(u64, Content)]) -> (u64, Vec<MappedExtent>) {
        let mut at = 0;
        let extents = pieces
            .iter()
            .map(|&(len, content)| {
                let range = ByteRange::new(at, len).unwrap();
                at = range.end();
                let place = (content == Content::Data).then_some(DiskPlace {
                    disk: 0,
                    offset: range.start() * 3,
                });
                MappedExtent {
                    range,
                    content,
                    generation: Generation::from_wire(1),
                    place,
                }
            })
            .collect();
        (at, extents)
    }

    #[test]
    fn terabytes_of_hole_are_one_batch() {
        let (size, extents) = extents_of(&[(1 << 40, Content::Hole), (5, Content::Data)]);
        let mut batcher = Batcher::new(
            size,
            BatchLimits {
                leaf: 65536,
                data: 1 << 20,
                extents: 100,
                range: 1 << 41,
            },
        );
        batcher.feed(extents);
        let batch = batcher.take().unwrap();
        assert_eq!(batch.range, ByteRange::new(0, size).unwrap());
        assert_eq!(batch.stretches.len(), 2);
        assert_eq!(batcher.take(), None);
    }

    /// A host may say that its volume has 2^63 bytes, all of them holes.
    #[test]
    fn endless_holes_are_many_batches() {
        let (size, extents) = extents_of(&[(i64::MAX as u64, Content::Hole)]);
        let limits = BatchLimits {
            leaf: 65536,
            data: 1 << 20,
            extents: 100,
            range: 1 << 41,
        };
        let mut batcher = Batcher::new(size, limits);
        batcher.feed(extents);
        for index in 0..3 {
            let batch = batcher.take().unwrap();
            assert_eq!(batch.range, ByteRange::new(index << 41, 1 << 41).unwrap());
        }
    }

    #[test]
    fn a_block_is_the_same_as_a_whole_or_not_at_all() {
        let range = |start, end| ByteRange::from_bounds(start, end).unwrap();
        let (size, extents) = extents_of(&[(37, Content::Data)]);
        let limits = BatchLimits {
            leaf: LEAF,
            data: 64,
            extents: 9,
            range: 64,
        };
        let mut batcher = Batcher::new(size, limits);
        batcher.feed(extents);
        let mut batch = batcher.take().unwrap();
        // Blocks of 4; the last one is short.
        batch.same_blocks = vec![range(4, 16), range(20, 24), range(32, 37)];
        let same = |start, end| -> Vec<_> {
            let found = batch.same_blocks_in(range(start, end), 4);
            found.map(|same| (same.start(), same.end())).collect()
        };
        assert_eq!(same(0, 37), [(4, 16), (20, 24), (32, 37)]);
        assert_eq!(same(4, 24), [(4, 16), (20, 24)]);
        assert_eq!(same(5, 15), [(8, 12)]);
        assert_eq!(same(13, 23), []);
        assert_eq!(same(33, 37), [(36, 37)]);
        assert_eq!(same(28, 36), [(32, 36)]);
        assert_eq!(same(28, 35), []);
        assert_eq!(same(16, 20), []);
    }

    proptest! {
        #[test]
        fn plan_covers_exactly_once(
            pieces in proptest::collection::vec((1u64..70, contents()), 1..80),
            fed_at_once in 1usize..9,
            data_leaves in 1u64..6,
            extent_limit in 1usize..7,
            leaves_limit in 1u64..30,
        ) {
            let (size, extents) = extents_of(&pieces);
            let limits = BatchLimits {
                leaf: LEAF,
                data: data_leaves * LEAF,
                extents: extent_limit,
                range: leaves_limit * LEAF,
            };
            let mut batcher = Batcher::new(size, limits);
            let mut batches = Vec::new();
            for group in extents.chunks(fed_at_once) {
                batcher.feed(group.iter().copied());
                while let Some(batch) = batcher.take() {
                    batches.push(batch);
                }
            }

            let mut end = 0;
            let mut bytes = Vec::new();
            for batch in &batches {
                prop_assert_eq!(batch.range.start(), end);
                prop_assert!(batch.range.end() % LEAF == 0 || batch.range.end() == size);
                end = batch.range.end();
                let data: u64 = batch.stretches.iter().filter(|s| !s.zero).map(|s| s.range.len()).sum();
                prop_assert!(data <= limits.data);
                prop_assert!(batch.range.len() <= limits.range);

                let mut at = batch.range.start();
                for stretch in &batch.stretches {
                    prop_assert_eq!(stretch.range.start(), at);
                    at = stretch.range.end();
                }
                prop_assert_eq!(at, batch.range.end());
                let mut at = batch.range.start();
                for extent in &batch.extents {
                    prop_assert_eq!(extent.range.start(), at);
                    at = extent.range.end();
                    let zero = |s: &Stretch| s.zero && s.range.intersection(extent.range).is_some();
                    prop_assert!(extent.content != Content::Data || !batch.stretches.iter().any(zero));
                    for offset in extent.range.start()..extent.range.end() {
                        let place = extent.place.map(|p| p.offset + (offset - extent.range.start()));
                        bytes.push((extent.content, place));
                    }
                }
                prop_assert_eq!(at, batch.range.end());
            }
            prop_assert_eq!(end, size);
            let expected: Vec<_> = extents.iter().flat_map(|e| {
                (e.range.start()..e.range.end())
                    .map(|offset| (e.content, e.place.map(|p| p.offset + (offset - e.range.start()))))
            }).collect();
            prop_assert_eq!(bytes, expected);
        }
    }
}
