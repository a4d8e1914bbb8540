//! The tag of a volume as a writable export: a proxy leaves a nonce in it, learns its place from the `x-volmap` contexts, and must
//! find the nonce there.

use volmap::range::ByteRange;
use volmap::storage::Zeroing;
use volmap::tag::Tag;

use super::limits::DESCRIPTORS_MAX;
use super::live::one_piece;
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, ReadShape};
use super::pieces::Pieces;
use super::x_volmap::ContextTable;
use crate::proto::BlockSizes;

/// A tag, served read-write. Every write is durable when it is answered; the first block is the host's.
pub struct TagExport {
    tag: Tag,
    table: ContextTable,
}

impl TagExport {
    /// Serves `tag`.
    pub fn new(tag: Tag) -> Self {
        let table = ContextTable::new(tag.graph(), None);
        Self { tag, table }
    }
}

impl Export for TagExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.tag.size(),
            writable: true,
            fast_zero: false,
            block: BlockSizes::default(),
            description: "tag: proves which disk this host writes".to_owned(),
        }
    }

    fn contexts(&self) -> Vec<Context> {
        self.table.contexts().to_vec()
    }

    fn read(&self, range: ByteRange, _: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        Ok(one_piece(range, out, |buf| self.tag.read_at(range.start(), buf))?)
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        one: bool,
    ) -> Result<BlockStatus, ExportError> {
        let limit = if one { 1 } else { DESCRIPTORS_MAX };
        let extents = self.tag.status(range, DESCRIPTORS_MAX);
        Ok(self.table.answer(self.tag.graph(), &extents, selected, limit))
    }

    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    /// Every write was durable when it was answered.
    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _: bool) -> Result<(), ExportError> {
        Ok(self.tag.write_at(offset, data)?)
    }

    /// Nothing is given back: the tag keeps its place.
    fn trim(&self, _: ByteRange, _: bool) -> Result<(), ExportError> {
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, _: Zeroing, fua: bool) -> Result<(), ExportError> {
        let len = usize::try_from(range.len()).expect("a tag fits into memory");
        self.write(range.start(), &vec![0; len], fua)
    }
}

#[cfg(test)]
mod tests {
    use volmap::generation::GenerationClock;
    use volmap::layers::Layers;

    use super::super::scripted::assembled;
    use super::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    #[test]
    fn a_nonce_stays_where_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::new(Vec::new()).unwrap();
        let clock = GenerationClock::start().unwrap();
        let export = TagExport::new(Tag::open(&dir.path().join("tag"), &layers, &clock).unwrap());
        let size = export.info().size;
        export.write(4096, b"nonce", true).unwrap();
        export.trim(range(4096, 4096), true).unwrap();
        assert_eq!(assembled(&export, range(4096, 5), ReadShape::Sparse), b"nonce");
        assert!(
            export.write(0, b"x", true).is_err(),
            "the first block is the host's"
        );

        let all: Vec<ContextIndex> = (0..export.contexts().len()).map(ContextIndex).collect();
        assert!(
            export
                .contexts()
                .iter()
                .all(|c| !c.name.starts_with("x-volmap:frozen:"))
        );
        let status = export.block_status(range(0, size), &all, false).unwrap();
        assert_eq!(status.len(), all.len());
        for context in status {
            assert_eq!(context.descriptors.iter().map(|d| d.length).sum::<u64>(), size);
        }
    }
}
