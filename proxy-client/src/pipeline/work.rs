//! What is to be done, in volume order: the map cut into batches, and what is as in the parent image left out.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use volmap::range::ByteRange;

use super::confirmations::Confirmations;
use super::delta::Delta;
use super::fetch::Fetcher;
use super::limits::{BATCHES_AHEAD, FEW_TOLD, FIRST_LOOK, GAPPED_RANGE, MANY_TOLD, MAP_WINDOW, SMALL_GAP};
use super::source::FrozenSource;
use crate::error::Result;
use crate::plan::batch::{Batch, BatchLimits, Batcher};
use crate::plan::mapped::MappedExtent;

/// What comes next of the volume.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// A batch, which was announced to the confirmations.
    Fetch(Arc<Batch>),
    /// Bytes that are as in the parent image.
    Same(ByteRange),
}

/// The work of the volume from `start` on in order, batches announced some time before they come.
pub(super) fn work<'a, S: FrozenSource>(
    source: &'a S,
    start: u64,
    delta: Option<Arc<Delta>>,
    limits: BatchLimits,
    fetcher: Arc<Fetcher<'a, S>>,
) -> impl Stream<Item = Result<Work>> {
    let planner = Planner::new(start, delta, limits);
    stream::try_unfold((planner, fetcher), move |(mut planner, fetcher)| async move {
        let work = planner.next(source, &fetcher.confirmations).await?;
        Ok(work.map(|work| (work, (planner, fetcher))))
    })
}

/// What the host said of the map last, and what of it may still be of use.
#[derive(Debug, Default)]
struct Known {
    extents: VecDeque<MappedExtent>,
    age: u64,
}

impl Known {
    /// Whether it tells of a byte; what lies before that is forgotten.
    fn tells_of(&mut self, byte: u64) -> bool {
        while self.extents.front().is_some_and(|e| e.range.end() <= byte) {
            self.extents.pop_front();
        }
        self.extents.front().is_some_and(|e| e.range.contains(byte))
    }

    /// What it tells of `range`, from its start on.
    fn of(&self, range: ByteRange) -> impl Iterator<Item = MappedExtent> {
        self.extents.iter().map_while(move |e| e.clipped(range))
    }
}

/// Cuts the volume into work.
struct Planner {
    delta: Option<Arc<Delta>>,
    limits: BatchLimits,
    /// Up to here it is known what changed.
    at: u64,
    /// What follows, and whether it changed.
    parts: VecDeque<(ByteRange, bool)>,
    /// Blocks that are as in the parent image, of parts that changed.
    same_blocks: VecDeque<ByteRange>,
    /// The part that is being cut.
    batcher: Option<Batcher>,
    known: Known,
    /// Bytes about which the map of parts is asked next.
    look: u64,
    /// The age of the oldest part of the map that no batch was made of yet.
    map_age: u64,
    /// Whether there are gaps to join batches over: what has none is cut as large as may be.
    joins: bool,
    /// A batch to which others may be joined, with the age of its map.
    open: Option<(Batch, u64)>,
    /// What lies behind that batch, and is as in the parent image.
    gap: Option<ByteRange>,
    /// Batches that were announced, and what lies between them, waiting for their turn.
    ahead: VecDeque<Work>,
}

impl Planner {
    fn new(start: u64, delta: Option<Arc<Delta>>, limits: BatchLimits) -> Self {
        Self {
            joins: delta.is_some(),
            delta,
            limits,
            at: start,
            parts: VecDeque::new(),
            same_blocks: VecDeque::new(),
            batcher: None,
            known: Known::default(),
            look: FIRST_LOOK,
            map_age: 0,
            open: None,
            gap: None,
            ahead: VecDeque::new(),
        }
    }

