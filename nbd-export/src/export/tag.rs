//! The tag of a volume: a small writable export on the same disk, by which a proxy proves that the disk it reads is the one
//! that this host writes.
//!
//! The proxy writes a nonce here with FUA, learns the place of the tag from the `x-volmap` contexts, and must find the nonce
//! there. So the mapping may be sampled late or even be wrong: then the nonce is not found, and no proof was given.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use volmap::frozen::StatusExtent;
use volmap::generation::{Generation, GenerationClock};
use volmap::layers::{Layers, Mapping};
use volmap::map::Content;
use volmap::range::ByteRange;
use volmap::store::{Place, StoreGraph};

use super::limits::{DESCRIPTORS_MAX, TAG_SIZE_MAX, TAG_SIZE_MIN};
use super::live::one_piece;
use super::model::{BlockStatus, Context, ContextIndex, Export, ExportError, ExportInfo, Piece, ReadShape};
use super::x_volmap::ContextTable;
use crate::proto::BlockSizes;

/// Why a tag cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// It has the wrong size.
    #[error(
        "a tag is a file or device of {TAG_SIZE_MIN} to {TAG_SIZE_MAX} bytes, and this one has {0}: make one with \
         `truncate -s 64K FILE`"
    )]
    Size(u64),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A tag file or device, mapped.
pub struct TagExport {
    file: File,
    path: PathBuf,
    layers: Arc<Layers>,
    graph: StoreGraph,
    mapping: Mapping,
    generation: Generation,
    /// Set when the tag no longer lies where it was mapped.
    moved: AtomicBool,
    table: ContextTable,
}

impl TagExport {
    /// Opens a tag. Where it has no blocks yet it is filled with zeroes, so that it has a place.
    ///
    /// # Errors
    /// [`TagError`].
    pub fn open(path: &Path, layers: Arc<Layers>, clock: &GenerationClock) -> Result<Self, TagError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut graph = StoreGraph::new();
        let mut mapping = layers.map(&mut graph, &file, path)?;
        if !(TAG_SIZE_MIN..=TAG_SIZE_MAX).contains(&mapping.size) {
            return Err(TagError::Size(mapping.size));
        }
        if mapping
            .content
            .extents()
            .iter()
            .any(|e| e.content != Content::Data)
        {
            fill(&file, &mapping)?;
            graph = StoreGraph::new();
            mapping = layers.map(&mut graph, &file, path)?;
        }
        let table = ContextTable::new(&graph, None);
        Ok(Self {
            file,
            path: path.to_owned(),
            layers,
            graph,
            mapping,
            generation: clock.next(),
            moved: AtomicBool::new(false),
            table,
        })
    }

    /// Whether the tag lies where it lay; for good `false` once it did not.
    fn is_in_place(&self) -> io::Result<bool> {
        if !self.moved.load(Ordering::SeqCst) {
            let mut graph = StoreGraph::new();
            let now = self.layers.map(&mut graph, &self.file, &self.path)?;
            let same = graph == self.graph
                && now.content == self.mapping.content
                && self.mapping.witness.check().is_ok();
            if !same {
                tracing::warn!(tag = %self.path.display(), "the tag has moved; it proves nothing until a restart");
                self.moved.store(true, Ordering::SeqCst);
            }
        }
        Ok(!self.moved.load(Ordering::SeqCst))
    }
}

/// Writes zeroes where a tag has no data.
fn fill(file: &File, mapping: &Mapping) -> io::Result<()> {
    for extent in mapping.content.extents() {
        if extent.content != Content::Data {
            let len = usize::try_from(extent.range.len()).map_err(io::Error::other)?;
            file.write_all_at(&vec![0; len], extent.range.start())?;
        }
    }
    file.sync_all()
}

impl Export for TagExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.mapping.size,
            writable: true,
            block: BlockSizes::default(),
            description: "tag: proves which disk this host writes".to_owned(),
        }
    }

    fn contexts(&self) -> &[Context] {
        self.table.contexts()
    }

    fn read(&self, range: ByteRange, _: ReadShape) -> Result<Vec<Piece>, ExportError> {
        Ok(one_piece(range, |buf| {
            self.file.read_exact_at(buf, range.start())
        })?)
    }

    fn block_status(
        &self,
        range: ByteRange,
        selected: &[ContextIndex],
        one: bool,
    ) -> Result<BlockStatus, ExportError> {
        let in_place = self.is_in_place()?;
        let extents: Vec<StatusExtent> = self
            .mapping
            .content
            .within(range)
            .map(|extent| StatusExtent {
                range: extent.range,
                // Whatever it was when it was mapped: it is there to be written.
                content: Content::Data,
                generation: if in_place {
                    self.generation
                } else {
                    Generation::NEVER_DIRECT
                },
                place: in_place.then_some(Place {
                    store: self.mapping.top,
                    offset: extent.range.start(),
                }),
            })
            .collect();
        let limit = if one { 1 } else { DESCRIPTORS_MAX };
        Ok(self.table.answer(&self.graph, &extents, selected, limit))
    }

    fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(self.file.sync_data()?)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ExportError> {
        self.file.write_all_at(data, offset)?;
        if fua {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Nothing is given back: the tag must keep its place.
    fn trim(&self, _: ByteRange, fua: bool) -> Result<(), ExportError> {
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, range: ByteRange, _: bool, fua: bool) -> Result<(), ExportError> {
        let len = usize::try_from(range.len()).expect("a tag fits into memory");
        self.write(range.start(), &vec![0; len], fua)
    }
}
