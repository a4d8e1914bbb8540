//! A frozen image as a read-only export.

use std::sync::Arc;

use volmap::frozen::{FrozenImage, StatusExtent};
use volmap::map::Content;
use volmap::range::ByteRange;

use super::description::describe;
use super::limits::{CACHE_MAX, CACHE_STEP, DESCRIPTORS_MAX, HOLE_CHUNK_MIN, ONE_DESCRIPTOR_LOOKAHEAD};
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, Piece, ReadShape};
use super::x_volmap::ContextTable;
use crate::proto::BlockSizes;

/// A frozen image, served with `base:allocation` and the `x-volmap` contexts.
pub struct FrozenExport {
    image: Arc<dyn FrozenImage>,
    table: ContextTable,
}

impl FrozenExport {
    /// Serves `image`.
    pub fn new(image: Arc<dyn FrozenImage>) -> Self {
        let table = ContextTable::new(image.graph(), Some(image.description().uuid));
        Self { image, table }
    }

    /// All extents of `range`.
    fn extents(&self, range: ByteRange) -> Result<Vec<StatusExtent>, ExportError> {
        Ok(self.image.status(range, usize::MAX)?)
    }

    fn read_data(&self, range: ByteRange) -> Result<Piece, ExportError> {
        let mut bytes = vec![0; buffer_len(range)];
        self.image.read_at(range.start(), &mut bytes)?;
        Ok(Piece::Data {
            offset: range.start(),
            bytes,
        })
    }
}

/// Bytes of a range that is read in one piece; requests are far below the address space.
fn buffer_len(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("a request fits into memory")
}

impl Export for FrozenExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.image.size(),
            writable: false,
            block: BlockSizes::default(),
            description: describe(self.image.description()),
        }
    }

    fn contexts(&self) -> &[Context] {
        self.table.contexts()
    }

    fn read(&self, range: ByteRange, shape: ReadShape) -> Result<Vec<Piece>, ExportError> {
        if shape == ReadShape::Whole {
            return Ok(vec![self.read_data(range)?]);
        }
        split_zeroes(range, &self.extents(range)?)
            .into_iter()
            .map(|part| match part {
                Part::Zeroes(range) => Ok(Piece::Zeroes(range)),
                Part::Data(range) => self.read_data(range),
            })
            .collect()
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        one: bool,
    ) -> Result<BlockStatus, ExportError> {
        let limit = if one {
            1
        } else {
            (DESCRIPTORS_MAX / selected.len().max(1)).max(1)
        };
        let looked_at = if one { ONE_DESCRIPTOR_LOOKAHEAD } else { limit };
        // One sample of the state for all contexts, taken now that the request is here (law H4).
        let extents = self.image.status(range, looked_at)?;
        Ok(self.table.answer(self.image.graph(), &extents, selected, limit))
    }

    fn cache(&self, range: ByteRange) -> Result<(), ExportError> {
        let end = range.end().min(range.start().saturating_add(CACHE_MAX));
        let range = ByteRange::from_bounds(range.start(), end).unwrap_or(range);
        for extent in self.extents(range)? {
            let mut at = extent.range.start();
            while extent.content == Content::Data
                && let Some(step) = ByteRange::from_bounds(at, extent.range.end().min(at + CACHE_STEP))
            {
                self.read_data(step)?;
                at = step.end();
            }
        }
        Ok(())
    }

    /// Nothing is ever dirty here.
    fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
}

enum Part {
    Data(ByteRange),
    Zeroes(ByteRange),
}