    async fn next<S: FrozenSource>(
        &mut self,
        source: &S,
        confirmations: &Confirmations,
    ) -> Result<Option<Work>> {
        while self.ahead.len() <= BATCHES_AHEAD {
            if let Some(batcher) = &mut self.batcher {
                if let Some(batch) = batcher.take() {
                    self.push(batch, confirmations);
                    continue;
                }
                if let Some(rest) = ByteRange::from_bounds(batcher.next_offset(), batcher.end()) {
                    self.feed(rest, source, confirmations).await?;
                    continue;
                }
                self.batcher = None;
            }
            match self.parts.pop_front() {
                Some((range, true)) => {
                    let batcher = Batcher::starting_at(range.start(), range.end(), self.limits);
                    self.batcher = Some(batcher);
                }
                Some((range, false)) => self.skip(range, confirmations),
                None => {
                    let Some(rest) = ByteRange::from_bounds(self.at, source.size()) else {
                        self.close(confirmations);
                        break;
                    };
                    match &self.delta {
                        Some(delta) => {
                            let parts = delta.parts(rest).await?;
                            self.parts = parts.leaves.into();
                            self.same_blocks.extend(parts.same_blocks);
                        }
                        None => self.parts = [(rest, true)].into(),
                    }
                    self.at = self.parts.back().map_or(rest.end(), |(last, _)| last.end());
                }
            }
        }
        Ok(self.ahead.pop_front())
    }

    /// Gives the map of the part that is being cut to its batcher, as far as one answer goes.
    async fn feed<S: FrozenSource>(
        &mut self,
        rest: ByteRange,
        source: &S,
        confirmations: &Confirmations,
    ) -> Result<()> {
        if !self.known.tells_of(rest.start()) {
            let window = self.window(rest);
            let age = confirmations.age_of_a_map();
            let extents = source.map(window).await?;
            if extents.len() <= FEW_TOLD {
                self.look = self.look.saturating_mul(4).min(GAPPED_RANGE);
            } else if extents.len() > MANY_TOLD {
                self.look = (self.look / 4).max(self.limits.leaf);
            }
            self.known = Known {
                extents: extents.into(),
                age,
            };
        }
        if let Some(batcher) = &mut self.batcher {
            // A batch may be made of what several replies told.
            if !batcher.holds_extents() {
                self.map_age = self.known.age;
            }
            batcher.feed(self.known.of(rest));
        }
        Ok(())
    }

    /// What is asked about for the sake of `rest`: parts that follow soon as well, for each would cost a question of its own.
    fn window(&self, rest: ByteRange) -> ByteRange {
        let own = rest.end().min(rest.start().saturating_add(MAP_WINDOW));
        let far = rest.start().saturating_add(self.look);
        let changed = self.parts.iter().take_while(|(part, _)| part.end() <= far);
        let last = changed.filter(|(_, changed)| *changed).last();
        let end = last.map_or(own, |(part, _)| part.end().max(own));
        ByteRange::from_bounds(rest.start(), end).unwrap_or(rest)
    }

    /// Takes a batch, joined to the one before it where both are small and the gap between them is.
    fn push(&mut self, mut batch: Batch, confirmations: &Confirmations) {
        batch.same_blocks = self.same_blocks_before(batch.range.end());
        let age = self.map_age;
        let gap = self.gap.take();
        match (&mut self.open, gap) {
            (Some((open, open_age)), Some(gap)) if fits(open, &batch, self.limits) => {
                open.append(gap, batch);
                *open_age = age.min(*open_age);
            }
            _ => {
                self.gap = gap;
                self.close(confirmations);
                self.open = Some((batch, age));
            }
        }
        if !self.joins {
            self.close(confirmations);
        }
    }

    /// Takes the blocks that lie before a leaf.
    fn same_blocks_before(&mut self, end: u64) -> Vec<ByteRange> {
        let mut before = Vec::new();
        while let Some(same) = self.same_blocks.pop_front() {
            let (first, rest) = (
                ByteRange::from_bounds(same.start(), same.end().min(end)),
                ByteRange::from_bounds(same.start().max(end), same.end()),
            );
            before.extend(first);
            if let Some(rest) = rest {
                self.same_blocks.push_front(rest);
                break;
            }
        }
        before
    }

    /// Takes what is as in the parent image: a gap of the open batch, if it is small.
    fn skip(&mut self, range: ByteRange, confirmations: &Confirmations) {
        let start = self.gap.map_or(range.start(), |gap| gap.start());
        self.gap = ByteRange::from_bounds(start, range.end());
        if self.open.is_none() || self.gap.is_some_and(|gap| gap.len() > SMALL_GAP) {
            self.close(confirmations);
        }
    }

    /// Nothing more is joined to the open batch.
    fn close(&mut self, confirmations: &Confirmations) {
        if let Some((batch, age)) = self.open.take() {
            let batch = Arc::new(batch);
            confirmations.announce(&batch, age);
            self.ahead.push_back(Work::Fetch(batch));
        }
        if let Some(gap) = self.gap.take() {
            self.leave_out(gap, confirmations);
        }
    }

