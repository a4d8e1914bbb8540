//! A frozen image as a read-only export.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;
use volmap::frozen::{FrozenError, FrozenImage, Status, StatusExtent};
use volmap::map::{Content, Extent};
use volmap::range::ByteRange;
use volmap::store::StoreGraph;

use super::description::{Circumstances, describe};
use super::limits::{
    AT_ONCE_MAX, BY_REFERENCE_MIN, CACHE_MAX, CACHE_STEP, DESCRIPTORS_MAX, HOLE_CHUNK_MIN,
    ONE_DESCRIPTOR_LOOKAHEAD,
};
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, ReadShape};
use super::pieces::Pieces;
use super::x_volmap::{ContextTable, Parent};
use crate::proto::BlockSizes;

/// A frozen image, served with `base:allocation` and the `x-volmap` contexts.
pub struct FrozenExport {
    image: Arc<dyn FrozenImage>,
    /// Of the stores that were told of last.
    layout: RwLock<Arc<Layout>>,
    circumstances: Circumstances,
    ended: AtomicBool,
}

/// Stores, and how they are told of.
struct Layout {
    graph: Arc<StoreGraph>,
    table: ContextTable,
}

impl FrozenExport {
    /// Serves `image`.
    pub fn new(image: Arc<dyn FrozenImage>) -> Self {
        let graph = image.graph();
        let table = ContextTable::new(&graph, Some(image.description().uuid));
        Self {
            layout: RwLock::new(Arc::new(Layout { graph, table })),
            image,
            circumstances: Circumstances::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// Has it tell what changed since older frozen images of its volume.
    #[must_use]
    pub fn since(mut self, parents: Vec<Parent>) -> Self {
        let graph = self.image.graph();
        let table = ContextTable::new(&graph, Some(self.image.description().uuid)).since(parents);
        self.layout = RwLock::new(Arc::new(Layout { graph, table }));
        self
    }

    /// The frozen images that it tells of what changed since.
    pub fn parents(&self) -> Vec<Uuid> {
        self.layout().table.parents().collect()
    }

    /// From now on it answers nothing, whatever becomes of the frozen image (law H6).
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Asked after all that an answer was made of.
    fn stands(&self) -> Result<(), FrozenError> {
        self.image.stands()?;
        self.not_ended()
    }

    fn not_ended(&self) -> Result<(), FrozenError> {
        match self.ended.load(Ordering::SeqCst) {
            true => Err(FrozenError::Gone("it was thawed".to_owned())),
            false => Ok(()),
        }
    }

    /// Has it told how it came to be.
    #[must_use]
    pub fn under(mut self, circumstances: Circumstances) -> Self {
        self.circumstances = circumstances;
        self
    }

    /// How it came to be.
    pub fn circumstances(&self) -> &Circumstances {
        &self.circumstances
    }

    // A layout is put there whole, so what a panic left under this lock is good.
    fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How those stores are told of: they are others once the bytes were moved.
    fn layout_of(&self, graph: Arc<StoreGraph>) -> Arc<Layout> {
        let known = self.layout();
        if Arc::ptr_eq(&known.graph, &graph) {
            return known;
        }
        // One after the other, so that no context is forgotten that somebody was told of.
        let mut known = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.graph, &graph) {
            let table = known.table.on(&graph);
            *known = Arc::new(Layout { graph, table });
        }
        Arc::clone(&known)
    }

    /// What is zeroes and what is data of `range`; all data, if zeroes may not be said.
    fn parts(&self, range: ByteRange, shape: ReadShape) -> Result<Vec<Part>, FrozenError> {
        Ok(match shape {
            ReadShape::Whole => vec![Part::Data(range)],
            ReadShape::Sparse => split_zeroes(range, &self.image.content(range, usize::MAX)?),
        })
    }

    /// Appends a piece of data; `false` if that needs a wait.
    fn data_at_once(
        &self,
        range: ByteRange,
        copied: &mut u64,
        out: &mut Pieces,
    ) -> Result<bool, FrozenError> {
        if out.takes_files()
            && range.len() >= BY_REFERENCE_MIN
            && let Some(file) = self.image.immutable_file(range)?
        {
            out.file(range, file);
            return Ok(true);
        }
        *copied += range.len();
        if *copied > AT_ONCE_MAX {
            return Ok(false);
        }
        self.image
            .read_cached(range.start(), out.data(range.start(), buffer_len(range)))
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
            writable: self.writable(),
            fast_zero: false,
            block: BlockSizes::default(),
            description: describe(
                self.image.description(),
                &self.circumstances,
                self.image.copy_area(),
                self.image.left_out(),
                &self.image.graph(),
            ),
        }
    }

