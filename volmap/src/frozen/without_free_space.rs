//! A frozen file system without what nobody has of it: that is zeroes here, whatever lies there.

use std::any::Any;
use std::sync::Arc;

use super::free_space::{FreeSpace, NoFreeSpace};
use super::{
    ChangedMap, CopyAreaUse, Description, FrozenError, FrozenImage, NoLineage, Status, StatusExtent,
};
use crate::generation::{Generation, GenerationClock};
use crate::map::{Content, Extent};
use crate::range::ByteRange;
use crate::store::{Place, StoreGraph};

/// See the module. One question and one read say the same of every byte, whichever way it is got.
struct WithoutFreeSpace {
    image: Arc<dyn FrozenImage>,
    free: FreeSpace,
    /// Of what nobody has: it is zeroes for good.
    zeroes: Generation,
}

/// The same frozen image, with zeroes for all that its file system has given to nobody.
///
/// # Errors
/// [`NoFreeSpace`]: it is as it was.
pub fn without_free_space(
    image: &Arc<dyn FrozenImage>,
    clock: &GenerationClock,
) -> Result<Arc<dyn FrozenImage>, NoFreeSpace> {
    Ok(Arc::new(WithoutFreeSpace {
        free: image.free_space()?,
        image: Arc::clone(image),
        zeroes: clock.next(),
    }))
}

impl FrozenImage for WithoutFreeSpace {
    fn description(&self) -> &Description {
        self.image.description()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn graph(&self) -> Arc<StoreGraph> {
        self.image.graph()
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        let Status { graph, extents } = self.image.status(range, limit)?;
        let parts = extents.iter().flat_map(|extent| {
            self.free.within(extent.range).map(|(range, is_free)| {
                if is_free {
                    return StatusExtent {
                        range,
                        content: Content::Hole,
                        generation: self.zeroes,
                        place: None,
                    };
                }
                let behind = range.start() - extent.range.start();
                let place = extent.place.map(|place| Place {
                    offset: place.offset + behind,
                    ..place
                });
                StatusExtent {
                    range,
                    place,
                    ..*extent
                }
            })
        });
        let extents = StatusExtent::join(parts, limit.max(1));
        Ok(Status { graph, extents })
    }

    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        let extents = self.image.content(range, limit)?;
        let mut joined: Vec<Extent> = Vec::new();
        for extent in extents {
            for (range, is_free) in self.free.within(extent.range) {
                let content = if is_free { Content::Hole } else { extent.content };
                let last = joined.last_mut().filter(|last| last.content == content);
                if let Some(last) = last
                    && let Some(both) = ByteRange::from_bounds(last.range.start(), range.end())
                {
                    last.range = both;
                } else if joined.len() == limit.max(1) {
                    return Ok(joined);
                } else {
                    joined.push(Extent { range, content });
                }
            }
        }
        Ok(joined)
    }

    fn answers_at_once(&self) -> bool {
        self.image.answers_at_once()
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.image.stands()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        let Some(range) = ByteRange::new(offset, buf.len() as u64) else {
            return Ok(());
        };
        let mut rest = buf;
        for (part, is_free) in self.free.within(range) {
            let len = usize::try_from(part.len()).expect("it lies in the buffer");
            let (piece, behind) = rest.split_at_mut(len);
            if is_free {
                piece.fill(0);
            } else {
                self.image.read_at(part.start(), piece)?;
            }
            rest = behind;
        }
        // Zeroes too are given out only of what stands.
        self.image.stands()
    }

    fn copy_area(&self) -> Option<CopyAreaUse> {
        self.image.copy_area()
    }

    fn free_space(&self) -> Result<FreeSpace, NoFreeSpace> {
        Ok(self.free.clone())
    }

    fn left_out(&self) -> Option<u64> {
        Some(self.free.bytes())
    }

    /// What was given to somebody since, or given back, has changed: it was zeroes here, or is.
    fn changed_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let older: &dyn Any = older;
        let older = older.downcast_ref::<Self>().ok_or(NoLineage::Unrelated)?;
        let mut changed = self.image.changed_since(&*older.image)?;
        let whole = ByteRange::new(0, self.size().min(older.size()));
        for (part, is_free) in whole.into_iter().flat_map(|whole| self.free.within(whole)) {
            for (part, was_free) in older.free.within(part) {
                if is_free != was_free {
                    changed.mark(part);
                }
            }
        }
        Ok(changed)
    }

    fn keep_as_parent(&self) -> bool {
        self.image.keep_as_parent()
    }

    fn can_be_parent(&self) -> bool {
        self.image.can_be_parent()
    }

    fn thaw(&self) {
        self.image.thaw();
    }
}

#[cfg(test)]
mod tests;
