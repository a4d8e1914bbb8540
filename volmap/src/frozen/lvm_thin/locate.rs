//! From runs of blocks to extents of bytes.

use super::metadata::{Run, ThinMap};
use crate::layers::{FileExtents, Located, segments_within};
use crate::map::{Content, ContentMap, Extent};
use crate::range::ByteRange;
use crate::store::{Below, Place, Segment, StoreGraph, StoreId};

/// What a thin volume of `size` bytes holds, and where it lies on the `data` device of its pool. What is not mapped is a hole: the
/// kernel reads it as zeroes, whatever the pool held before.
pub(super) fn locate(
    graph: &StoreGraph,
    map: &ThinMap,
    size: u64,
    block_size: u64,
    data: StoreId,
) -> (ContentMap, Below) {
    let segments: Vec<Segment> = (map.runs.iter())
        .filter_map(|run| segment(run, size, block_size, data))
        .collect();
    let extents = segments.iter().map(|segment| Extent {
        range: segment.range,
        content: Content::Data,
    });
    let content = ContentMap::from_extents(size, extents);
    (content, segments_within(graph, segments))
}

/// The same, with places in the data device of the pool alone.
pub(super) fn extents(map: &ThinMap, size: u64, block_size: u64) -> FileExtents {
    let located = map.runs.iter().filter_map(|run| {
        let (range, physical) = bytes_of(run, size, block_size)?;
        Some(Located { range, physical })
    });
    let located: Vec<Located> = located.collect();
    let data = located.iter().map(|located| Extent {
        range: located.range,
        content: Content::Data,
    });
    FileExtents {
        content: ContentMap::from_extents(size, data),
        located,
    }
}

fn segment(run: &Run, size: u64, block_size: u64, data: StoreId) -> Option<Segment> {
    let (range, offset) = bytes_of(run, size, block_size)?;
    Some(Segment {
        range,
        below: Place { store: data, offset },
    })
}

/// A run as bytes, and where it begins in the pool; `None` for one behind the end of a volume that was made smaller.
fn bytes_of(run: &Run, size: u64, block_size: u64) -> Option<(ByteRange, u64)> {
    let start = run.thin.checked_mul(block_size)?;
    let len = run.len.saturating_mul(block_size);
    let range = ByteRange::from_bounds(start, start.saturating_add(len).min(size))?;
    // The data block lies in the pool, as was checked; a product that does not fit would lie outside of any device.
    let offset = run.data.checked_mul(block_size)?;
    Some((range, offset))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Identity;
    use crate::store::{Store, StoreKind};

    const BLOCK: u64 = 64 << 10;

    fn graph(data_size: u64) -> (StoreGraph, StoreId) {
        let mut graph = StoreGraph::new();
        let data = graph.add(Store {
            kind: StoreKind::Disk,
            identity: Identity::from_operator("data").unwrap(),
            label: "data".into(),
            size: data_size,
            block_size: None,
            below: Below::Disk,
        });
        (graph, data)
    }

    fn map(runs: &[(u64, u64, u64)]) -> ThinMap {
        let run = |&(thin, data, len): &(u64, u64, u64)| Run { thin, data, len };
        ThinMap {
            runs: runs.iter().map(run).collect(),
            mapped_blocks: runs.iter().map(|run| run.2).sum(),
        }
    }

    fn located(runs: &[(u64, u64, u64)], size: u64, data_size: u64) -> (ContentMap, Below) {
        let (graph, data) = graph(data_size);
        locate(&graph, &map(runs), size, BLOCK, data)
    }

    #[test]
    fn what_is_mapped_is_data_and_all_else_is_a_hole() {
        let (content, below) = located(&[(1, 7, 2), (5, 0, 1)], 8 * BLOCK, 10 * BLOCK);
        let contents: Vec<_> = content
            .extents()
            .map(|e| (e.range.start() / BLOCK, e.range.len() / BLOCK, e.content))
            .collect();
        assert_eq!(
            contents,
            [
                (0, 1, Content::Hole),
                (1, 2, Content::Data),
                (3, 2, Content::Hole),
                (5, 1, Content::Data),
                (6, 2, Content::Hole),
            ]
        );
        let Below::Segments(segments) = below else {
            panic!("not mapped")
        };
        let places: Vec<_> = segments.iter().map(|s| s.below.offset / BLOCK).collect();
        assert_eq!(places, [7, 0]);
    }

    #[test]
    fn a_volume_that_was_made_smaller_is_cut_within_a_block() {
        let (content, below) = located(&[(0, 3, 2), (9, 1, 1)], BLOCK + 4096, 10 * BLOCK);
        assert_eq!(content.size(), BLOCK + 4096);
        let Below::Segments(segments) = below else {
            panic!("not mapped")
        };
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].range.end(), BLOCK + 4096);
    }

    #[test]
    fn a_map_that_reaches_past_the_data_device_is_not_believed() {
        assert!(matches!(
            located(&[(0, 9, 1)], BLOCK, 10 * BLOCK).1,
            Below::Segments(_)
        ));
        assert!(matches!(
            located(&[(0, 10, 1)], BLOCK, 10 * BLOCK).1,
            Below::Opaque(_)
        ));
        assert!(matches!(
            located(&[(0, 9, 2)], 2 * BLOCK, 10 * BLOCK).1,
            Below::Opaque(_)
        ));
    }

    proptest! {
        #[test]
        fn map_is_total(pieces in proptest::collection::vec((0..9u64, 1..9u64, 0..1000u64), 0..40), size in 0..400u64) {
            let (mut at, mut runs) = (0, Vec::new());
            for (gap, len, data) in pieces {
                at += gap;
                runs.push((at, data, len));
                at += len;
            }
            let size = size * 4096;
            let (content, below) = located(&runs, size, 2000 * BLOCK);
            let mut end = 0;
            for extent in content.extents() {
                prop_assert_eq!(extent.range.start(), end);
                end = extent.range.end();
            }
            prop_assert_eq!(end, size);
            let Below::Segments(segments) = below else { panic!("not mapped") };
            for segment in segments {
                let block = segment.range.start() / BLOCK;
                let run = runs.iter().find(|r| r.0 <= block && block < r.0 + r.2).unwrap();
                prop_assert_eq!(segment.below.offset, run.1 * BLOCK);
                prop_assert!(content.within(segment.range).all(|e| e.content == Content::Data));
            }
        }
    }
}