    fn writable(&self) -> bool {
        false
    }

    fn contexts(&self) -> Vec<Context> {
        let layout = self.layout_of(self.image.graph());
        layout.table.contexts().to_vec()
    }

    fn read(&self, range: ByteRange, shape: ReadShape, out: &mut Pieces) -> Result<(), ExportError> {
        for part in self.parts(range, shape)? {
            match part {
                Part::Zeroes(range) => out.zeroes(range),
                Part::Data(range) => self
                    .image
                    .read_at(range.start(), out.data(range.start(), buffer_len(range)))?,
            }
        }
        self.stands()?;
        Ok(())
    }

    fn read_at_once(
        &self,
        range: ByteRange,
        shape: ReadShape,
        out: &mut Pieces,
    ) -> Result<bool, ExportError> {
        if !self.image.answers_at_once() {
            return Ok(false);
        }
        let mut copied = 0;
        for part in self.parts(range, shape)? {
            match part {
                Part::Zeroes(range) => out.zeroes(range),
                Part::Data(range) => {
                    if !self.data_at_once(range, &mut copied, out)? {
                        out.clear();
                        return Ok(false);
                    }
                }
            }
        }
        // Asked once all is copied (law H5); that it was frozen earlier says nothing.
        self.stands()?;
        Ok(true)
    }

    fn answers_at_once(&self) -> bool {
        self.image.answers_at_once()
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
        let layout = self.layout();
        let (layout, extents) = if layout.table.shows_places(selected) {
            let Status { graph, extents } = self.image.status(range, looked_at)?;
            self.not_ended()?;
            (self.layout_of(graph), extents)
        } else {
            let content = self.image.content(range, looked_at)?;
            self.stands()?;
            (layout, content.into_iter().map(StatusExtent::from).collect())
        };
        Ok(layout.table.answer(&layout.graph, &extents, selected, limit))
    }

    fn cache(&self, range: ByteRange) -> Result<(), ExportError> {
        let end = range.end().min(range.start().saturating_add(CACHE_MAX));
        let range = ByteRange::from_bounds(range.start(), end).unwrap_or(range);
        let mut pieces = Pieces::default();
        for extent in self.image.content(range, usize::MAX)? {
            let mut at = extent.range.start();
            while extent.content == Content::Data
                && let Some(step) = ByteRange::from_bounds(at, extent.range.end().min(at + CACHE_STEP))
            {
                self.read(step, ReadShape::Whole, &mut pieces)?;
                pieces.clear();
                at = step.end();
            }
        }
        self.standing()
    }

    fn standing(&self) -> Result<(), ExportError> {
        Ok(self.stands()?)
    }

    /// Nothing is ever dirty here; but nothing of what is gone is safe either.
    fn flush(&self) -> Result<(), ExportError> {
        self.standing()
    }
}

enum Part {
    Data(ByteRange),
    Zeroes(ByteRange),
}

