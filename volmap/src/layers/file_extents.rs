//! What a file holds and where, by FIEMAP and its flags; or only what it holds, by SEEK_DATA.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek};

use crate::map::{Content, ContentMap, Extent, Runs};
use crate::range::ByteRange;
use crate::sys::fiemap::{self, ExtentFlags, RawExtent};

/// How often a file that is still settling is flushed and asked again.
const ROUNDS: usize = 3;

/// A stretch of a file that lies in one piece in its file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Located {
    /// Bytes of the file.
    pub(crate) range: ByteRange,
    /// Byte offset in the file system.
    pub(crate) physical: u64,
}

/// What a file holds, and where as far as that may be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileExtents<P = Located> {
    pub(crate) content: ContentMap,
    /// Sorted; data outside of these has no location.
    pub(crate) located: Vec<P>,
}

/// What to do with an extent (docs/law.md, "FIEMAP flags").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Policy {
    /// The bytes of the file lie there.
    Located,
    /// Allocated, reads as zeroes.
    Zero,
    /// Not on the disk yet: flush and ask again.
    Unsettled,
    /// Not the bytes of the file, or nobody knows: data without a location.
    Unlocated,
}

fn policy(extent: RawExtent) -> Policy {
    use ExtentFlags as F;
    // These say nothing of the place: LAST is of the answer, MERGED and SHARED come and go with other files' changes.
    let flags = extent.flags.without(F::LAST | F::MERGED | F::SHARED);
    let foreign = F::ENCODED | F::DATA_ENCRYPTED | F::NOT_ALIGNED | F::DATA_INLINE | F::DATA_TAIL;
    if flags.intersects(foreign) {
        Policy::Unlocated
    } else if flags.intersects(F::UNKNOWN | F::DELALLOC) {
        Policy::Unsettled
    } else if flags == F::UNWRITTEN {
        Policy::Zero
    } else if flags == ExtentFlags(0) && extent.physical.checked_add(extent.len).is_some() {
        Policy::Located
    } else {
        // A flag of a later kernel.
        Policy::Unlocated
    }
}

/// The extents of a file of `size` bytes, flushed first.
///
/// # Errors
/// As [`fiemap::visit_extents`].
pub(crate) fn located(file: &File, size: u64) -> io::Result<FileExtents> {
    located_as(file, size, |located| located)
}

/// [`located`], each in the form that is wanted in the end: a file may have millions of extents, so none is kept in two forms.
///
/// # Errors
/// As [`fiemap::visit_extents`].
pub(super) fn located_as<P>(
    file: &File,
    size: u64,
    form: impl Fn(Located) -> P,
) -> io::Result<FileExtents<P>> {
    for _ in 1..ROUNDS {
        let judged = judged(file, size, &form)?;
        if !judged.is_unsettled {
            return Ok(judged.finish(size));
        }
        file.sync_all()?;
    }
    Ok(judged(file, size, form)?.finish(size))
}

fn judged<P, F: Fn(Located) -> P>(file: &File, size: u64, form: F) -> io::Result<Judged<P, F>> {
    let mut judged = Judged::new(form);
    fiemap::visit_extents(file, |extent| {
        judged.add(extent, size);
        ControlFlow::Continue(())
    })?;
    Ok(judged)
}

/// What is known while extents come in.
struct Judged<P, F> {
    content: Runs<Content>,
    located: Vec<P>,
    /// The last one, which the next may continue.
    last: Option<Located>,
    form: F,
    is_unsettled: bool,
}

impl<P, F: Fn(Located) -> P> Judged<P, F> {
    fn new(form: F) -> Self {
        Self {
            content: Runs::default(),
            located: Vec::new(),
            last: None,
            form,
            is_unsettled: false,
        }
    }

    fn add(&mut self, extent: RawExtent, size: u64) {
        // The last extent runs to the end of its block, past the end of the file.
        let end = extent.logical.saturating_add(extent.len).min(size);
        let Some(range) = ByteRange::from_bounds(extent.logical, end) else {
            return;
        };
        let policy = policy(extent);
        self.is_unsettled |= policy == Policy::Unsettled;
        let content = match policy {
            Policy::Zero => Content::Zero,
            Policy::Located => {
                self.append(Located {
                    range,
                    physical: extent.physical,
                });
                Content::Data
            }
            Policy::Unsettled | Policy::Unlocated => Content::Data,
        };
        self.content.push(range.start(), Content::Hole);
        self.content.push(range.end(), content);
    }

    /// Joins what continues in both address spaces, so that equal mappings compare equal.
    fn append(&mut self, next: Located) {
        if let Some(last) = &mut self.last
            && last.range.end() == next.range.start()
            && last.physical + last.range.len() == next.physical
            && let Some(joined) = ByteRange::from_bounds(last.range.start(), next.range.end())
        {
            last.range = joined;
        } else {
            let last = self.last.replace(next);
            self.located.extend(last.map(&self.form));
        }
    }

