//! What a file became between its clone and the freeze of its file system.
//!
//! From the clone on, both share all blocks, and a write to a shared block goes elsewhere. So where, later, a stretch of the file lies at the
//! same place as that of the clone, nothing was written to it; everything else is read from the file while its file system is frozen,
//! and written into the clone after the thaw. A place that the clone holds cannot be given to anybody else meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layers::{FileExtents, file_extents};
use crate::map::Content;
use crate::range::ByteRange;
use crate::sys::file_system;

/// What a piece costs beside its bytes.
const PIECE_COST: usize = 64;

/// Sizes that differ make this much around the smaller one suspect: where a file ends within a block, what lies behind its end counts
/// once it grows. No block is larger.
const LARGEST_BLOCK: u64 = 64 << 10;

/// Where a stretch of a file lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// At this offset of the file system.
    At(u64),
    /// Nowhere: it reads as zeroes.
    Zero,
    /// Nobody tells.
    Unknown,
}

/// What has to be put into a clone.
#[derive(Debug)]
pub(super) struct Patch {
    /// The size of the file, where the clone has another.
    size: Option<u64>,
    /// In order.
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Data(u64, Vec<u8>),
    Zeroes(ByteRange),
}

/// Where a file lies.
///
/// # Errors
/// Of FIEMAP.
pub(super) fn extents(file: &File) -> io::Result<FileExtents> {
    file_extents(file, file.metadata()?.len())
}

impl Patch {
    /// What a file holds now that its clone, which lay as told `before`, does not. `None`: more than `budget` bytes.
    ///
    /// # Errors
    /// The file cannot be read or mapped.
    pub(super) fn of(file: &File, before: &FileExtents, budget: &mut usize) -> io::Result<Option<Self>> {
        let now = extents(file)?;
        let mut pieces = Vec::new();
        for (range, place) in differences(&now, before) {
            let len = usize::try_from(range.len()).map_err(io::Error::other)?;
            let cost = if place == Place::Zero { 0 } else { len } + PIECE_COST;
            let Some(rest) = budget.checked_sub(cost) else {
                return Ok(None);
            };
            *budget = rest;
            pieces.push(if place == Place::Zero {
                Piece::Zeroes(range)
            } else {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, range.start())?;
                Piece::Data(range.start(), bytes)
            });
        }
        let (size, old_size) = (now.content.size(), before.content.size());
        Ok(Some(Self {
            size: (size != old_size).then_some(size),
            pieces,
        }))
    }

    /// Whether the clone is what the file is.
    pub(super) fn is_empty(&self) -> bool {
        self.size.is_none() && self.pieces.is_empty()
    }

    /// Bytes of data.
    pub(super) fn bytes(&self) -> usize {
        let data = |piece: &Piece| match piece {
            Piece::Data(_, bytes) => bytes.len(),
            Piece::Zeroes(_) => 0,
        };
        self.pieces.iter().map(data).sum()
    }

    /// Makes the clone what the file was.
    ///
    /// # Errors
    /// Of the file system; the clone is good for nothing then.
    pub(super) fn apply(&self, clone: &File) -> io::Result<()> {
        if let Some(size) = self.size {
            clone.set_len(size)?;
        }
        for piece in &self.pieces {
            match piece {
                Piece::Data(offset, bytes) => clone.write_all_at(bytes, *offset)?,
                Piece::Zeroes(range) => file_system::punch_hole(clone, range.start(), range.len())?,
            }
        }
        clone.sync_all()
    }
}

/// Where the file lies elsewhere than its clone, in order, with its own place there.
fn differences(now: &FileExtents, before: &FileExtents) -> Vec<(ByteRange, Place)> {
    let (size, old_size) = (now.content.size(), before.content.size());
    let suspect = if size == old_size {
        None
    } else {
        let end = size.min(old_size);
        ByteRange::from_bounds(end - end % LARGEST_BLOCK, end.next_multiple_of(LARGEST_BLOCK))
    };
    let old = places(before);
    let mut next = 0;
    let mut found: Vec<(ByteRange, Place)> = Vec::new();
    for (range, place) in places(now) {
        let mut at = range.start();
        while at < range.end() {
            while old.get(next).is_some_and(|(range, _)| range.end() <= at) {
                next += 1;
            }
            // Behind the end of the clone there will be zeroes.
            let (end, was) = match old.get(next) {
                Some((range, was)) => (range.end(), was.ahead(at - range.start())),
                None => (u64::MAX, Place::Zero),
            };
            let end = end.min(range.end());
            let here = place.ahead(at - range.start());
            if let Some(piece) = ByteRange::from_bounds(at, end) {
                if here == Place::Unknown || here != was {
                    push(&mut found, piece, here);
                } else if let Some(piece) = suspect.and_then(|suspect| suspect.intersection(piece)) {
                    push(&mut found, piece, here);
                }
            }
            at = end;
        }
    }
    found
}

/// Joins what is read in one go.
fn push(found: &mut Vec<(ByteRange, Place)>, range: ByteRange, place: Place) {
    if let Some((last, of)) = found.last_mut()
        && last.end() == range.start()
        && (*of == Place::Zero) == (place == Place::Zero)
        && let Some(joined) = ByteRange::from_bounds(last.start(), range.end())
    {
        *last = joined;
    } else {
        found.push((range, place));
    }
}

