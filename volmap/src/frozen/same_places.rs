//! What two clones certainly hold alike: what lies at one place for both.
//!
//! A place says something only while *both* files hold it. Then neither can be overwritten there, because a file system writes elsewhere what
//! is written to a shared place; and what lies there is the content of both. A place that was read of one file before the other one
//! took it may have been given back and used anew in between. So:
//!
//! * both maps are read now, and none that was kept; the newer one first;
//! * whether both files hold what they held is asked after the second map was read.

use std::io;

use super::{ChangedMap, NoLineage};
use crate::layers::FileExtents;
use crate::map::Content;
use crate::range::ByteRange;

/// A file that is compared with another one of its file system.
pub(super) trait Side {
    /// Flushes and maps it, as it is when this is called.
    fn extents(&self) -> io::Result<FileExtents>;

    /// Whether its bytes are the frozen ones, and nothing was moved since the comparison began; if not, why.
    fn check(&self) -> Result<(), String>;
}

/// What changed between two frozen images, of which the newer one is of `size` bytes.
///
/// # Errors
/// [`NoLineage::Older`], [`NoLineage::Newer`], [`NoLineage::Unreadable`].
pub(super) fn compare(older: &dyn Side, newer: &dyn Side, size: u64) -> Result<ChangedMap, NoLineage> {
    let unreadable = |error: io::Error| NoLineage::Unreadable(error.to_string());
    let now = newer.extents().map_err(unreadable)?;
    let then = older.extents().map_err(unreadable)?;
    older.check().map_err(NoLineage::Older)?;
    newer.check().map_err(NoLineage::Newer)?;
    Ok(ChangedMap::all_but(size, same(&then, &now)))
}

/// Where both have the same place, or both nothing, in order. Whatever has no place is not known to be the same, and neither is what was
/// data and is zeroes now, or zeroes of another kind.
pub(super) fn same(then: &FileExtents, now: &FileExtents) -> Vec<ByteRange> {
    let mut same = Vec::new();
    overlaps(
        then.located.iter(),
        now.located.iter(),
        |located| located.range,
        |range, then, now| {
            let then = then.physical + (range.start() - then.range.start());
            let now = now.physical + (range.start() - now.range.start());
            if then == now {
                same.push(range);
            }
        },
    );
    overlaps(
        then.content.extents(),
        now.content.extents(),
        |extent| extent.range,
        |range, then, now| {
            if then.content == now.content && now.content != Content::Data {
                same.push(range);
            }
        },
    );
    same.sort_unstable_by_key(|range| range.start());
    same
}

/// Tells `see` where elements of two sorted lists overlap.
fn overlaps<T>(
    a: impl Iterator<Item = T>,
    b: impl Iterator<Item = T>,
    range_of: impl Fn(&T) -> ByteRange,
    mut see: impl FnMut(ByteRange, &T, &T),
) {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    while let (Some(one), Some(other)) = (a.peek(), b.peek()) {
        let (first, second) = (range_of(one), range_of(other));
        if let Some(both) = first.intersection(second) {
            see(both, one, other);
        }
        if first.end() <= second.end() {
            a.next();
        } else {
            b.next();
        }
    }
}

#[cfg(test)]
mod tests;
