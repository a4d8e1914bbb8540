use volmap::identity::Identity;
use volmap::layers::VolumeKind;
use volmap::map::{ContentMap, Extent};
use volmap::range::ByteRange;
use volmap::store::{Below, Place, Segment, Store, StoreGraph, StoreKind};

use super::*;

/// A file of `count` extents of 4 KiB with a hole behind each, scattered over a disk, in a file system on a partition.
fn scattered(count: u64) -> VolumeMap {
    const BLOCK: u64 = 4096;
    let mut graph = StoreGraph::new();
    let size = count * 2 * BLOCK;
    let mut add = |kind, name: &str, below| {
        graph.add(Store {
            kind,
            identity: Identity::new("id", name).unwrap(),
            label: format!("<{name}> & \"more\"\u{1}"),
            size: size * 8,
            block_size: None,
            below,
        })
    };
    let whole = |below| {
        vec![Segment {
            range: ByteRange::new(0, size * 4).unwrap(),
            below,
        }]
    };
    let disk = add(StoreKind::Disk, "disk", Below::Disk);
    let at = |store, offset| Place { store, offset };
    let partition = add(
        StoreKind::Partition,
        "part",
        Below::Segments(whole(at(disk, 1 << 20))),
    );
    let system = add(
        StoreKind::FileSystem,
        "fs",
        Below::Segments(whole(at(partition, 0))),
    );
    let sealed: BTreeMap<u64, StoreId> = (0..9)
        .map(|reason| {
            let below = Below::Opaque(format!("reason {reason} is <unknown>"));
            (
                reason,
                add(StoreKind::FileSystem, &format!("sealed{reason}"), below),
            )
        })
        .collect();
    let place = |index: u64| match index % 50 {
        7 => at(sealed[&(index % 9)], 0),
        _ => at(system, (index * 7919 % (count * 3)) * BLOCK),
    };
    let segments = (0..count).map(|index| Segment {
        range: ByteRange::new(index * 2 * BLOCK, BLOCK).unwrap(),
        below: place(index),
    });
    let top = add(StoreKind::File, "file", Below::Segments(segments.collect()));
    let extents = (0..count * 2).map(|index| Extent {
        range: ByteRange::new(index * BLOCK, BLOCK).unwrap(),
        content: match index % 4 {
            1 => Content::Hole,
            3 => Content::Zero,
            _ => Content::Data,
        },
    });
    VolumeMap {
        kind: VolumeKind::File,
        size,
        content: ContentMap::from_extents(size, extents),
        graph,
        top,
    }
}

fn drawn(map: &VolumeMap) -> String {
    let mut out = Vec::new();
    draw(map, "a <volume> & \"its\" name\u{7}", &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Every element that is opened is closed, in order; attributes are quoted; nothing stands bare that has to be escaped.
fn assert_well_formed(text: &str) {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        let end = tag.find('>').unwrap();
        let (tag, after) = (&tag[1..end], &tag[end + 1..]);
        for (at, _) in before.match_indices('&') {
            let entity = &before[at..];
            assert!(
                ["&lt;", "&gt;", "&amp;", "&quot;"]
                    .iter()
                    .any(|known| entity.starts_with(known))
            );
        }
        assert!(!before.chars().any(|c| c.is_control() && c != '\n'), "{before}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else {
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        rest = after;
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
}

#[test]
fn a_small_map_is_drawn_extent_by_extent() {
    let picture = drawn(&scattered(20));
    assert_well_formed(&picture);
    assert_eq!(
        picture.matches("<polygon").count(),
        19 * 3 + 1,
        "every chain is joined from line to line"
    );
    for line in ["volume", "file-system id:fs", "partition id:part", "disk id:disk"] {
        assert!(picture.contains(&format!(">{line}")), "{line}");
    }
    assert!(picture.contains("never direct: reason 7 is &lt;unknown&gt;"));
    assert!(!picture.contains("Too many"));
}

#[test]
fn a_map_of_very_many_extents_is_a_picture_of_bounded_size() {
    let map = scattered(25_000);
    assert_eq!(map.extents().count(), 50_000);
    let picture = drawn(&map);
    assert_well_formed(&picture);
    assert!(picture.len() < 512 << 10, "{}", picture.len());
    assert!(picture.contains("Too many extents to tell apart"));
    let joins = picture.matches("<polygon").count();
    assert!((JOINED..=JOINED * 3).contains(&joins), "{joins}");
    assert!(picture.contains("never direct: for other reasons"));
}

#[test]
fn the_limit_of_what_is_drawn_exactly_is_exact() {
    for (extents, exact) in [(EXACT_MAX, true), (EXACT_MAX + 2, false)] {
        let picture = drawn(&scattered(extents as u64 / 2));
        assert_eq!(!picture.contains("Too many"), exact, "{extents}");
        assert_well_formed(&picture);
    }
}

#[test]
fn a_volume_of_nothing_has_a_picture_too() {
    let mut map = scattered(1);
    map.content = ContentMap::uniform(0, Content::Hole);
    map.size = 0;
    assert_well_formed(&drawn(&map));
}

#[test]
fn sizes_are_told_in_the_largest_unit() {
    for (bytes, told) in [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(Size(bytes).to_string(), told);
    }
}
