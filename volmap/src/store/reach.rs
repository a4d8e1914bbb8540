//! Which bytes of each store reach a disk.

use super::{Below, Place, StoreGraph, StoreId};
use crate::range::ByteRange;

/// Disks are addressed by signed 64-bit offsets, in the kernel and in `x-volmap` alike.
const DISK_SIZE_MAX: u64 = 1 << 63;

/// For every store, the ranges of it that reach a disk: found once for a graph, from the disks upward, so that asking costs no walk
/// down the chain, and a striped store no walk over its stripes.
///
/// Where one column of a striped piece does not reach a disk everywhere, nothing of the piece counts.
#[derive(Debug)]
pub struct Reach {
    /// By number of the store: sorted, disjoint, joined.
    stores: Vec<Vec<ByteRange>>,
}

impl Reach {
    /// Of all stores of a graph.
    pub fn of(graph: &StoreGraph) -> Self {
        let mut reach = Self { stores: Vec::new() };
        for store in graph.stores() {
            let ranges = match &store.below {
                Below::Opaque(_) => Vec::new(),
                Below::Disk => ByteRange::new(0, store.size.min(DISK_SIZE_MAX))
                    .into_iter()
                    .collect(),
                Below::Segments(segments) => {
                    let pieces = segments.iter().map(|s| (s.range, s.below));
                    pieces.fold(Vec::new(), |found, (range, below)| {
                        reach.linear(found, range, below)
                    })
                }
                Below::Striped(pieces) => {
                    let mut found = Vec::new();
                    for piece in pieces {
                        let mut columns = piece.columns();
                        if columns.all(|(store, range)| reach.covers(store, range)) {
                            append(&mut found, piece.range());
                        }
                    }
                    found
                }
            };
            reach.stores.push(ranges);
        }
        reach
    }

    /// Whether the byte at `place` reaches a disk, and for how many bytes on (at most `len`, which is not 0) the
    /// answer is the same.
    pub fn at(&self, place: Place, len: u64) -> (bool, u64) {
        let ranges = &self.stores[place.store.index()];
        let next = ranges.partition_point(|r| r.end() <= place.offset);
        match ranges.get(next) {
            Some(range) if range.contains(place.offset) => (true, len.min(range.end() - place.offset)),
            Some(range) => (false, len.min(range.start() - place.offset)),
            None => (false, len),
        }
    }

    fn covers(&self, store: StoreId, range: ByteRange) -> bool {
        let place = Place {
            store,
            offset: range.start(),
        };
        self.at(place, range.len()) == (true, range.len())
    }

    /// Adds what of a linear piece reaches a disk.
    fn linear(&self, mut found: Vec<ByteRange>, range: ByteRange, below: Place) -> Vec<ByteRange> {
        let mut at = range.start();
        while at < range.end() {
            let offset = below.offset.saturating_add(at - range.start());
            let (direct, len) = self.at(Place { offset, ..below }, range.end() - at);
            if direct {
                found.extend(ByteRange::new(at, len));
                join_last(&mut found);
            }
            at += len;
        }
        found
    }
}

fn append(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    ranges.push(range);
    join_last(ranges);
}

/// Makes one of the last two ranges where they touch.
fn join_last(ranges: &mut Vec<ByteRange>) {
    if let [.., before, last] = ranges[..]
        && before.end() == last.start()
        && let Some(joined) = ByteRange::from_bounds(before.start(), last.end())
    {
        ranges.truncate(ranges.len() - 2);
        ranges.push(joined);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Segment, Store, StoreKind, Stripes};
    use super::*;
    use crate::identity::Identity;

    fn store(name: &str, size: u64, below: Below) -> Store {
        Store {
            kind: StoreKind::DeviceMapper,
            identity: Identity::new("id", name).unwrap(),
            label: name.into(),
            size,
            block_size: None,
            below,
        }
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn ranges_are_found_from_the_disks_upward() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store("disk", 1000, Below::Disk));
        let dark = graph.add(store("dark", 1000, Below::Opaque("it is".into())));
        let segment = |start, end, store, offset| Segment {
            range: range(start, end),
            below: Place { store, offset },
        };
        let segments = vec![
            segment(0, 100, disk, 0),
            segment(100, 200, disk, 500),
            segment(200, 300, dark, 0),
            segment(350, 450, disk, 950),
        ];
        let lower = graph.add(store("lower", 500, Below::Segments(segments)));
        let segments = vec![segment(0, 300, lower, 150)];
        let upper = graph.add(store("upper", 300, Below::Segments(segments)));
        let reach = Reach::of(&graph);
        assert_eq!(reach.stores[lower.index()], [range(0, 200), range(350, 400)]);
        assert_eq!(reach.stores[upper.index()], [range(0, 50), range(200, 250)]);
        let at = |offset, len| reach.at(Place { store: upper, offset }, len);
        assert_eq!(at(10, 1000), (true, 40));
        assert_eq!(at(10, 20), (true, 20));
        assert_eq!(at(50, 1000), (false, 150));
        assert_eq!(at(250, 50), (false, 50));
    }

    #[test]
    fn a_piece_with_one_bad_column_is_not_reached() {
        let mut graph = StoreGraph::new();
        let disk = graph.add(store("disk", 1000, Below::Disk));
        let stripes = |start, second| {
            let columns = [0, second].map(|offset| Place { store: disk, offset }).to_vec();
            Stripes::new(range(start, start + 400), 10, columns).unwrap()
        };
        let pieces = vec![stripes(0, 800), stripes(400, 801), stripes(800, 300)];
        let striped = graph.add(store("striped", 1200, Below::Striped(pieces)));
        let reach = Reach::of(&graph);
        assert_eq!(reach.stores[striped.index()], [range(0, 400), range(800, 1200)]);
    }
}