    fn leave_out(&mut self, range: ByteRange, confirmations: &Confirmations) {
        if range.len() > SMALL_GAP {
            confirmations.announce_gap(range);
        }
        self.ahead.push_back(Work::Same(range));
    }
}

/// Whether two batches are not too large for one.
fn fits(open: &Batch, next: &Batch, limits: BatchLimits) -> bool {
    open.data() + next.data() <= limits.data
        && open.extents.len() + next.extents.len() <= limits.extents
        && next.range.end() - open.range.start() <= GAPPED_RANGE.min(limits.range)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use volmap::generation::Generation;

    use super::*;
    use crate::image::{BLOCK, Kind, LEAF};
    use crate::pipeline::FetchPolicy;
    use crate::pipeline::limits::BATCH_DATA;
    use crate::pipeline::run::BATCHES;
    use crate::pipeline::source::map_whole;
    use crate::pipeline::world::{UNIT, World};

    /// A leaf of data in each reply, and something else is confirmed after each.
    struct ShortReplies<'a> {
        size: u64,
        confirmations: &'a Confirmations,
    }

    impl FrozenSource for ShortReplies<'_> {
        fn size(&self) -> u64 {
            self.size
        }

        async fn map(&self, range: ByteRange) -> Result<Vec<MappedExtent>> {
            let question = self.confirmations.ask(ByteRange::new(0, 1).unwrap());
            self.confirmations.answered(&question, &[]);
            Ok(vec![MappedExtent {
                range: ByteRange::new(range.start(), LEAF).unwrap(),
                content: volmap::map::Content::Data,
                generation: Generation::from_wire(1),
                place: None,
            }])
        }

        async fn generations(&self, _: ByteRange) -> Result<Vec<MappedExtent>> {
            unreachable!("batches are made of maps")
        }

        async fn read(&self, _: ByteRange) -> Result<Bytes> {
            unreachable!("batches are made of maps")
        }
    }

    #[tokio::test]
    async fn a_batch_is_as_old_as_the_first_reply_that_it_is_made_of() {
        let confirmations = Confirmations::default();
        let source = ShortReplies {
            size: BATCH_DATA + LEAF,
            confirmations: &confirmations,
        };
        let mut planner = Planner::new(0, None, BATCHES);
        let mut ages = Vec::new();
        loop {
            planner.next(&source, &confirmations).await.unwrap();
            ages.push(planner.map_age);
            if planner.ahead.is_empty() {
                break;
            }
        }
        // What is left of the first batch's replies keeps their age.
        assert_eq!(ages, [0, 0]);
    }

    /// Many small parts that changed cost a question about the map and one about the generation together, and not for each.
    #[tokio::test]
    async fn small_parts_are_one_batch_over_small_gaps() {
        const PARTS: u64 = 200;
        let memory = |len: u64| usize::try_from(len).unwrap();
        let world = World::new(&vec![false; memory(2 * PARTS)], 1000, Vec::new());
        let luns = world.luns();
        let map = map_whole(&world, ByteRange::new(0, world.size()).unwrap())
            .await
            .unwrap();
        assert_eq!(luns.prove(0, &world, &map).await.unwrap(), Ok(()));
        let (maps, questions) = (world.maps_asked(), world.questions());
        let limits = BatchLimits {
            leaf: UNIT,
            data: PARTS / 2 * UNIT,
            ..BATCHES
        };
        let fetcher = Fetcher::new(&world, &luns, FetchPolicy::default());
        let mut planner = Planner::new(world.size(), None, limits);
        planner.joins = true;
        planner.parts = (0..2 * PARTS)
            .map(|unit| (ByteRange::new(unit * UNIT, UNIT).unwrap(), unit % 2 == 1))
            .collect();
        let (frozen, mut at, mut batches) = (world.frozen(), 0, 0);
        while let Some(work) = planner.next(&world, &fetcher.confirmations).await.unwrap() {
            let batch = match work {
                Work::Fetch(batch) => batch,
                Work::Same(gap) => {
                    assert_eq!(gap.start(), at);
                    at = gap.end();
                    continue;
                }
            };
            batches += 1;
            let fetched = fetcher.fetch(batch).await.unwrap();
            assert_eq!(fetched.tally.bytes_direct, fetched.tally.bytes_same + UNIT);
            for (stretch, record) in fetched.stretches.iter().zip(&fetched.records) {
                assert_eq!((stretch.range.start(), record.range), (at, stretch.range));
                at = stretch.range.end();
                let changed = stretch.range.start() / UNIT % 2 == 1;
                assert_eq!(record.kind == Kind::Same, !changed);
                let wanted = &frozen[memory(stretch.range.start())..][..memory(UNIT)];
                assert_eq!(stretch.bytes.as_deref(), changed.then_some(wanted));
            }
        }
        assert_eq!((at, batches), (world.size(), 2));
        assert_eq!((world.maps_asked() - maps, world.questions() - questions), (1, 2));
    }

    /// Batches get the blocks that lie in them, however these are cut, and keep them when they are joined.
    #[tokio::test]
    async fn each_batch_has_its_blocks() {
        let between = |start, end| ByteRange::from_bounds(start, end).unwrap();
        let confirmations = Confirmations::default();
        let source = ShortReplies {
            size: 8 * LEAF,
            confirmations: &confirmations,
        };
        let limits = BatchLimits {
            data: 2 * LEAF,
            ..BATCHES
        };
        let mut planner = Planner::new(source.size(), None, limits);
        planner.joins = true;
        planner.parts = [
            (between(0, LEAF), true),
            (between(LEAF, 2 * LEAF), false),
            (between(2 * LEAF, 5 * LEAF), true),
            (between(5 * LEAF, 8 * LEAF), false),
        ]
        .into();
        let last = between(4 * LEAF + 7 * BLOCK, 5 * LEAF);
        planner.same_blocks = [
            between(BLOCK, 2 * BLOCK),
            between(3 * LEAF - BLOCK, 4 * LEAF + BLOCK),
            last,
        ]
        .into();
        let mut got = Vec::new();
        while let Some(work) = planner.next(&source, &confirmations).await.unwrap() {
            if let Work::Fetch(batch) = work {
                got.push((batch.range, batch.same_blocks.clone()));
            }
        }
        let expected = [
            (between(0, LEAF), vec![between(BLOCK, 2 * BLOCK)]),
            (
                between(2 * LEAF, 4 * LEAF),
                vec![between(3 * LEAF - BLOCK, 4 * LEAF)],
            ),
            (
                between(4 * LEAF, 5 * LEAF),
                vec![between(4 * LEAF, 4 * LEAF + BLOCK), last],
            ),
        ];
        assert_eq!(got, expected);

        let mut planner = Planner::new(source.size(), None, BATCHES);
        planner.joins = true;
        planner.parts = [
            (between(0, LEAF), true),
            (between(LEAF, 2 * LEAF), false),
            (between(2 * LEAF, 3 * LEAF), true),
        ]
        .into();
        planner.same_blocks = [between(0, BLOCK), between(2 * LEAF, 2 * LEAF + BLOCK)].into();
        let Some(Work::Fetch(batch)) = planner.next(&source, &confirmations).await.unwrap() else {
            panic!("it is one batch");
        };
        assert_eq!(batch.range, between(0, 3 * LEAF));
        assert_eq!(
            batch.same_blocks,
            [between(0, BLOCK), between(2 * LEAF, 2 * LEAF + BLOCK)]
        );
    }

    #[tokio::test]
    async fn large_gaps_are_left_out_and_nothing_is_lost() {
        let confirmations = Confirmations::default();
        let source = ShortReplies {
            size: 2 * SMALL_GAP,
            confirmations: &confirmations,
        };
        let leaf = |at: u64| ByteRange::new(at, LEAF).unwrap();
        let between = |start, end| ByteRange::from_bounds(start, end).unwrap();
        let mut planner = Planner::new(source.size(), None, BATCHES);
        planner.joins = true;
        let (far, end) = (2 * LEAF + SMALL_GAP, source.size());
        planner.parts = [
            (leaf(0), true),
            // As at the end of a window: two that are one.
            (leaf(LEAF), false),
            (between(2 * LEAF, far), false),
            (leaf(far), true),
            (between(far + LEAF, end), false),
        ]
        .into();
        let mut got = Vec::new();
        while let Some(work) = planner.next(&source, &confirmations).await.unwrap() {
            got.push(match work {
                Work::Fetch(batch) => (batch.range, true),
                Work::Same(gap) => (gap, false),
            });
        }
        let expected = [
            (leaf(0), true),
            (between(LEAF, far), false),
            (leaf(far), true),
            (between(far + LEAF, end), false),
        ];
        assert_eq!(got, expected);
    }
}
