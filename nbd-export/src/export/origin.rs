//! The origin of a copy-before-write volume as a read-write export.

use std::sync::Arc;

use volmap::cow::Origin;
use volmap::range::ByteRange;

use super::live::{all_data, allocation_only, one_piece};
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, Piece, ReadShape};
use crate::proto::BlockSizes;

/// The live volume. Every write to it keeps the old data first, while a frozen image of it lives.
pub struct OriginExport {
    origin: Arc<Origin>,
    contexts: Vec<Context>,
}

impl OriginExport {
    /// Serves `origin`.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self {
            origin,
            contexts: allocation_only(),
        }
    }
}

impl Export for OriginExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.origin.size(),
            writable: true,
            block: BlockSizes::default(),
            description: "origin: live, read-write".to_owned(),
        }
    }

    fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    fn read(&self, range: ByteRange, _: ReadShape) -> Result<Vec<Piece>, ExportError> {
        Ok(one_piece(range, |buf| self.origin.read_at(range.start(), buf))?)
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        _: bool,
    ) -> Result<BlockStatus, ExportError> {
        Ok(all_data(range, selected))
    }

    /// Nothing to do: the page cache of a live volume knows better.
    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(self.origin.flush()?)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ExportError> {
        Ok(self.origin.write_at(offset, data, fua)?)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<(), ExportError> {
        Ok(self.origin.trim(range.start(), range.len(), fua)?)
    }

    fn write_zeroes(&self, range: ByteRange, no_hole: bool, fua: bool) -> Result<(), ExportError> {
        Ok(self
            .origin
            .write_zeroes(range.start(), range.len(), no_hole, fua)?)
    }
}