/// Cuts `range` into zeroes that are worth a chunk and the rest.
fn split_zeroes(range: ByteRange, extents: &[StatusExtent]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut data_from = range.start();
    let mut zeroes: Option<ByteRange> = None;
    let mut flush_zeroes = |run: Option<ByteRange>, data_from: &mut u64| {
        if let Some(run) = run.filter(|run| run.len() >= HOLE_CHUNK_MIN) {
            parts.extend(ByteRange::from_bounds(*data_from, run.start()).map(Part::Data));
            parts.push(Part::Zeroes(run));
            *data_from = run.end();
        }
    };
    for extent in extents {
        if extent.content == Content::Data {
            flush_zeroes(zeroes.take(), &mut data_from);
        } else {
            let start = zeroes.map_or(extent.range.start(), ByteRange::start);
            zeroes = ByteRange::from_bounds(start, extent.range.end());
        }
    }
    flush_zeroes(zeroes, &mut data_from);
    parts.extend(ByteRange::from_bounds(data_from, range.end()).map(Part::Data));
    parts
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{MIB, Scripted};
    use super::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    fn assembled(pieces: Vec<Piece>) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Data { bytes, .. } => all.extend(bytes),
                Piece::Zeroes(range) => all.resize(all.len() + buffer_len(range), 0),
            }
        }
        all
    }

    #[test]
    fn sparse_and_whole_reads_give_the_same_bytes() {
        let image = Scripted::with_holes();
        let export = FrozenExport::new(image.clone());
        for request in [
            range(0, 4 * MIB),
            range(MIB - 1, 2),
            range(MIB + 1, 3),
            range(4 * MIB - 7, 7),
        ] {
            let sparse = export.read(request, ReadShape::Sparse).unwrap();
            let whole = export.read(request, ReadShape::Whole).unwrap();
            assert_eq!(whole.len(), 1);
            assert_eq!(assembled(sparse), assembled(whole));
        }
        let pieces = export.read(range(0, 4 * MIB), ReadShape::Sparse).unwrap();
        assert!(pieces.contains(&Piece::Zeroes(range(MIB, 2 * MIB))));
    }

    #[test]
    fn zeroes_become_a_chunk_from_the_limit_on() {
        let extent = |start, len, content| StatusExtent {
            range: range(start, len),
            content,
            generation: volmap::generation::Generation::NEVER_DIRECT,
            place: None,
        };
        for (len, chunks) in [
            (HOLE_CHUNK_MIN - 1, 1),
            (HOLE_CHUNK_MIN, 3),
            (HOLE_CHUNK_MIN + 1, 3),
        ] {
            let extents = [
                extent(0, 10, Content::Data),
                extent(10, len, Content::Hole),
                extent(10 + len, 10, Content::Data),
            ];
            assert_eq!(split_zeroes(range(0, 20 + len), &extents).len(), chunks, "{len}");
        }
    }

    #[test]
    fn hole_and_zero_neighbours_are_one_chunk() {
        let image = Scripted::with_holes();
        let export = FrozenExport::new(image);
        let pieces = export.read(range(MIB, 2 * MIB), ReadShape::Sparse).unwrap();
        assert_eq!(pieces, [Piece::Zeroes(range(MIB, 2 * MIB))]);
    }

    #[test]
    fn a_gone_image_answers_nothing_but_gone() {
        let image = Scripted::with_holes();
        let (one, other) = (FrozenExport::new(image.clone()), FrozenExport::new(image.clone()));
        image.thaw();
        for export in [one, other] {
            let all = range(0, 4 * MIB);
            // A read of zeroes too: it is answered from the map, which is as gone as the bytes.
            for shape in [ReadShape::Sparse, ReadShape::Whole] {
                assert!(matches!(
                    export.read(range(MIB, MIB), shape),
                    Err(ExportError::Gone(_))
                ));
            }
            let status = export.block_status(all, &[ContextIndex(0)], false);
            assert!(matches!(status, Err(ExportError::Gone(_))));
            assert!(matches!(export.cache(all), Err(ExportError::Gone(_))));
        }
    }

    #[test]
    fn advice_to_cache_a_whole_volume_is_taken_for_its_beginning() {
        /// Whoever reads behind the limit panics.
        struct Short(Arc<Scripted>);
        impl FrozenImage for Short {
            fn description(&self) -> &volmap::frozen::Description {
                self.0.description()
            }
            fn size(&self) -> u64 {
                self.0.size()
            }
            fn graph(&self) -> &volmap::store::StoreGraph {
                self.0.graph()
            }
            fn status(
                &self,
                range: ByteRange,
                limit: usize,
            ) -> Result<Vec<StatusExtent>, volmap::frozen::FrozenError> {
                self.0.status(range, limit)
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), volmap::frozen::FrozenError> {
                assert!(offset + buf.len() as u64 <= CACHE_MAX, "read at {offset}");
                Ok(())
            }
            fn thaw(&self) {}
        }
        let whole = StatusExtent {
            range: range(0, 1 << 40),
            content: Content::Data,
            generation: volmap::generation::Generation::NEVER_DIRECT,
            place: None,
        };
        let image = Scripted::new(volmap::store::StoreGraph::new(), vec![whole]);
        FrozenExport::new(Arc::new(Short(image)))
            .cache(whole.range)
            .unwrap();
    }

    #[test]
    fn every_status_request_samples_once_for_all_contexts() {
        let image = Scripted::with_holes();
        let export = FrozenExport::new(image.clone());
        let all: Vec<ContextIndex> = (0..export.contexts().len()).map(ContextIndex).collect();
        for asked in 1..=3 {
            export.block_status(range(0, 4 * MIB), &all, false).unwrap();
            assert_eq!(image.samples(), asked);
        }
    }

    #[test]
    fn a_frozen_export_takes_no_changes() {
        let export = FrozenExport::new(Scripted::with_holes());
        assert!(matches!(export.write(0, b"x", false), Err(ExportError::ReadOnly)));
        assert!(matches!(
            export.trim(range(0, 1), false),
            Err(ExportError::ReadOnly)
        ));
        assert!(matches!(
            export.write_zeroes(range(0, 1), false, false),
            Err(ExportError::ReadOnly)
        ));
        assert!(export.flush().is_ok());
    }
}
