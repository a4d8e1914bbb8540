//! Which bytes of each store reach a disk: found once for a frozen image, so that a validation (the generation context
//! alone) costs no walk down the chain.

use volmap::range::ByteRange;
use volmap::store::{Below, Place, StoreGraph, StoreId};

/// Status values carry byte offsets on a disk in 63 bits (docs/x-volmap.md, "disk").
const DISK_OFFSET_BITS: u32 = 63;

/// For every store, the ranges of it that reach a disk: sorted, disjoint, joined.
#[derive(Debug)]
pub(super) struct Reach {
    stores: Vec<Vec<ByteRange>>,
}

impl Reach {
    /// Follows every segment of every store down.
    pub(super) fn of(graph: &StoreGraph) -> Self {
        let stores = graph.ids().map(|id| reaching(graph, id)).collect();
        Self { stores }
    }

    /// Whether the byte at `place` reaches a disk, and for how many bytes on (at most `len`, which is not 0) the
    /// answer is the same.
    pub(super) fn at(&self, place: Place, len: u64) -> (bool, u64) {
        let ranges = &self.stores[place.store.index()];
        let next = ranges.partition_point(|r| r.end() <= place.offset);
        match ranges.get(next) {
            Some(range) if range.contains(place.offset) => (true, len.min(range.end() - place.offset)),
            Some(range) => (false, len.min(range.start() - place.offset)),
            None => (false, len),
        }
    }
}

fn reaching(graph: &StoreGraph, id: StoreId) -> Vec<ByteRange> {
    let store = graph.store(id);
    match &store.below {
        Below::Opaque(_) => Vec::new(),
        Below::Disk => ByteRange::new(0, store.size.min(1 << DISK_OFFSET_BITS))
            .into_iter()
            .collect(),
        Below::Segments(segments) => {
            let mut found: Vec<ByteRange> = Vec::new();
            for segment in segments {
                let mut at = segment.range.start();
                while at < segment.range.end() {
                    let resolved = graph.resolve(
                        Place {
                            store: id,
                            offset: at,
                        },
                        segment.range.end() - at,
                    );
                    let direct = resolved.disk().is_some_and(|disk| {
                        disk.offset
                            .checked_add(resolved.len)
                            .is_some_and(|end| end <= 1 << DISK_OFFSET_BITS)
                    });
                    if direct {
                        append(&mut found, at, at + resolved.len);
                    }
                    at += resolved.len;
                }
            }
            found
        }
    }
}

fn append(ranges: &mut Vec<ByteRange>, start: u64, end: u64) {
    let joined_start = match ranges.last() {
        Some(last) if last.end() == start => {
            let start = last.start();
            ranges.pop();
            start
        }
        _ => start,
    };
    ranges.extend(ByteRange::from_bounds(joined_start, end));
}