    fn finish(mut self, size: u64) -> FileExtents<P> {
        self.content.push(size, Content::Hole);
        self.located.extend(self.last.map(&self.form));
        self.located.shrink_to_fit();
        FileExtents {
            content: ContentMap::from_runs(self.content),
            located: self.located,
        }
    }
}

/// What a file of `size` bytes holds, without places: holes where the file system knows of them, data elsewhere.
///
/// # Errors
/// The file cannot be flushed or sought in.
pub(super) fn content_only(file: &File, size: u64) -> io::Result<ContentMap> {
    file.sync_all()?;
    let mut data = Vec::new();
    let mut at = 0;
    let seek = |at: u64, whence| -> io::Result<Result<u64, Errno>> {
        let at = libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidData)?;
        let found = lseek(file, at, whence);
        Ok(found.map(|offset| u64::try_from(offset).unwrap_or_default()))
    };
    while at < size {
        let start = match seek(at, Whence::SeekData)? {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            // No such thing on this file system: all of it is data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if at == 0 => {
                return Ok(ContentMap::uniform(size, Content::Data));
            }
            Err(error) => return Err(error.into()),
        };
        let end = seek(start, Whence::SeekHole)??;
        if start < at || end <= start {
            return Ok(ContentMap::uniform(size, Content::Data));
        }
        if let Some(range) = ByteRange::from_bounds(start, end) {
            data.push(Extent {
                range,
                content: Content::Data,
            });
        }
        at = end;
    }
    Ok(ContentMap::from_extents(size, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(logical: u64, physical: u64, len: u64, flags: u32) -> RawExtent {
        RawExtent {
            logical,
            physical,
            len,
            flags: ExtentFlags(flags),
        }
    }

    fn judge(raw: impl IntoIterator<Item = RawExtent>, size: u64) -> FileExtents {
        let mut judged = Judged::new(|located| located);
        raw.into_iter().for_each(|extent| judged.add(extent, size));
        judged.finish(size)
    }

    fn piece(start: u64, len: u64, physical: u64) -> Located {
        Located {
            range: ByteRange::new(start, len).unwrap(),
            physical,
        }
    }

    #[test]
    fn only_plain_extents_have_a_location() {
        let policies = [
            (0x0, Policy::Located),
            (0x1, Policy::Located),
            (0x3001, Policy::Located),
            (0x800, Policy::Zero),
            (0x801, Policy::Zero),
            (0x2, Policy::Unsettled),
            (0x6, Policy::Unsettled),
            (0x806, Policy::Unsettled),
            (0x8, Policy::Unlocated),
            (0x88, Policy::Unlocated),
            (0x301, Policy::Unlocated),
            (0x501, Policy::Unlocated),
            (0x100, Policy::Unlocated),
            (0x808, Policy::Unlocated),
            (0x4000, Policy::Unlocated),
            (0x4800, Policy::Unlocated),
        ];
        for (flags, expected) in policies {
            assert_eq!(policy(raw(0, 4096, 4096, flags)), expected, "{flags:#x}");
        }
        assert_eq!(policy(raw(0, u64::MAX - 5, 4096, 0)), Policy::Unlocated);
    }

    #[test]
    fn extents_are_clipped_and_joined() {
        let extents = judge(
            [
                raw(0, 65536, 4096, 0x2000),
                raw(4096, 69632, 4096, 0),
                raw(8192, 90112, 4096, 0),
                raw(16384, 94208, 8192, 0x1),
            ],
            16385,
        );
        assert_eq!(
            extents.located,
            [
                piece(0, 8192, 65536),
                piece(8192, 4096, 90112),
                piece(16384, 1, 94208)
            ]
        );
        assert_eq!(
            extents.content.extents().map(|e| e.content).collect::<Vec<_>>(),
            [Content::Data, Content::Hole, Content::Data]
        );
    }

    #[test]
    fn extents_past_the_end_of_the_file_are_dropped() {
        let extents = judge([raw(0, 65536, 4096, 0), raw(4096, 69632, 65536, 0x801)], 4096);
        assert_eq!(extents.located, [piece(0, 4096, 65536)]);
        assert_eq!(extents.content, ContentMap::uniform(4096, Content::Data));
    }

    #[test]
    fn what_cannot_be_located_is_data_and_what_is_unwritten_is_zero() {
        let extents = judge(
            [
                raw(0, 0, 4096, 0x6),
                raw(4096, 8192, 4096, 0x800),
                raw(8192, 0, 4096, 0x309),
            ],
            12288,
        );
        assert_eq!(extents.located, []);
        assert_eq!(
            extents.content.extents().map(|e| e.content).collect::<Vec<_>>(),
            [Content::Data, Content::Zero, Content::Data]
        );
    }
}
