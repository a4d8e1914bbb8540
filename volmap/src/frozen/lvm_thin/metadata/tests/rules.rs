//! Each rule of the format, broken.

use super::super::{MetadataError, PoolGeometry, Run, ThinMap};
use super::{Builder, Device, Memory};

const GEOMETRY: PoolGeometry = PoolGeometry {
    data_block_size: 64 << 10,
    data_blocks: 10_000,
};

fn device(mappings: &[(u64, u64, u64)]) -> Device {
    Device {
        id: 2,
        created: 3,
        mappings: mappings.to_vec(),
    }
}

fn read(metadata: &Memory) -> Result<ThinMap, MetadataError> {
    ThinMap::read(metadata, 0, 2, GEOMETRY)
}

fn why(metadata: &Memory) -> String {
    read(metadata).unwrap_err().to_string()
}

/// Metadata of device 2 with this root of mappings, and details that tell `mapped` blocks.
fn around(mut builder: Builder, root: u64, mapped: u64) -> Memory {
    let mut details = mapped.to_le_bytes().to_vec();
    details.extend([0; 8]);
    details.extend(3u32.to_le_bytes());
    details.extend([0; 4]);
    let mapping_root = builder.tree(8, &[(2, root.to_le_bytes().to_vec())]);
    let details_root = builder.tree(24, &[(2, details)]);
    builder.finish(mapping_root, details_root)
}

fn mapping(thin: u64, data: u64) -> (u64, Vec<u8>) {
    (thin, (data << 24).to_le_bytes().to_vec())
}

fn child(key: u64, block: u64) -> (u64, Vec<u8>) {
    (key, block.to_le_bytes().to_vec())
}

#[test]
fn runs_join_where_both_sides_go_on() {
    let metadata = Builder::metadata(&[
        device(&[(0, 7, 0), (1, 8, 2), (2, 20, 0), (5, 21, 0), (6, 22, 1)]),
        Device {
            id: 9,
            created: 1,
            mappings: vec![(0, 1, 0)],
        },
    ]);
    let run = |thin, data, len| Run { thin, data, len };
    let map = read(&metadata).unwrap();
    assert_eq!(map.runs, [run(0, 7, 2), run(2, 20, 1), run(5, 21, 2)]);
    assert_eq!(map.mapped_blocks, 5);
}

#[test]
fn a_device_without_mappings_has_an_empty_map() {
    assert!(read(&Builder::metadata(&[device(&[])])).unwrap().runs.is_empty());
}

#[test]
fn trees_of_several_levels_are_read_in_order() {
    let mappings: Vec<_> = (0..9_000).map(|n| (n * 3, 9_999 - n, 0)).collect();
    let map = read(&Builder::metadata(&[device(&mappings)])).unwrap();
    let read: Vec<_> = map.runs.iter().map(|r| (r.thin, r.data, 0)).collect();
    assert_eq!(read, mappings);
}

#[test]
fn a_device_that_is_not_there_has_no_map() {
    let metadata = Builder::metadata(&[device(&[(0, 7, 0)])]);
    for other in [0, 1, 3, u64::MAX] {
        let answer = ThinMap::read(&metadata, 0, other, GEOMETRY);
        assert!(matches!(answer, Err(MetadataError::NoDevice { device }) if device == other));
    }
}

#[test]
fn a_snapshot_that_was_written_to_is_not_the_frozen_one() {
    let metadata = |time| Builder::metadata(&[device(&[(0, 7, 0), (4, 9, time)])]);
    assert!(read(&metadata(2)).is_ok());
    assert!(matches!(
        read(&metadata(3)),
        Err(MetadataError::Written { thin: 4 })
    ));
    let mut late = device(&[(0, 7, 0)]);
    late.created = 1 << 24;
    assert!(matches!(
        read(&Builder::metadata(&[late])),
        Err(MetadataError::TimesUsedUp { .. })
    ));
}

#[test]
fn a_data_block_past_the_end_of_the_pool_is_refused() {
    let metadata = |data| Builder::metadata(&[device(&[(0, data, 0)])]);
    assert!(read(&metadata(9_999)).is_ok());
    assert!(matches!(
        read(&metadata(10_000)),
        Err(MetadataError::DataOutside {
            thin: 0,
            data: 10_000
        })
    ));
}

#[test]
fn the_count_of_mapped_blocks_has_to_come_out() {
    for (told, fits) in [(1, false), (2, true), (3, false)] {
        let mut builder = Builder::new();
        let root = builder.tree(8, &[mapping(0, 7), mapping(1, 9)]);
        assert_eq!(read(&around(builder, root, told)).is_ok(), fits, "{told}");
    }
}