/// Cuts `range` into zeroes that are worth a chunk and the rest.
fn split_zeroes(range: ByteRange, extents: &[Extent]) -> Vec<Part> {
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
    use super::super::pieces::Piece;
    use super::super::scripted::{MIB, Scripted, assembled};
    use super::*;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(start, len).unwrap()
    }

    /// The ranges of the zeroes and of the data of a read.
    fn shapes(export: &dyn Export, range: ByteRange, shape: ReadShape) -> Vec<Option<ByteRange>> {
        let mut pieces = Pieces::default();
        export.read(range, shape, &mut pieces).unwrap();
        let zeroes = |piece: &Piece| match piece {
            Piece::Zeroes(range) => Some(*range),
            _ => None,
        };
        pieces.as_slice().iter().map(zeroes).collect()
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
            assert_eq!(shapes(&export, request, ReadShape::Whole), [None]);
            assert_eq!(
                assembled(&export, request, ReadShape::Sparse),
                assembled(&export, request, ReadShape::Whole)
            );
        }
        let zeroes = Some(range(MIB, 2 * MIB));
        let all = range(0, 4 * MIB);
        assert_eq!(shapes(&export, all, ReadShape::Sparse), [None, zeroes, None]);
    }

    #[test]
    fn zeroes_become_a_chunk_from_the_limit_on() {
        let extent = |start, len, content| Extent {
            range: range(start, len),
            content,
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
        let zeroes = range(MIB, 2 * MIB);
        assert_eq!(shapes(&export, zeroes, ReadShape::Sparse), [Some(zeroes)]);
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
                let out = &mut Pieces::default();
                let read = export.read(range(MIB, MIB), shape, out);
                assert!(matches!(read, Err(ExportError::Gone(_))));
            }
            let status = export.block_status(all, &[ContextIndex(0)], false);
            assert!(matches!(status, Err(ExportError::Gone(_))));
            assert!(matches!(export.cache(all), Err(ExportError::Gone(_))));
            assert!(matches!(export.flush(), Err(ExportError::Gone(_))));
        }
    }

    #[test]
    fn bytes_that_were_copied_at_once_while_the_image_went_are_not_given_out() {
        /// Goes while its bytes are copied.
        struct Slipping(Arc<Scripted>);
        impl FrozenImage for Slipping {
            fn description(&self) -> &volmap::frozen::Description {
                self.0.description()
            }
            fn size(&self) -> u64 {
                self.0.size()
            }
            fn graph(&self) -> Arc<StoreGraph> {
                self.0.graph()
            }
            fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
                self.0.status(range, limit)
            }
            fn answers_at_once(&self) -> bool {
                true
            }
            fn read_cached(&self, _: u64, _: &mut [u8]) -> Result<bool, FrozenError> {
                self.0.thaw();
                Ok(true)
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
                self.0.read_at(offset, buf)
            }
            fn stands(&self) -> Result<(), FrozenError> {
                self.0.stands()
            }
            fn thaw(&self) {}
        }
        let export = FrozenExport::new(Arc::new(Slipping(Scripted::with_holes())));
        let read = export.read_at_once(range(0, 512), ReadShape::Sparse, &mut Pieces::default());
        assert!(matches!(read, Err(ExportError::Gone(_))));
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
            fn graph(&self) -> Arc<StoreGraph> {
                self.0.graph()
            }
            fn status(&self, range: ByteRange, limit: usize) -> Result<Status, FrozenError> {
                self.0.status(range, limit)
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
                assert!(offset + buf.len() as u64 <= CACHE_MAX, "read at {offset}");
                Ok(())
            }
            fn stands(&self) -> Result<(), FrozenError> {
                self.0.stands()
            }
            fn thaw(&self) {}
        }
        let whole = StatusExtent {
            range: range(0, 1 << 40),
            content: Content::Data,
            generation: volmap::generation::Generation::NEVER_DIRECT,
            place: None,
        };
        let image = Scripted::new(StoreGraph::new(), vec![whole]);
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
            export.write_zeroes(
                range(0, 1),
                volmap::storage::Zeroing {
                    may_punch: true,
                    fast: false
                },
                false
            ),
            Err(ExportError::ReadOnly)
        ));
        assert!(export.flush().is_ok());
    }
}
