//! The frozen image as others see it.

use std::sync::Arc;

use uuid::Uuid;

use crate::cow::frozen::Frozen;
use crate::cow::moves::Source;
use crate::cow::origin::Origin;
use crate::frozen::{ChangedMap, CopyAreaUse, Description, FrozenError, FrozenImage, StatusExtent};
use crate::map::Content;
use crate::range::ByteRange;
use crate::store::StoreGraph;

/// A frozen image of an [`Origin`]. Dropped, it is thawed: nobody is left to read it.
pub(super) struct CowImage {
    pub(super) frozen: Arc<Frozen>,
    pub(super) origin: Arc<Origin>,
}

impl CowImage {
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
        &self.frozen.description
    }

    fn size(&self) -> u64 {
        self.frozen.content.size()
    }

    fn graph(&self) -> &StoreGraph {
        &self.frozen.graph
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Vec<StatusExtent>, FrozenError> {
        let located = self.frozen.locate(range, limit);
        if self.frozen.confirm()? {
            Ok(located)
        } else {
            Ok(self.frozen.locate_nothing(range, limit))
        }
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

    fn lineage(&self) -> Vec<Uuid> {
        self.origin.lineage_of(&self.frozen)
    }

    fn changed_since(&self, older: Uuid) -> Option<ChangedMap> {
        self.origin.changed_since(older, &self.frozen)
    }

    fn keep_lineage(&self) {
        self.frozen.keep_lineage();
    }

    fn thaw(&self) {
        self.origin.thaw(&self.frozen);
    }
}

impl Drop for CowImage {
    fn drop(&mut self) {
        self.thaw();
    }
}
