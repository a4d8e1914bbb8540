//! The frozen image as others see it.

use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

use crate::cow::frozen::Frozen;
use crate::cow::moves::Source;
use crate::cow::origin::Origin;
use crate::frozen::{ChangedMap, CopyAreaUse, Description, FrozenError, FrozenImage, NoLineage, Status};
use crate::map::Content;
use crate::range::ByteRange;
use crate::store::StoreGraph;

/// A frozen image of an [`Origin`]. Dropped, it is thawed: nobody is left to read it.
pub(super) struct CowImage {
    frozen: Arc<Frozen>,
    origin: Arc<Origin>,
    description: Description,
}

impl CowImage {
    /// Of the instant `at`.
    pub(super) fn new(frozen: Arc<Frozen>, origin: Arc<Origin>, at: SystemTime) -> Self {
        let description = Description {
            frozen_at: at,
            ..frozen.description.clone()
        };
        Self {
            frozen,
            origin,
            description,
        }
    }

    /// Fills `buf` with the frozen bytes of `range`, which are data and lie in the copy area: nobody writes there
    /// again while the image stands.
    fn read_copies(&self, range: ByteRange, buf: &mut [u8]) -> Result<(), FrozenError> {
        // Collected, so that no writer waits for our I/O.
        let pieces: Vec<_> = self.frozen.state().moves.pieces(range).collect();
        for (piece, source) in pieces {
            if let Source::CopyArea { offset, .. } = source {
                self.origin
                    .copy_area
                    .read_at(offset, part_of(buf, range, piece))?;
            }
        }
        Ok(())
    }

    fn read_data(&self, range: ByteRange, buf: &mut [u8]) -> Result<(), FrozenError> {
        let before: Vec<_> = self.frozen.state().moves.pieces(range).collect();
        for (piece, source) in before {
            let part = part_of(buf, range, piece);
            match source {
                Source::CopyArea { offset, .. } => self.origin.copy_area.read_at(offset, part)?,
                Source::Origin => {
                    self.origin.backing.read_at(piece.start(), part)?;
                    // Whatever moved since may have been overwritten under our read. What has not moved by now was not: a
                    // writer goes to the origin only after the switch.
                    self.read_copies(piece, part)?;
                }
            }
        }
        Ok(())
    }

    fn copy(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        let Some(range) = ByteRange::new(offset, buf.len() as u64) else {
            return Ok(());
        };
        assert!(range.end() <= self.size(), "reads lie within the frozen image");
        for extent in self.frozen.content.within(range) {
            let part = part_of(buf, range, extent.range);
            if extent.content == Content::Data {
                self.read_data(extent.range, part)?;
            } else {
                part.fill(0);
            }
        }
        Ok(())
    }
}

/// The bytes of `piece` in a buffer that holds `range`.
fn part_of(buf: &mut [u8], range: ByteRange, piece: ByteRange) -> &mut [u8] {
    let index = |offset: u64| usize::try_from(offset - range.start()).expect("the piece lies in the buffer");
    &mut buf[index(piece.start())..index(piece.end())]
}

impl FrozenImage for CowImage {
    fn description(&self) -> &Description {
        &self.description
    }

    fn size(&self) -> u64 {
        self.frozen.content.size()
    }

    fn graph(&self) -> Arc<StoreGraph> {
        Arc::clone(&self.frozen.graph)
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
        let located = self.frozen.locate(range, limit);
        let extents = if self.frozen.confirm()? {
            located
        } else {
            self.frozen.locate_nothing(range, limit)
        };
        Ok(Status {
            graph: self.graph(),
            extents,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        let copied = self.copy(offset, buf);
        // Asked after the copy (law H5). A lost content explains an error better, and has to be told of (law H6).
        self.frozen.confirm()?;
        copied
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.frozen.confirm().map(drop)
    }

    fn copy_area(&self) -> Option<CopyAreaUse> {
        Some(self.origin.copy_area_use())
    }

    fn changed_since(&self, older: &dyn FrozenImage) -> Result<ChangedMap, NoLineage> {
        let older: &dyn Any = older;
        let older = older
            .downcast_ref::<Self>()
            .filter(|older| Arc::ptr_eq(&older.origin, &self.origin))
            .ok_or(NoLineage::Unrelated)?;
        self.origin
            .changed_since(&older.frozen, &self.frozen)
            .ok_or(NoLineage::Forgotten)
    }

    /// The origin remembers what was written since; nobody reads it any more, so no old data is kept for it.
    fn keep_as_parent(&self) -> bool {
        if !self.can_be_parent() {
            return false;
        }
        self.frozen.keep_lineage(true);
        self.origin.thaw(&self.frozen);
        // Nothing was known of the time between the two questions.
        self.can_be_parent()
    }

    fn can_be_parent(&self) -> bool {
        self.origin.remembers(&self.frozen)
    }

    fn thaw(&self) {
        self.frozen.keep_lineage(false);
        self.origin.thaw(&self.frozen);
    }
}

impl Drop for CowImage {
    fn drop(&mut self) {
        self.thaw();
    }
}
