//! What changed since the parent of an incremental image: the host's word on it, made whole blocks, and more careful where the
//! parent has gaps or another size.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use volmap::range::ByteRange;

use crate::chain::Chain;
use crate::error::Result;
use crate::image::{BLOCK, LEAF};

/// Bytes of the volume about which the host is asked at a time.
const WINDOW: u64 = 1 << 30;

/// Who knows what changed.
pub(crate) trait Changes: Send + Sync {
    /// From the start of `range` on: lengths, and whether those bytes may differ from the parent's. What the answer does not cover
    /// may differ too.
    fn changes(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<(u64, bool)>>>;
}

/// Blocks of a leaf.
const BLOCKS: u64 = LEAF / BLOCK;

/// A stretch of the volume, cut into what changed.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Runs of leaves that changed, and that did not.
    pub(super) leaves: Vec<(ByteRange, bool)>,
    /// What did not change of the leaves that did: whole blocks, in order.
    pub(super) same_blocks: Vec<ByteRange>,
}

/// The parent of an incremental image, and what changed since.
pub struct Delta {
    parent: Arc<Chain>,
    changes: Box<dyn Changes>,
    /// From here on everything changed: the volumes end at two places.
    limit: u64,
}

impl Delta {
    /// For a volume of `size` bytes.
    pub(crate) fn new(parent: Arc<Chain>, changes: Box<dyn Changes>, size: u64) -> Self {
        let theirs = parent.header().size;
        let smaller = size.min(theirs);
        Self {
            limit: if size == theirs {
                size
            } else {
                smaller - smaller % LEAF
            },
            parent,
            changes,
        }
    }

    /// Hashes of leaves that are the parent's.
    pub(super) fn leaves(&self, range: ByteRange) -> Result<Vec<blake3::Hash>> {
        self.parent.leaves(range)
    }

    /// The first bytes of `rest`, which begins on a leaf.
    pub(super) async fn parts(&self, rest: ByteRange) -> Result<Parts> {
        let Some(window) = ByteRange::from_bounds(rest.start(), rest.end().min(rest.start() + WINDOW)) else {
            return Ok(Parts::default());
        };
        let mut blocks = Blocks::new(window);
        let common = ByteRange::from_bounds(window.start(), window.end().min(self.limit));
        let mut at = window.start();
        while let Some(asked) = common.and_then(|common| ByteRange::from_bounds(at, common.end())) {
            let told = self.changes.changes(asked).await?;
            let before = at;
            for (length, changed) in told {
                let end = at.saturating_add(length).min(asked.end());
                if changed {
                    blocks.mark(at, end);
                }
                at = end;
            }
            if at == before {
                blocks.mark(at, asked.end());
                break;
            }
        }
        blocks.mark(common.map_or(window.start(), |common| common.end()), window.end());
        if let Some(common) = common {
            let parent = Arc::clone(&self.parent);
            let gaps = tokio::task::spawn_blocking(move || parent.unreadable_in(common));
            let gaps = gaps.await.map_err(super::run::broken)??;
            gaps.iter().for_each(|gap| blocks.mark_leaves(*gap));
        }
        Ok(blocks.parts())
    }
}

/// Which blocks of a window changed.
struct Blocks {
    window: ByteRange,
    /// A bit for each block of a leaf.
    changed: Vec<u16>,
}

impl Blocks {
    fn new(window: ByteRange) -> Self {
        let count = usize::try_from(window.len().div_ceil(LEAF)).expect("a window has few leaves");
        Self {
            window,
            changed: vec![0; count],
        }
    }

    /// A block changed if any byte of it did.
    fn mark(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.window.start();
        for block in (start - first) / BLOCK..(end - first).div_ceil(BLOCK) {
            let leaf = usize::try_from(block / BLOCKS).expect("a window has few leaves");
            self.changed[leaf] |= 1 << (block % BLOCKS);
        }
    }

    /// Every leaf that holds a byte of the range changed as a whole.
    fn mark_leaves(&mut self, range: ByteRange) {
        let (start, end) = (range.start(), range.end().next_multiple_of(LEAF));
        self.mark(start - start % LEAF, end);
    }

    fn parts(&self) -> Parts {
        let mut parts = Parts::default();
        for (index, &changed) in self.changed.iter().enumerate() {
            let start = self.window.start() + index as u64 * LEAF;
            let Some(leaf) = self.within(start, LEAF) else {
                continue;
            };
            match parts.leaves.last_mut() {
                Some((last, same)) if *same == (changed != 0) => {
                    *last = ByteRange::from_bounds(last.start(), leaf.end()).unwrap_or(leaf);
                }
                _ => parts.leaves.push((leaf, changed != 0)),
            }
            if changed == 0 {
                continue;
            }
            for block in (0..BLOCKS).filter(|block| changed & 1 << block == 0) {
                let Some(same) = self.within(start + block * BLOCK, BLOCK) else {
                    break;
                };
                match parts.same_blocks.last_mut() {
                    Some(last) if last.end() == same.start() => {
                        *last = ByteRange::from_bounds(last.start(), same.end()).unwrap_or(same);
                    }
                    _ => parts.same_blocks.push(same),
                }
            }
        }
        parts
    }

