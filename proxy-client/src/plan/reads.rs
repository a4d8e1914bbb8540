//! The direct reads of a batch: pieces that lie beside each other on a disk are read as one.

use volmap::range::ByteRange;

use super::mapped::{DiskPlace, MappedExtent};

/// Bytes of the volume, and where a read of the disk holds them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scatter {
    /// The bytes of the volume.
    pub volume: ByteRange,
    /// Byte offset on the disk.
    pub disk_offset: u64,
}

/// One read from a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectRead {
    /// Number of the disk.
    pub disk: u16,
    /// What is read of it.
    pub range: ByteRange,
    /// Where the bytes belong; what lies between them belongs nowhere.
    pub scatter: Vec<Scatter>,
}

/// How pieces are joined to reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joining {
    /// Bytes of the longest read.
    pub longest: u64,
    /// Pieces that are this long stay reads of their own.
    pub long: u64,
    /// Bytes between two pieces that are read along.
    pub gap: u64,
}

/// The reads that get every placed extent, sorted by disk and offset, joined as `how` says and `may_read` allows.
pub fn gather(
    extents: &[MappedExtent],
    how: Joining,
    may_read: impl Fn(u16, ByteRange) -> bool,
) -> Vec<DirectRead> {
    let mut pieces: Vec<(DiskPlace, ByteRange)> = Vec::new();
    for extent in extents {
        let Some(place) = extent.place else { continue };
        let mut at = 0;
        while let Some(volume) = ByteRange::from_bounds(
            extent.range.start() + at,
            extent.range.end().min(extent.range.start() + at + how.longest),
        ) {
            pieces.push((
                DiskPlace {
                    disk: place.disk,
                    offset: place.offset + at,
                },
                volume,
            ));
            at += volume.len();
        }
    }
    pieces.sort_unstable_by_key(|(place, volume)| (place.disk, place.offset, volume.start()));

    let mut reads: Vec<DirectRead> = Vec::new();
    for (place, volume) in pieces {
        let Some(wanted) = ByteRange::new(place.offset, volume.len()) else {
            continue;
        };
        let scatter = Scatter {
            volume,
            disk_offset: place.offset,
        };
        if let Some(last) = reads.last_mut()
            && last.disk == place.disk
            && wanted.start() <= last.range.end().saturating_add(how.gap)
            && last.range.len().min(wanted.len()) < how.long
            && let Some(joined) =
                ByteRange::from_bounds(last.range.start(), last.range.end().max(wanted.end()))
            && joined.len() <= how.longest
            && (wanted.start() <= last.range.end() || may_read(place.disk, joined))
        {
            last.range = joined;
            last.scatter.push(scatter);
        } else {
            reads.push(DirectRead {
                disk: place.disk,
                range: wanted,
                scatter: vec![scatter],
            });
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use volmap::generation::Generation;
    use volmap::map::Content;

    use super::*;

    proptest! {
        #[test]
        fn reads_hold_every_placed_byte_once(
            pieces in proptest::collection::vec((1u64..90, proptest::option::of((0u16..2, 0u64..500))), 1..40),
            longest in 1u64..64,
            long in 1u64..64,
            gap in 0u64..30,
            forbidden in proptest::option::of(0u64..600),
        ) {
            let mut at = 0;
            let extents: Vec<MappedExtent> = pieces.iter().map(|&(len, place)| {
                let range = ByteRange::new(at, len).unwrap();
                at = range.end();
                MappedExtent {
                    range,
                    content: Content::Data,
                    generation: Generation::from_wire(1),
                    place: place.map(|(disk, offset)| DiskPlace { disk, offset }),
                }
            }).collect();

            let mut got = std::collections::BTreeMap::new();
            let how = Joining { longest, long, gap };
            let may_read = |_, range: ByteRange| forbidden.is_none_or(|byte| !range.contains(byte));
            for read in gather(&extents, how, may_read) {
                prop_assert!(read.range.len() <= longest);
                let mut at = read.range.start();
                for piece in &read.scatter {
                    let skipped = ByteRange::from_bounds(at, piece.disk_offset);
                    prop_assert!(skipped.is_none_or(|s| s.len() <= gap && may_read(read.disk, s)));
                    at = at.max(piece.disk_offset + piece.volume.len());
                }
                prop_assert_eq!(at, read.range.end());
                for piece in &read.scatter {
                    let on_disk = ByteRange::new(piece.disk_offset, piece.volume.len()).unwrap();
                    prop_assert!(read.range.covers(on_disk));
                    for byte in 0..piece.volume.len() {
                        let earlier = got.insert(piece.volume.start() + byte, (read.disk, piece.disk_offset + byte));
                        prop_assert_eq!(earlier, None);
                    }
                }
            }
            let expected: std::collections::BTreeMap<_, _> = extents.iter().filter_map(|e| e.place.map(|p| (e, p)))
                .flat_map(|(e, p)| (0..e.range.len()).map(move |i| (e.range.start() + i, (p.disk, p.offset + i))))
                .collect();
            prop_assert_eq!(got, expected);
        }
    }
}
