//! Linear pieces of a store.

use super::Place;
use crate::range::ByteRange;

/// One linear piece of a store: `range` of it lies at `offset` of the store `below`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Bytes of the upper store.
    pub range: ByteRange,
    /// Where its first byte lies.
    pub below: Place,
}

/// Joins segments that continue each other in both address spaces, so that equal mappings compare equal.
pub fn normalise_segments(segments: &mut Vec<Segment>) {
    segments.dedup_by(|next, kept| {
        let gap_free = kept.range.end() == next.range.start() && kept.below.store == next.below.store;
        let joins = gap_free && kept.below.offset + kept.range.len() == next.below.offset;
        if joins && let Some(joined) = ByteRange::from_bounds(kept.range.start(), next.range.end()) {
            kept.range = joined;
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::super::{Below, Store, StoreGraph, StoreKind};
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn neighbours_join_only_where_both_sides_continue() {
        let mut graph = StoreGraph::new();
        let store = graph.add(Store {
            kind: StoreKind::Disk,
            identity: Identity::new("id", "d").unwrap(),
            label: "d".into(),
            size: 10_000,
            block_size: None,
            below: Below::Disk,
        });
        let segment = |start, len, offset| Segment {
            range: ByteRange::new(start, len).unwrap(),
            below: Place { store, offset },
        };
        let mut segments = vec![
            segment(0, 10, 0),
            segment(10, 10, 10),
            segment(20, 10, 50),
            segment(40, 1, 60),
        ];
        normalise_segments(&mut segments);
        assert_eq!(
            segments,
            [segment(0, 20, 0), segment(20, 10, 50), segment(40, 1, 60)]
        );
    }
}