    /// The bytes from `start` on, as far as the window goes.
    fn within(&self, start: u64, length: u64) -> Option<ByteRange> {
        ByteRange::from_bounds(start, self.window.end().min(start + length))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use volmap::generation::Generation;

    use super::*;
    use crate::image::{
        Content, DEFAULT_LEVEL, Encoder, Header, Kind, Receipt, Record, Totals, compress_piece,
    };

    /// An image of zeroes, some of which could not be read.
    fn parent(path: &Path, size: u64, unreadable: ByteRange) -> Arc<Chain> {
        let (mut encoder, first) = Encoder::new(&Header {
            image: uuid::Uuid::from_u128(1),
            frozen: uuid::Uuid::from_u128(2),
            parent: None,
            size,
            created: 0,
            volume: String::new(),
            description: String::new(),
            stores: Vec::new(),
            luns: Vec::new(),
            software: String::new(),
            job: None,
        });
        let part = |start, end, kind| {
            ByteRange::from_bounds(start, end).map(|range| Record {
                range,
                kind,
                receipt: Receipt::unread(Generation::NEVER_DIRECT),
            })
        };
        let records: Vec<Record> = [
            part(0, unreadable.start(), Kind::Zero),
            part(unreadable.start(), unreadable.end(), Kind::Unreadable),
            part(unreadable.end(), size, Kind::Zero),
        ]
        .into_iter()
        .flatten()
        .collect();
        let whole = ByteRange::new(0, size).unwrap();
        let piece = compress_piece(whole, Content::Zeroes, &records, DEFAULT_LEVEL);
        let mut image = first.to_vec();
        image.extend(encoder.append(piece).unwrap().concat());
        image.extend(encoder.finish(Totals::default()).unwrap().0.concat());
        std::fs::write(path, image).unwrap();
        let chain = Chain::open(&[path.to_owned()]).unwrap();
        chain.check().unwrap();
        Arc::new(chain)
    }

    /// Says that nothing changed, in short answers; behind some byte it says nothing any more.
    struct NothingChanged(u64);

    impl Changes for NothingChanged {
        fn changes(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<(u64, bool)>>> {
            let told = self.0.saturating_sub(range.start()).min(10_000);
            Box::pin(std::future::ready(Ok(vec![(told, false)])))
        }
    }

    /// Leaves that are read, though the host says that nothing changed: nothing of them counts as the same.
    async fn read(parent: u64, unreadable: ByteRange, size: u64, silent_from: u64) -> Vec<u64> {
        let directory = tempfile::tempdir().unwrap();
        let parent = self::parent(&directory.path().join("image"), parent, unreadable);
        let delta = Delta::new(parent, Box::new(NothingChanged(silent_from)), size);
        let parts = delta.parts(ByteRange::new(0, size).unwrap()).await.unwrap();
        assert_eq!(parts.same_blocks, []);
        let changed = parts.leaves.iter().filter(|(_, changed)| *changed);
        changed
            .flat_map(|(range, _)| range.start() / LEAF..range.end().div_ceil(LEAF))
            .collect()
    }

    /// Whatever the host says: what the parent lacks is read.
    #[tokio::test]
    async fn gaps_of_the_parent_and_what_lies_behind_either_end_are_read() {
        let gap = ByteRange::new(LEAF + 5, LEAF).unwrap();
        assert_eq!(read(6 * LEAF + 9, gap, 6 * LEAF + 9, u64::MAX).await, [1, 2]);
        assert_eq!(read(6 * LEAF + 9, gap, 8 * LEAF, u64::MAX).await, [1, 2, 6, 7]);
        assert_eq!(read(6 * LEAF, gap, 4 * LEAF + 1, u64::MAX).await, [1, 2, 4]);
        // A host that falls silent has not said that the rest is the same.
        assert_eq!(read(6 * LEAF, gap, 6 * LEAF, 4 * LEAF).await, [1, 2, 4, 5]);
    }

    /// Of what changed, as leaves (first, length, whether) and as blocks that did not (first, last, behind it).
    type Told = (Vec<(u64, u64, bool)>, Vec<(u64, u64)>);

    fn told(blocks: &Blocks) -> Told {
        let parts = blocks.parts();
        let start = blocks.window.start();
        let leaves = parts.leaves.iter();
        let leaf =
            |(range, changed): &(ByteRange, bool)| ((range.start() - start) / LEAF, range.len(), *changed);
        let same = parts.same_blocks.iter();
        (
            leaves.map(leaf).collect(),
            same.map(|same| (same.start() - start, same.end() - start))
                .collect(),
        )
    }

    #[test]
    fn a_block_and_its_leaf_changed_if_any_byte_of_it_did() {
        let window = ByteRange::new(4 * LEAF, 5 * LEAF + BLOCK + 100).unwrap();
        let mut blocks = Blocks::new(window);
        let start = window.start();
        blocks.mark(start + LEAF - 1, start + LEAF + 1);
        blocks.mark(start + LEAF + 2 * BLOCK - 1, start + LEAF + 2 * BLOCK);
        blocks.mark(window.end() - 1, window.end());
        // Nothing is marked, on a block or within one.
        blocks.mark(start + 3 * LEAF, start + 3 * LEAF);
        blocks.mark(start + 3 * LEAF + 1, start + 3 * LEAF + 1);
        let (leaves, same) = told(&blocks);
        assert_eq!(
            leaves,
            [(0, 2 * LEAF, true), (2, 3 * LEAF, false), (5, BLOCK + 100, true)]
        );
        let behind = LEAF + 2 * BLOCK;
        assert_eq!(
            same,
            [
                (0, LEAF - BLOCK),
                (behind, 2 * LEAF),
                (5 * LEAF, 5 * LEAF + BLOCK)
            ]
        );
    }

    #[test]
    fn a_short_last_block_is_as_it_was_to_the_end_of_the_volume() {
        let window = ByteRange::new(LEAF, BLOCK + 100).unwrap();
        let mut blocks = Blocks::new(window);
        blocks.mark(window.start(), window.start() + 1);
        assert_eq!(
            told(&blocks),
            (vec![(0, BLOCK + 100, true)], vec![(BLOCK, BLOCK + 100)])
        );
    }
}