impl Place {
    /// The place so many bytes further on.
    fn ahead(self, by: u64) -> Self {
        match self {
            Self::At(offset) => Self::At(offset.saturating_add(by)),
            other => other,
        }
    }
}

/// Every byte of a file, in order.
fn places(extents: &FileExtents) -> Vec<(ByteRange, Place)> {
    let mut located = extents.located.iter().peekable();
    let mut places = Vec::new();
    for extent in extents.content.extents() {
        if extent.content != Content::Data {
            places.push((extent.range, Place::Zero));
            continue;
        }
        let mut at = extent.range.start();
        while at < extent.range.end() {
            while located.peek().is_some_and(|l| l.range.end() <= at) {
                located.next();
            }
            let (end, place) = match located.peek() {
                Some(l) if l.range.start() <= at => {
                    (l.range.end(), Place::At(l.physical + (at - l.range.start())))
                }
                Some(l) => (l.range.start(), Place::Unknown),
                None => (extent.range.end(), Place::Unknown),
            };
            let end = end.min(extent.range.end());
            places.extend(ByteRange::from_bounds(at, end).map(|range| (range, place)));
            at = end;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Located;
    use crate::map::{ContentMap, Extent};

    const BLOCK: u64 = 4096;

    /// A file of so many bytes; of each run: first block, blocks, and the block where it lies, or none for zeroes.
    fn file(size: u64, runs: &[(u64, u64, Option<u64>)]) -> FileExtents {
        let range = |start: u64, blocks: u64| {
            ByteRange::from_bounds(start * BLOCK, ((start + blocks) * BLOCK).min(size)).unwrap()
        };
        FileExtents {
            content: ContentMap::from_extents(
                size,
                runs.iter().map(|&(start, blocks, at)| Extent {
                    range: range(start, blocks),
                    content: if at.is_some() {
                        Content::Data
                    } else {
                        Content::Zero
                    },
                }),
            ),
            located: runs
                .iter()
                .filter_map(|&(start, blocks, at)| {
                    Some(Located {
                        range: range(start, blocks),
                        physical: at? * BLOCK,
                    })
                })
                .collect(),
        }
    }

    fn differing(now: &FileExtents, before: &FileExtents) -> Vec<(u64, u64, bool)> {
        differences(now, before)
            .into_iter()
            .map(|(range, place)| (range.start(), range.end(), place == Place::Zero))
            .collect()
    }

    #[test]
    fn what_lies_where_it_lay_is_the_same_however_it_is_cut() {
        let before = file(8 * BLOCK, &[(0, 4, Some(100)), (6, 2, Some(200))]);
        let cut = file(
            8 * BLOCK,
            &[(0, 1, Some(100)), (1, 3, Some(101)), (6, 2, Some(200))],
        );
        assert_eq!(differing(&before, &before), []);
        assert_eq!(differing(&cut, &before), []);
        assert_eq!(differing(&before, &cut), []);
    }

    #[test]
    fn what_moved_is_read_and_what_was_punched_is_zero() {
        let before = file(8 * BLOCK, &[(0, 8, Some(100))]);
        let now = file(
            8 * BLOCK,
            &[
                (0, 2, Some(100)),
                (2, 1, Some(300)),
                (3, 1, None),
                (4, 4, Some(104)),
            ],
        );
        assert_eq!(
            differing(&now, &before),
            [(2 * BLOCK, 3 * BLOCK, false), (3 * BLOCK, 4 * BLOCK, true)]
        );
        // A hole that was filled, and one that was allocated without being written to.
        let holes = file(8 * BLOCK, &[]);
        let filled = file(8 * BLOCK, &[(1, 1, Some(9)), (2, 1, None)]);
        assert_eq!(differing(&filled, &holes), [(BLOCK, 2 * BLOCK, false)]);
    }

    #[test]
    fn data_that_nobody_can_place_is_read() {
        let before = file(4 * BLOCK, &[(0, 4, Some(100))]);
        let mut now = file(4 * BLOCK, &[(0, 4, Some(100))]);
        now.located = vec![Located {
            range: ByteRange::new(0, BLOCK).unwrap(),
            physical: 100 * BLOCK,
        }];
        assert_eq!(differing(&now, &before), [(BLOCK, 4 * BLOCK, false)]);
    }

    #[test]
    fn around_an_end_that_moved_everything_is_suspect() {
        let before = file(10_000, &[(0, 3, Some(100))]);
        let longer = file(200_000, &[(0, 3, Some(100)), (40, 9, Some(500))]);
        assert_eq!(
            differing(&longer, &before),
            [
                (0, 3 * BLOCK, false),
                (3 * BLOCK, LARGEST_BLOCK, true),
                (40 * BLOCK, 200_000, false)
            ]
        );
        let shorter = file(5000, &[(0, 2, Some(100))]);
        assert_eq!(differing(&shorter, &before), [(0, 5000, false)]);
    }
}
