//! The frozen image of a file or device that stays where it is: what `reflink`, `quiesce` and `static` have in common.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use super::hold::Hold;
use super::pieces::{Piece, pieces};
use super::{Description, FrozenError, FrozenImage, Stability, StatusExtent};
use crate::generation::{Generation, GenerationClock};
use crate::layers::{LayerWitness, Mapping, VolumeKind};
use crate::map::{Content, Extent};
use crate::range::ByteRange;
use crate::storage::read_direct;
use crate::store::{Place, StoreGraph, StoreId};
use crate::sys::page_cache;

/// What a provider made, before it becomes a frozen image. Its hold ends with the image.
pub(super) struct Frozen {
    pub(super) description: Description,
    pub(super) hold: Box<dyn Hold>,
    pub(super) graph: StoreGraph,
    pub(super) mapping: Mapping,
}

/// A frozen image whose bytes lie still.
pub(crate) struct PinnedImage {
    description: Description,
    hold: Box<dyn Hold>,
    graph: StoreGraph,
    top: StoreId,
    size: u64,
    kind: VolumeKind,
    /// Sorted, total.
    pieces: Vec<Piece>,
    /// [`Generation::NEVER_DIRECT`] for an opaque image.
    generation: Generation,
    layers: LayerWitness,
    /// Why the content is lost (law H6).
    gone: OnceLock<String>,
    /// Why the mapping is lost (law H2).
    mapping_lost: OnceLock<String>,
}

impl PinnedImage {
    /// A frozen image of what a provider made.
    ///
    /// # Errors
    /// [`FrozenError::Gone`]: the hold slipped already.
    pub(super) fn new(frozen: Frozen, clock: &GenerationClock) -> Result<Self, FrozenError> {
        let Frozen {
            description,
            hold,
            graph,
            mapping,
        } = frozen;
        let direct = description.stability == Stability::Pinned;
        let image = Self {
            pieces: pieces(&graph, mapping.top, &mapping.content, direct),
            description,
            hold,
            graph,
            top: mapping.top,
            size: mapping.size,
            kind: mapping.kind,
            generation: if direct {
                clock.next()
            } else {
                Generation::NEVER_DIRECT
            },
            layers: mapping.witness,
            gone: OnceLock::new(),
            mapping_lost: OnceLock::new(),
        };
        image.check_content()?;
        image.check_mapping();
        Ok(image)
    }

    fn check_content(&self) -> Result<(), FrozenError> {
        if self.gone.get().is_none()
            && let Err(reason) = self.hold.check_content()
        {
            self.gone.get_or_init(|| {
                tracing::warn!(frozen = %self.description.uuid, %reason, "a frozen image is gone");
                reason
            });
            self.hold.let_openers_in();
        }
        match self.gone.get() {
            Some(reason) => Err(FrozenError::Gone(reason.clone())),
            None => Ok(()),
        }
    }

    /// The generation that stands now.
    fn check_mapping(&self) -> Generation {
        if self.mapping_lost.get().is_none()
            && self.generation.is_direct()
            && let Err(reason) = self.hold.check_mapping().and_then(|()| self.layers.check())
        {
            self.mapping_lost.get_or_init(|| {
                tracing::warn!(frozen = %self.description.uuid, %reason, "a mapping is lost: from now on over NBD");
                reason
            });
        }
        match self.mapping_lost.get() {
            Some(_) => Generation::NEVER_DIRECT,
            None => self.generation,
        }
    }

    /// The pieces of `range`, clipped to it.
    fn pieces_of(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, &Piece)> {
        let first = self.pieces.partition_point(|p| p.range.end() <= range.start());
        self.pieces[first..]
            .iter()
            .map_while(move |piece| Some((piece.range.intersection(range)?, piece)))
    }

    fn copy(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.kind {
            VolumeKind::File | VolumeKind::DeclaredDisk => self.hold.file().read_exact_at(buf, offset),
            // The page cache of a block device is not coherent with what other machines, or file systems, do; so past it.
            VolumeKind::BlockDevice => read_direct(self.hold.file(), offset, buf),
        }
    }
}

impl FrozenImage for PinnedImage {
    fn description(&self) -> &Description {
        &self.description
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn graph(&self) -> &StoreGraph {
        &self.graph
    }

    fn status(&self, range: ByteRange, limit: usize) -> Result<Vec<StatusExtent>, FrozenError> {
        // Both witnesses are sampled now, after the request came in (law H4).
        let generation = self.check_mapping();
        self.check_content()?;
        let answer = self.pieces_of(range).map(|(clipped, piece)| {
            let place = (piece.located && generation.is_direct()).then_some(Place {
                store: self.top,
                offset: clipped.start(),
            });
            let zero = piece.content != Content::Data;
            StatusExtent {
                range: clipped,
                content: piece.content,
                generation: if place.is_some() || zero {
                    generation
                } else {
                    Generation::NEVER_DIRECT
                },
                place,
            }
        });
        Ok(answer.take(limit.max(1)).collect())
    }

    fn content(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, FrozenError> {
        let answer = self.pieces_of(range).map(|(range, piece)| Extent {
            range,
            content: piece.content,
        });
        Ok(answer.take(limit.max(1)).collect())
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn stands(&self) -> Result<(), FrozenError> {
        self.check_content()
    }

    /// The page cache of a block device is not read, see `copy`.
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool, FrozenError> {
        if self.kind == VolumeKind::BlockDevice {
            return Ok(false);
        }
        let mut got = 0;
        while got < buf.len() {
            match page_cache::read_cached(self.hold.file(), &mut buf[got..], offset + got as u64) {
                Ok(0) => return Ok(false),
                Ok(count) => got += count,
                // Whoever reads it with patience finds out what is wrong.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn immutable_file(&self, range: ByteRange) -> Result<Option<Arc<File>>, FrozenError> {
        if !self.hold.is_for_ever() || self.kind == VolumeKind::BlockDevice {
            return Ok(None);
        }
        let file = self.hold.file();
        let cached = page_cache::is_cached(file, range.start(), range.len()).unwrap_or(false);
        Ok(cached.then(|| Arc::clone(file)))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FrozenError> {
        self.check_content()?;
        let copied = self.copy(offset, buf);
        // What was copied counts only if the content still stood afterwards (law H5); a lost content explains an error better, too.
        self.check_content()?;
        Ok(copied?)
    }

    fn thaw(&self) {
        // Gone first: whoever reads meanwhile sees it before anybody can write.
        self.gone.get_or_init(|| "it was thawed".to_owned());
        self.hold.end();
    }
}

#[cfg(test)]
mod tests;