#[test]
fn a_superblock_of_another_kind_is_refused() {
    let good = Builder::metadata(&[device(&[(0, 7, 0)])]);
    for (at, value, says) in [
        (32, 1, "the mark"),
        (40, 3, "version 3"),
        (40, 0, "version 0"),
        (336, 127, "data blocks"),
        (336, 0, "data blocks"),
        (336, 192, "data blocks"),
        (336, 256, "131072 bytes"),
        (340, 16, "metadata blocks"),
        (360, 1, "incompatible"),
        (8, 5, "block 5"),
    ] {
        let mut bad = good.clone();
        bad.block_mut(0)[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        assert!(why(&bad).contains("checksum"), "{at}");
        bad.seal(0);
        assert!(why(&bad).contains(says), "{at}: {}", why(&bad));
    }
    assert!(
        ThinMap::read(&good, good.0.len() as u64 / 4096, 2, GEOMETRY).is_err(),
        "past the end"
    );
    assert!(
        ThinMap::read(&good, 1, 2, GEOMETRY).is_err(),
        "a node is no superblock"
    );
}

#[test]
fn a_node_of_another_kind_is_refused() {
    let good = Builder::metadata(&[device(&[(0, 7, 0), (1, 9, 0)])]);
    // Its leaf of mappings is the first block behind the superblock.
    for (at, value, says) in [
        (4, 0, "neither"),
        (4, 3, "neither"),
        (4, 1, "past the end"),
        (8, 2, "block 2"),
        (16, 253, "room"),
        (16, u32::MAX, "room"),
        (20, 1, "room"),
        (20, u32::MAX, "room"),
        (24, 24, "size"),
        (32, 1, "rise"),
        (32, 2, "rise"),
    ] {
        let mut bad = good.clone();
        bad.block_mut(1)[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(why(&bad).contains("checksum"), "{at}");
        bad.seal(1);
        assert!(why(&bad).contains(says), "{at}: {}", why(&bad));
    }
}

#[test]
fn only_a_root_may_be_empty() {
    let mut builder = Builder::new();
    let empty = builder.tree(8, &[]);
    let root = builder.node(false, 8, &[child(0, empty)]);
    assert!(why(&around(builder, root, 0)).contains("empty"));
    let mut builder = Builder::new();
    let root = builder.node(false, 8, &[]);
    assert!(why(&around(builder, root, 0)).contains("empty"));
}

#[test]
fn a_tree_that_runs_in_circles_is_refused() {
    let mut builder = Builder::new();
    // The block that comes next: itself.
    let root = builder.node(false, 8, &[child(0, 1)]);
    assert_eq!(root, 1);
    assert!(matches!(
        read(&around(builder, root, 0)),
        Err(MetadataError::Endless { root: 1 })
    ));
}

#[test]
fn a_tree_has_no_more_levels_than_its_keys_need() {
    for (inner, fits) in [(7, true), (8, false)] {
        let mut builder = Builder::new();
        let mut root = builder.tree(8, &[mapping(0, 7)]);
        for _ in 0..inner {
            root = builder.node(false, 8, &[child(0, root)]);
        }
        assert_eq!(read(&around(builder, root, 1)).is_ok(), fits, "{inner}");
    }
}

#[test]
fn leaves_lie_on_one_level() {
    let mut builder = Builder::new();
    let low = builder.tree(8, &[mapping(0, 1)]);
    let leaf = builder.tree(8, &[mapping(5, 2)]);
    let high = builder.node(false, 8, &[child(5, leaf)]);
    let root = builder.node(false, 8, &[child(0, low), child(5, high)]);
    assert!(matches!(
        read(&around(builder, root, 2)),
        Err(MetadataError::Uneven { .. })
    ));
}

#[test]
fn a_leaf_that_is_hung_up_twice_is_refused() {
    let mut builder = Builder::new();
    let leaf = builder.tree(8, &[mapping(5, 7), mapping(6, 8)]);
    let root = builder.node(false, 8, &[child(0, leaf), child(6, leaf)]);
    assert!(why(&around(builder, root, 4)).contains("neighbour"));
    let mut builder = Builder::new();
    let leaf = builder.tree(8, &[mapping(5, 7)]);
    let root = builder.node(false, 8, &[child(0, leaf), child(6, leaf)]);
    assert!(why(&around(builder, root, 2)).contains("rise"));
}

#[test]
fn a_child_keeps_within_the_keys_of_its_node() {
    let tree = |first: u64, last: u64| {
        let mut builder = Builder::new();
        let low = builder.tree(8, &[mapping(first, 1), mapping(last, 2)]);
        let high = builder.tree(8, &[mapping(20, 3)]);
        let root = builder.node(false, 8, &[child(10, low), child(20, high)]);
        around(builder, root, 3)
    };
    assert!(read(&tree(10, 19)).is_ok());
    assert!(read(&tree(11, 12)).is_ok(), "the first key may have been removed");
    assert!(why(&tree(9, 19)).contains("begin before"));
    assert!(why(&tree(10, 20)).contains("neighbour"));
}

#[test]
fn the_last_key_of_all_is_read() {
    let mut builder = Builder::new();
    let root = builder.tree(8, &[mapping(u64::MAX - 1, 1), mapping(u64::MAX, 2)]);
    let map = read(&around(builder, root, 2)).unwrap();
    assert_eq!(map.mapped_blocks, 2);
}
