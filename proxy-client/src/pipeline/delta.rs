//! What changed since the parent of an incremental image: the host's word on it, made whole leaves, and more careful where the
//! parent has gaps or another size.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use volmap::range::ByteRange;

use crate::chain::Chain;
use crate::error::Result;
use crate::image::LEAF;

/// Bytes of the volume about which the host is asked at a time.
const WINDOW: u64 = 1 << 30;

/// Who knows what changed.
pub(crate) trait Changes: Send + Sync {
    /// From the start of `range` on: lengths, and whether those bytes may differ from the parent's. What the answer does not cover
    /// may differ too.
    fn changes(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<(u64, bool)>>>;
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

    /// The first bytes of `rest`, which begins on a leaf, cut into whole leaves that changed and that did not.
    pub(super) async fn parts(&self, rest: ByteRange) -> Result<Vec<(ByteRange, bool)>> {
        let Some(window) = ByteRange::from_bounds(rest.start(), rest.end().min(rest.start() + WINDOW)) else {
            return Ok(Vec::new());
        };
        let mut leaves = Leaves::new(window);
        let common = ByteRange::from_bounds(window.start(), window.end().min(self.limit));
        let mut at = window.start();
        while let Some(asked) = common.and_then(|common| ByteRange::from_bounds(at, common.end())) {
            let told = self.changes.changes(asked).await?;
            let before = at;
            for (length, changed) in told {
                let end = at.saturating_add(length).min(asked.end());
                if changed {
                    leaves.mark(at, end);
                }
                at = end;
            }
            if at == before {
                leaves.mark(at, asked.end());
                break;
            }
        }
        leaves.mark(common.map_or(window.start(), |common| common.end()), window.end());
        if let Some(common) = common {
            let parent = Arc::clone(&self.parent);
            let gaps = tokio::task::spawn_blocking(move || parent.unreadable_in(common));
            let gaps = gaps.await.map_err(super::run::broken)??;
            gaps.iter().for_each(|gap| leaves.mark(gap.start(), gap.end()));
        }
        Ok(leaves.parts())
    }
}

/// Which leaves of a window changed.
struct Leaves {
    window: ByteRange,
    changed: Vec<bool>,
}

impl Leaves {
    fn new(window: ByteRange) -> Self {
        let count = usize::try_from(window.len().div_ceil(LEAF)).expect("a window has few leaves");
        Self {
            window,
            changed: vec![false; count],
        }
    }

    /// A leaf changed if any byte of it did.
    fn mark(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let index = |at: u64| usize::try_from(at / LEAF).expect("a window has few leaves");
        let first = index(start - self.window.start());
        let last = index(end - 1 - self.window.start());
        self.changed[first..=last].fill(true);
    }

    fn parts(&self) -> Vec<(ByteRange, bool)> {
        let mut parts: Vec<(ByteRange, bool)> = Vec::new();
        for (index, &changed) in self.changed.iter().enumerate() {
            let start = self.window.start() + index as u64 * LEAF;
            let Some(leaf) = ByteRange::from_bounds(start, self.window.end().min(start + LEAF)) else {
                continue;
            };
            match parts.last_mut() {
                Some((last, same)) if *same == changed => {
                    *last = ByteRange::from_bounds(last.start(), leaf.end()).unwrap_or(leaf);
                }
                _ => parts.push((leaf, changed)),
            }
        }
        parts
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

    /// Leaves that are read, though the host says that nothing changed.
    async fn read(parent: u64, unreadable: ByteRange, size: u64, silent_from: u64) -> Vec<u64> {
        let directory = tempfile::tempdir().unwrap();
        let parent = self::parent(&directory.path().join("image"), parent, unreadable);
        let delta = Delta::new(parent, Box::new(NothingChanged(silent_from)), size);
        let parts = delta.parts(ByteRange::new(0, size).unwrap()).await.unwrap();
        let changed = parts.iter().filter(|(_, changed)| *changed);
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

    #[test]
    fn a_leaf_changed_if_any_byte_of_it_did() {
        let window = ByteRange::new(4 * LEAF, 5 * LEAF + 100).unwrap();
        let mut leaves = Leaves::new(window);
        let start = window.start();
        leaves.mark(start + LEAF - 1, start + LEAF + 1);
        leaves.mark(window.end() - 1, window.end());
        leaves.mark(start + 3 * LEAF, start + 3 * LEAF);
        let parts: Vec<_> = leaves
            .parts()
            .iter()
            .map(|(range, changed)| ((range.start() - start) / LEAF, range.len(), *changed))
            .collect();
        assert_eq!(parts, [(0, 2 * LEAF, true), (2, 3 * LEAF, false), (5, 100, true)]);
    }
}
